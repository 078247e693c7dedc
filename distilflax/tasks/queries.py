"""Queries and what answers them, out of files: JSON lines, CSV and TSV, and BEIR folders.

A record has a query, one or more positives (texts that answer it), any number of negatives and, if
somebody scored them, a score for each text, the positive's first; or one text and a score, 0 if it
does not answer (WikiQA); or several texts with a grade each, some of them 0 (labelled lists of
sentence-transformers); or, in place of positives and negatives, two texts and how alike they are.
Of a BEIR folder a file of judgements is named, `qrels/train.tsv` or `.parquet`; corpus and queries
lie one folder above (`search/collection.py`).
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilflax.errors import UserError, choose_from
from distilflax.search.collection import JUDGED, read_corpus, read_judged
from distilflax.tasks import records
from distilflax.tasks.records import Faults, FaultyRecordError, Record, Table
from distilflax.text.lines import name_below

# The column that may be missing, under this name alone: another name was given, perhaps mistyped.
_OPTIONAL = "negative"


class Corpus:
    """The texts that queries of one folder are put to."""

    def __init__(self, texts: tuple[str, ...]):
        self.texts = texts

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode("utf-8", "replace") + b"\0")
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Corpus({len(self.texts)} texts, {self._digest})"


class Query(NamedTuple):
    """A query, its own texts with their grades (0 is a negative) and, of a teacher or of people,
    scores; the corpus that it is put to, where that is more than the texts of its file; the text
    there that it is `itself`, where its folder says so (`Collection.itself`); and the documents
    that were judged and that its folder lacks (`Collection.missing`), by id, with their grades."""

    place: str
    text: str
    documents: tuple[str, ...]
    grades: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    corpus: Corpus | None = None
    itself: str = ""
    missing: tuple[tuple[str, float], ...] = ()


class Columns(NamedTuple):
    """How columns are called, several negative ones with commas between; and how tables are
    written (`records.Table`)."""

    query: str
    positive: str
    negative: str
    score: str
    header: tuple[str, ...]
    delimiter: str
    quoting: str

    @property
    def negatives(self) -> list[str]:
        return [name for name in map(str.strip, self.negative.split(",")) if name]

    @property
    def table(self) -> Table:
        return Table(self.header, self.delimiter, "config.options.", self.quoting)

    @classmethod
    def of(cls, task: Any) -> "Columns":
        """As the options of a task name them."""
        return cls(*(getattr(task, name) for name in cls._fields))


def read(
    paths: Sequence[Path], columns: Columns, faults: Faults, *, scored: bool, pairs: bool
) -> list[Query]:
    """The queries of several files.

    With `scored` scores are read where there are some: what is measured on needs none. With `pairs`
    a record is two texts and their score. Judgements are known by their folder, `qrels`, or by
    their columns, query-id and corpus-id.

    Raises:
      UserError: as `records.read` and `read_judged` do, and a column of negatives that no record
        has, unless its name is the default one; single records go to `faults`.
    """
    seen: dict[str, None] = {}
    found = [q for path in paths for q in _read(path, columns, faults, seen, scored, pairs)]
    unread = [name for name in seen if name.startswith("neg") and name not in columns]
    if unread and columns.negatives == [_OPTIONAL] and _OPTIONAL not in seen and not pairs:
        faults.note(
            f"{', '.join(unread):.200}: not read; if texts that do not answer are in there, name "
            "what they stand in as config.options.negative"
        )
    missing = [name for name in columns.negatives if name not in seen and name != _OPTIONAL]
    if seen and missing and not pairs:
        raise UserError(
            f"{', '.join(map(str, paths)):.200} has no column {missing[0]!r} "
            f"(config.options.negative); {choose_from(missing[0], seen)} Where there are no "
            "negatives, leave the column empty."
        )
    return found


def _read(
    path: Path, columns: Columns, faults: Faults, seen: dict[str, None], scored: bool, pairs: bool
) -> list[Query]:
    """Those of one file, whose columns are put into `seen`."""
    if path.parent.name == "qrels":
        return _of_beir(path, faults, columns, pairs)
    found = []
    for record in records.read(path, faults, columns.table):
        if _is_judgement(record):
            return _of_beir(path, faults, columns, pairs)
        seen |= dict.fromkeys(record.values)
        try:
            found.append(_of_record(record, columns, scored, pairs))
        except FaultyRecordError as fault:
            faults.add(str(fault))
    return found


def _is_judgement(record: Record) -> bool:
    return {*record.values} - {"score"} == {*JUDGED}


def read_alone(path: Path, columns: Columns, faults: Faults) -> list[Query]:
    """Texts to be searched that nobody has said anything of: a BEIR folder's corpus.jsonl or
    corpus.parquet, or a file of Parquet in its folder corpus; or the column of positives of another
    file. Each is a query without documents.

    Raises:
      UserError: as `records.read` and `read_corpus` do, and judgements, which are no texts.
    """
    shard = path.parent.name == "corpus" and path.suffix == ".parquet"
    if shard or name_below(path).name in ("corpus.jsonl", "corpus.parquet"):
        return [Query(str(path), text, ()) for _, text in read_corpus([path], faults.add)]
    found = []
    for record in records.read(path, faults, columns.table):
        if _is_judgement(record):
            raise UserError(
                f"{path} are judgements, which have no texts; give their corpus.jsonl, or the "
                "files of their folder corpus."
            )
        try:
            texts = _texts(record, columns.positive, "positive")
            found += [Query(record.place, text, ()) for text in texts]
        except FaultyRecordError as fault:
            faults.add(str(fault))
    return found


def _of_beir(path: Path, faults: Faults, columns: Columns, pairs: bool) -> list[Query]:
    if pairs:
        raise UserError(
            f"{path} are judgements, and pairs need scores; give a table with the column "
            f"{columns.score!r}, or another config.options.loss_name."
        )
    collection = read_judged(path, faults.add)
    for note in collection.notes:
        faults.note(f"{path}: {note}")
    corpus, there = Corpus(collection.documents), len(collection.documents)
    empty = {i for q in collection.relevance for i in q if i < there and not corpus.texts[i]}
    if empty:
        faults.note(f"{path}: {len(empty):,} judged documents are empty, and teach nothing")
    return [
        Query(
            f"{path} query {query[:40]!r}",
            query,
            tuple(corpus.texts[i] for i in grades if i < there),
            tuple(grade for i, grade in grades.items() if i < there),
            corpus=corpus,
            itself=corpus.texts[own] if own >= 0 else "",
            missing=tuple(
                (collection.missing[i - there], grade) for i, grade in grades.items() if i >= there
            ),
        )
        for query, grades, own in zip(
            collection.queries, collection.relevance, collection.itself, strict=True
        )
    ]


def _of_record(record: Record, columns: Columns, scored: bool, pairs: bool) -> Query:
    query = _texts(record, columns.query, "query")
    positives = _texts(record, columns.positive, "positive")
    if len(query) != 1:
        raise FaultyRecordError(f"{record.place}: {columns.query!r} is a list; give one text.")
    if pairs and len(positives) != 1:
        raise FaultyRecordError(
            f"{record.place}: {columns.positive!r} has {len(positives)} texts, and a pair has one "
            "beside its query; give each of them a record of its own."
        )
    negatives = [
        text
        for name in columns.negatives
        if not pairs and name in record.values
        for text in _texts(record, name, "negative", may_lack=True)
    ]
    documents = (*positives, *negatives)
    alone = len(documents) == 1 and not pairs and not scored
    if alone and not _answers(record, columns.score):
        return Query(record.place, query[0], documents, (0.0,))
    wanted = pairs or (scored and columns.score in record.values)
    scores = _scores(record, columns.score, len(positives), len(negatives)) if wanted else ()
    told = () if pairs or scored or negatives else _labels(record, columns.score, len(positives))
    grades = told or (1.0,) * len(positives) + (0.0,) * len(negatives)
    return Query(record.place, query[0], documents, () if pairs else grades, scores)


def _texts(record: Record, name: str, option: str, *, may_lack: bool = False) -> list[str]:
    value: Any = records.column(record, name, option)
    if may_lack and value in (None, "", []):
        return []
    values = value if isinstance(value, list) else [value]
    texts = []
    for part in values:
        plain = Record(record.place, {name: _passage(record, name, part)})
        texts.append(records.text(plain, name, option).strip())
    if not texts or not all(texts):
        raise FaultyRecordError(f"{record.place}: {name!r} is empty; give it some text.")
    return texts


def _passage(record: Record, name: str, value: Any) -> Any:
    """Title and text of an object (Tevatron, Mr.TyDi, DPR), joined as `read_corpus` does; anything
    else as it is."""
    if not isinstance(value, dict):
        return value
    title, text = value.get("title") or "", value.get("text")
    if not (isinstance(title, str) and isinstance(text, str)):
        raise FaultyRecordError(
            f"{record.place}: {name!r} is an object ({', '.join(value):.80}) whose 'text' or "
            "'title' is no text; give it a 'text'."
        )
    return f"{title} {text}"


def _scores(record: Record, name: str, positives: int, negatives: int) -> tuple[float, ...]:
    value = records.column(record, name, "score")
    given = value if isinstance(value, list) else [value]
    try:
        scores = [float(part) for part in given]
    except (TypeError, ValueError, OverflowError):
        scores = [float("nan")]
    if not np.isfinite(scores).all():
        raise FaultyRecordError(
            f"{record.place}: {name!r} is {value!r:.40}, not a number; mend it."
        )
    if len(scores) == positives == negatives == 1:
        # One number for a triple is its margin, as in the files of sentence-transformers.
        scores = [scores[0], 0.0]
    if len(scores) != positives + negatives:
        raise FaultyRecordError(
            f"{record.place} has {len(scores)} scores for {positives + negatives} texts; give one "
            "for each, that of the positive first."
        )
    return tuple(scores)


def _answers(record: Record, name: str) -> bool:
    """Whether the only text of a record answers its query: not where its score is 0 or less. A list
    is of a teacher's scores, as `experiments.mine` writes them, and says nothing of that."""
    value, classes = record.values.get(name), record.classes.get(name, ())
    if isinstance(value, list) or (value in (None, "") and not classes):
        return True
    if value in classes:
        value = classes.index(value)
    return _scores(Record(record.place, {name: value}), name, 1, 0)[0] > 0


def _labels(record: Record, name: str, texts: int) -> tuple[float, ...]:
    """The grades of a record's texts where it lists one for each and some are 0 itself; of a list
    without any, such as a teacher's scores, nothing."""
    value = record.values.get(name)
    listed = texts > 1 and isinstance(value, list) and len(value) == texts
    scores = _scores(record, name, texts, 0) if listed else ()
    if 0.0 in scores and max(scores) <= 0:
        raise FaultyRecordError(f"{record.place}: {name!r} has no number above 0; give one.")
    return tuple(max(score, 0.0) for score in scores) if 0.0 in scores else ()


def check_scored(queries: Sequence[Query], column: str) -> None:
    """
    Raises:
      UserError: a query to be learned from has no scores.
    """
    without = next((q for q in queries if not q.scores), None)
    if without is not None:
        raise UserError(
            f"{without.place} has no scores (column {column!r}, config.options.score), which this "
            "config.options.loss_name learns from; give some, or take another loss."
        )
