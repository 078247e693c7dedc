"""A BEIR folder as data to learn retrieval from: its queries divided, hard negatives found.

A folder that has judgements of one split alone is divided by query, for each by a hash of its text:
what is tuned or measured on was in no way learned from. One that has `qrels/train.tsv` keeps its
own splits, without `dev.jsonl` if it has no `qrels/dev.tsv`.

What is written is a BEIR folder once more, with two files beside. In `train.jsonl` a record is a
query, a positive, and the negatives that a model puts nearest to the query, its cosines as `score`.
In `dev.jsonl` each query has all of its positives, among the nearest other texts: candidates to be
reranked.
"""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from numpy import ndarray

from distilflax.errors import UserError
from distilflax.search import mining
from distilflax.search.collection import (
    Collection,
    judged,
    judgements,
    read_beir,
    read_corpus,
    read_queries,
    text_files,
)
from distilflax.search.mining import Mined
from distilflax.weights import whole_folder

PARTS = ("train", "dev", "test")


@runtime_checkable
class Embedder(Protocol):
    """What makes vectors of queries and documents, and brings them to the length at which they are
    compared; `distilflax.load` gives one."""

    def encode_query(self, texts: Sequence[str]) -> Float[ndarray, "n D"]: ...

    def encode_document(self, texts: Sequence[str]) -> Float[ndarray, "n D"]: ...

    def to_compare(self, vectors: Float[ndarray, "n D"]) -> Float[ndarray, "n D"]: ...


@dataclass(frozen=True)
class Division:
    """How a folder is divided and mined.

    `split`: whose judgements are divided, where there is no train; `shares`: of its queries for
    train, dev and test, 1 together. The others are of `mining.hard_negatives`, `number` as
    `negatives`.
    """

    split: str = "test"
    shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    negatives: int = 8
    depth: int = 100
    skip: int = 0
    margin: float = 0.05


def write(
    source: Path, output: Path, model: Embedder, how: Division, say: Callable[[str], None]
) -> None:
    """`source` divided and mined by `model` into `output`, whole or not at all.

    Raises:
      UserError: what is wrong with the files of `source`, before anything is computed; a test part
        of its own is copied as it is.
    """
    divided = _is_divided(source)
    if not divided:
        for note in read_beir(source, how.split).notes:
            say(f"{how.split}: {note}")
    with whole_folder.written(output) as making:
        _divide(source, making, how)
        # Faults are told of the files that stay there, and before the model works for hours.
        folder = source if divided else making
        read = {
            part: read_beir(folder, part)
            for part in ("train", "dev")
            if judgements(folder, part).is_file()
        }
        parts = {part: _with_text(collection) for part, collection in read.items()}
        encoded, documents, mined, note = None, None, [], ""
        for part, (collection, empty) in parts.items():
            say(f"{part}: {len(collection.queries):,} queries, {len(collection.documents):,} texts")
            for told in read[part].notes if divided else ():
                say(f"{part}: {told}")
            if empty:
                say(f"{part}: {empty:,} documents without a word are neither positive nor negative")
            if collection.documents != encoded:  # Of some folders every part has its own.
                encoded = collection.documents
                documents = model.to_compare(model.encode_document(list(encoded)))
            asked = model.to_compare(model.encode_query(list(collection.queries)))
            if part == "train":
                mined, suspects = _mined(asked, documents, collection, how, how.margin)
                note = (
                    f"; {suspects:,} candidates were left alone, nearer to their query than its "
                    f"positive less {how.margin}"
                )
                records = (_record(collection, one) for one in mined)
            else:
                # Candidates as a search finds them: what is measured on is not made easier.
                found, _ = _mined(asked, documents, collection, how, -math.inf)
                records = _candidates(collection, found)
            with (making / f"{part}.jsonl").open("w", encoding="utf-8") as file:
                for record in records:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    number = sum(len(one.negatives) for one in mined)
    say(f"{len(mined):,} positives with {number:,} negatives{note}")


def _with_text(collection: Collection) -> tuple[Collection, int]:
    """The collection without its empty documents and those it lacks, and how many are empty: there
    is nothing to learn from them, though figures count them as judged."""
    kept = [i for i, text in enumerate(collection.documents) if text]
    number = {i: new for new, i in enumerate(kept)}
    relevance = [
        {number[i]: grade for i, grade in judged.items() if i in number}
        for judged in collection.relevance
    ]
    documents = tuple(collection.documents[i] for i in kept)
    itself = tuple(number.get(own, -1) for own in collection.itself)
    with_text = replace(
        collection, documents=documents, relevance=tuple(relevance), itself=itself, missing=()
    )
    return with_text, len(collection.documents) - len(kept)


def _mined(
    asked: Float[ndarray, "Q D"],
    documents: Float[ndarray, "N D"],
    collection: Collection,
    how: Division,
    margin: float,
) -> tuple[list[Mined], int]:
    return mining.hard_negatives(
        asked,
        documents,
        collection.relevance,
        number=how.negatives,
        depth=how.depth,
        skip=how.skip,
        margin=margin,
        itself=collection.itself,
        texts=collection.documents,
    )


def _record(collection: Collection, one: Mined) -> dict:
    """A positive with its negatives, as the tasks `retrieval` and `reranking` read it."""
    return {
        "query": collection.queries[one.query],
        "positive": collection.documents[one.positive],
        "negative": [collection.documents[i] for i in one.negatives],
        "score": list(one.scores),
    }


def _candidates(collection: Collection, mined: list[Mined]) -> Iterator[dict]:
    """A query with all of its positives and the nearest of the others."""
    for q, same in itertools.groupby(mined, key=lambda one: one.query):
        of_query = list(same)
        yield {
            "query": collection.queries[q],
            "positive": [collection.documents[one.positive] for one in of_query],
            "negative": [collection.documents[i] for i in of_query[0].negatives],
        }


def part_of(query: str, shares: tuple[float, ...]) -> str:
    """Which part a query belongs to, whatever others there are."""
    drawn = int.from_bytes(hashlib.sha256(query.encode()).digest()[:8], "big") / 2**64
    reached = 0.0
    for part, share in zip(PARTS, shares, strict=True):
        reached += share
        if drawn < reached:
            return part
    return PARTS[-1]


def _is_divided(source: Path) -> bool:
    return judgements(source, "train").is_file()


def _divide(source: Path, making: Path, how: Division) -> None:
    """The corpus, the queries and the judgements of every part."""
    split = "" if _is_divided(source) else how.split
    corpus, queries = (text_files(source, name, split) for name in ("corpus", "queries"))
    for there in (*corpus, *queries):
        copied = making / there.relative_to(source)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(there, copied)
    if _is_divided(source):
        shutil.copytree(source / "qrels", making / "qrels")
        return
    texts = dict(read_queries(queries))
    known = {name for name, _ in read_corpus(corpus)}
    divided: dict[str, list[str]] = {part: [] for part in PARTS}
    answered = set()
    for _, cells in judged(judgements(source, how.split)):
        # By its text, so that a query that stands there twice is in one part only.
        if cells[0] in texts:
            part = part_of(texts[cells[0]], how.shares)
            divided[part].append("\t".join(cells))
            if cells[1] in known and float(cells[2]) > 0:
                answered.add(part)
    (making / "qrels").mkdir()
    empty = next((part for part in PARTS if part not in answered), None)
    if empty is not None:
        raise UserError(
            f"Of the {len(texts):,} queries of {source} none with a judgement above 0 falls to "
            f"{empty}; give it a larger one of --shares, or more queries."
        )
    for part, rows in divided.items():
        text = "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n"
        (making / "qrels" / f"{part}.tsv").write_text(text, encoding="utf-8")
