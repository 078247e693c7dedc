"""What is searched, and how well: a collection in memory, out of a BEIR folder among others.

The format is that of BEIR (Thakur et al. 2021, arXiv:2104.08663).
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float, Int

from distilflax.errors import UserError, choose_from
from distilflax.search import exact, ranking
from distilflax.text import lines
from distilflax.text.files import ROWS, rows_of

# What judgements are called in files that name their columns, and what such files may be.
JUDGED = ("query-id", "corpus-id")
_JUDGEMENTS = (".tsv", ".jsonl", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class Collection:
    """Texts to be found, texts to find them by, and which belongs to which.

    relevance[q] maps the documents that were judged for query q, by index, to their grades; every
    query has one above 0. `unanswered` queries were judged too, had none, and were left out.
    `itself` says for each query which document it is, where that was not judged, or -1: no search
    is asked for that. `missing` documents, by id, were judged and are not there: their indices
    follow those of `documents`, so that figures count them and no search finds them. `unknown`
    queries were judged, are not there, and were left out.
    """

    documents: tuple[str, ...]
    queries: tuple[str, ...]
    relevance: tuple[Mapping[int, float], ...]
    unanswered: int = 0
    itself: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: int = 0

    @property
    def notes(self) -> list[str]:
        """What one should know of the judgements beside the figures; mostly nothing."""
        found = []
        if self.missing:
            found.append(
                f"{len(self.missing):,} judged documents are not in the corpus: figures of a "
                "search count them as never found, and nothing is learned from them"
            )
        if self.unknown:
            found.append(
                f"{self.unknown:,} judged queries are not among the queries and were left out"
            )
        if self.unanswered:
            found.append(
                f"{self.unanswered:,} queries have no judgement above 0 and were left out, as "
                "trec_eval does"
            )
        return found


def retrieve(
    query_vectors: Float[np.ndarray, "Q D"],
    document_vectors: Float[np.ndarray, "N D"],
    relevance: Sequence[Mapping[int, float]],
    itself: Sequence[int] = (),
) -> dict[str, Float[np.ndarray, "Q"]]:
    """The scores of `ranking.METRICS` for each query, by exact search for the greatest inner
    product; `itself` as a `Collection` has it."""
    search = partial(exact.nearest, query_vectors, document_vectors)
    return ranking.score(others(search, ranking.DEEPEST, itself), relevance)


def others(
    search: Callable[[int], tuple[Any, Int[np.ndarray, "Q K"]]], k: int, itself: Sequence[int]
) -> Int[np.ndarray, "Q K"]:
    """The `k` documents that `search(k)`, (scores, documents), finds for each query without those
    that are the query `itself`; -1 fills up where there are no more."""
    if not any(own >= 0 for own in itself):
        return search(k)[1]
    _, found = search(k + 1)
    found = np.where(found == np.array(itself)[:, None], -1, found)
    order = np.argsort(found < 0, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)[:, :k]


def _itself(
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    relevance: Mapping[str, Mapping[int, float]],
) -> tuple[int, ...]:
    """For each query that was judged a document that was not, or -1: that of its id, if this has
    its text, be it after a title; or else one that has its very text."""
    asked = {queries[name] for name in relevance}
    copies: dict[str, list[int]] = {}
    numbers: dict[str, int] = {}
    for i, (name, text) in enumerate(documents.items()):
        if name in relevance and f" {text}".endswith(f" {queries[name]}"):
            numbers[name] = i
        if text in asked:
            copies.setdefault(text, []).append(i)
    found = []
    for name, judged in relevance.items():
        known = [numbers[name]] if name in numbers else []
        known += copies.get(queries[name], [])
        found.append(next((i for i in known if i not in judged), -1))
    return tuple(found)


def _refuse(sentence: str) -> None:
    raise UserError(sentence)


def read_beir(folder: str | Path, split: str = "test") -> Collection:
    """A BEIR folder, as `text_files` and `judgements` find what is in it.

    Raises:
      UserError: as `read_judged` does.
    """
    return read_judged(judgements(lines.local(folder), split))


def read_judged(qrels: Path, fault: Callable[[str], None] = _refuse) -> Collection:
    """The BEIR folder of a file of judgements, which lies in a folder of its own there or beside
    the corpus: `text_files` and `judged` say what is read.

    A document is its title and its text with a space between, as BEIR and sentence-transformers
    join them. Queries without a relevant document in the split are left out, as by trec_eval. A
    judged document that the corpus lacks counts nevertheless, as there (`Collection.missing`):
    ArguAna has five as it was published.
    A query that is a document too (ArguAna's are) is not searched for by itself, unless that was
    judged. Its text says so: the same id alone says nothing, though BEIR's own code goes by it.

    Args:
      fault: is told of a line that is not what the format says, with its number; where it
        returns, the line is passed over.

    Raises:
      UserError: a missing file, an empty corpus, no judgement above 0 of what is there, or what
        `fault` raises.
    """
    beside = any(name.exists() for name in _text_names(qrels.parent, "corpus"))
    folder = qrels.parent if beside else qrels.parent.parent
    split = qrels.name.split(".")[0].split("-")[0]
    documents = dict(read_corpus(text_files(folder, "corpus", split), fault))
    queries = dict(read_queries(text_files(folder, "queries", split), fault))
    number = {name: i for i, name in enumerate(documents)}
    relevance: dict[str, dict[int, float]] = {}
    missing: dict[str, int] = {}
    unknown = set()
    for place, query, document, grade in _read_judgements(qrels, queries, fault):
        if query not in queries:
            unknown.add(query)
            continue
        index = number.get(document)
        if index is None:
            index = missing.setdefault(document, len(number) + len(missing))
        if relevance.setdefault(query, {}).setdefault(index, grade) != grade:
            fault(
                f"{place} judges document {document!r} for query {query!r} a second time, and "
                "otherwise; leave one of them out."
            )
    answered = {q: grades for q, grades in relevance.items() if max(grades.values()) > 0}
    if not any(
        grade > 0 and i < len(number) for judged in answered.values() for i, grade in judged.items()
    ):
        if missing or unknown:
            raise UserError(
                f"{qrels} judges nothing above 0 that is there: {len(missing):,} of its documents "
                f"are not in the corpus, and {len(unknown):,} of its queries not among the "
                "queries; give the files of one data set."
            )
        raise UserError(f"{qrels} has no judgement above 0, so there is nothing to be found.")
    return Collection(
        tuple(documents.values()),
        tuple(queries[query] for query in answered),
        tuple(answered.values()),
        unanswered=len(relevance) - len(answered),
        itself=_itself(queries, documents, answered),
        missing=tuple(missing),
        unknown=len(unknown),
    )


def judgements(folder: Path, split: str) -> Path:
    """The file of a split's judgements, which may be missing: qrels/SPLIT.tsv, compressed or not,
    or another that `judged` reads, or qrels/SPLIT-00000-of-00001.parquet, as hubs call it.

    Raises:
      UserError: it is in several pieces.
    """
    named = [lines.packed_or_not(folder / "qrels" / f"{split}{kind}") for kind in _JUDGEMENTS]
    found = [path for path in named if path.exists()]
    shards = sorted((folder / "qrels").glob(f"{split}-*-of-*.parquet"))
    if not found and len(shards) > 1:
        raise UserError(
            f"{shards[0]} is one of {len(shards)} files of {split!r}; join them in one, "
            f"qrels/{split}.parquet."
        )
    return (found or shards or named)[0]


def text_files(folder: Path, name: str, split: str = "") -> list[Path]:
    """What holds the `corpus` or the `queries` of a folder: NAME.jsonl, compressed or not; or
    NAME.parquet; or, as hubs publish them, what is Parquet in a folder NAME: SPLIT-*.parquet, if
    the split has its own, or else all.

    Raises:
      UserError: nothing of that is there.
    """
    plain, parquet, shards = _text_names(folder, name)
    found = [path for path in (plain, parquet) if path.exists()][:1]
    found = found or sorted(shards.glob(f"{split}-*.parquet")) or sorted(shards.glob("*.parquet"))
    if not found:
        raise UserError(
            f"There is no file {plain}, and no Parquet in a folder {name} in its place; judgements "
            "lie in a folder beside them, such as qrels."
        )
    return found


def _text_names(folder: Path, name: str) -> tuple[Path, Path, Path]:
    plain = lines.packed_or_not(folder / f"{name}.jsonl")
    return plain, folder / f"{name}.parquet", folder / name


def read_corpus(
    paths: Sequence[Path], fault: Callable[[str], None] = _refuse
) -> Iterator[tuple[str, str]]:
    """(id, title and text) of each document in the files of a corpus.

    Raises:
      UserError: as `read_beir` does.
    """
    return _read_texts(paths, fault, with_title=True)


def read_queries(
    paths: Sequence[Path], fault: Callable[[str], None] = _refuse
) -> Iterator[tuple[str, str]]:
    """(id, text) of each query in their files; raises as `read_beir` does."""
    return _read_texts(paths, fault, with_title=False)


def _read_texts(
    paths: Sequence[Path], fault: Callable[[str], None], *, with_title: bool
) -> Iterator[tuple[str, str]]:
    """(id, text) of every record; ids are unique, and there is at least one."""
    seen = set()
    for place, record in (one for path in paths for one in _objects(path, fault)):
        # mteb writes `id`, BEIR `_id`.
        name, text = record.get("_id", record.get("id")), record.get("text")
        name = str(name) if type(name) is int else name
        title = record.get("title") or ""
        if not all(isinstance(value, str) for value in (name, text, title)):
            fault(f"{place} should have _id and text, both of them texts.")
        elif name in seen:
            fault(f"{place} has the _id {name!r} a second time.")
        else:
            seen.add(name)
            yield name, lines.whole(f"{title} {text}" if with_title else text).strip()
    if not seen:
        raise UserError(f"{paths[0]} is empty; it should have texts, each with its _id.")


def _objects(path: Path, fault: Callable[[str], None]) -> Iterator[tuple[str, dict]]:
    """The records of JSON lines or Parquet, each with its place."""
    if path.suffix == ".parquet":
        with lines.explained(path), pa.parquet.ParquetFile(path, memory_map=True) as file:
            yield from rows_of(path, file.iter_batches(batch_size=ROWS))
        return
    for place, line in lines.read(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault(f"{place} is not JSON ({error!s:.80}).")
            continue
        if isinstance(record, dict):
            yield place, record
        else:
            fault(f"{place} should be an object of names and values.")


def _read_judgements(
    path: Path, queries: Mapping[str, str], fault: Callable[[str], None]
) -> Iterator[tuple[str, str, str, float]]:
    """(place, query id, document id, grade) of every line but the header."""
    for number, (place, cells) in enumerate(judged(path, fault)):
        if len(cells) != 3:
            fault(
                f"{place} has {len(cells)} columns; it should have query-id, corpus-id and score, "
                "or the first line should name the first two alone."
            )
            continue
        grade = lines.number(cells[2])
        if grade is not None:
            yield place, cells[0], cells[1], grade
        elif number or cells[0] in queries:
            fault(f"{place} has the score {cells[2]!r}, which is not a number.")


def judged(path: Path, fault: Callable[[str], None] = _refuse) -> Iterator[tuple[str, list[str]]]:
    """The cells of each judgement, query-id, corpus-id and score: of lines with tabs, spaces or
    (.csv) commas between, of JSON lines, or of Parquet. TREC has a second cell that says nothing.
    Where the columns are named and none is a score, it is 1.

    Raises:
      UserError: another suffix, what cannot be read, or what `fault` raises.
    """
    kind = lines.name_below(path).suffix
    if kind not in _JUDGEMENTS:
        raise UserError(
            f"{path}: {kind!r} is no format of judgements; {choose_from(kind, _JUDGEMENTS)}"
        )
    if kind in (".jsonl", ".parquet"):
        for place, record in _objects(path, fault):
            if not record.keys() >= {*JUDGED}:
                fault(f"{place} should have query-id and corpus-id, and has {', '.join(record)}.")
                continue
            yield place, [str(record[name]) for name in JUDGED] + [str(record.get("score", 1))]
        return
    unscored = False
    for number, (place, line) in enumerate(lines.read(path)):
        if kind == ".csv":
            cells = next(csv.reader([line]), [])
        else:
            cells = line.split("\t") if "\t" in line else line.split()
        if not number and cells == [*JUDGED]:
            unscored = True
        elif cells and line.strip():
            cells = [cells[0], *cells[2:]] if len(cells) == 4 else cells
            yield place, [*cells, "1"] if unscored else cells
