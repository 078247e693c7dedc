"""Which texts answer which queries, where records of several say so: what is measured on."""

from collections.abc import Mapping, Sequence

from distilflax.errors import UserError
from distilflax.tasks.faults import Faults
from distilflax.tasks.queries import Query


def labelled(found: Sequence[Query], faults: Faults, column: str) -> list[Query]:
    """Queries that are measured on, `merged`. Where a loss learns from a teacher's scores,
    nothing is learned here: scores of a record without negatives are labels if one of them is 0,
    which says "does not answer"."""

    def graded(q: Query) -> Query:
        are_labels = q.grades and min(q.grades) > 0 and 0.0 in q.scores
        return q._replace(grades=tuple(max(s, 0.0) for s in q.scores)) if are_labels else q

    return merged(list(map(graded, found)), faults, column)


def merged(found: Sequence[Query], faults: Faults, column: str) -> list[Query]:
    """The same, or, where records of one text have 0 for their score, one query for all records of
    a query: what does not answer it is a negative of what does. A query that nothing answers is
    left out, as those of a BEIR folder are.

    Raises:
      UserError: nothing is left.
    """
    wrong = [q for q in found if q.corpus is None and max(q.grades, default=1.0) <= 0]
    if not wrong:
        return list(found)
    own: dict[str, dict[str, float]] = {}
    for q in found:
        if q.corpus is None:
            grades = own.setdefault(q.text, {})
            for text, grade in zip(q.documents, q.grades, strict=True):
                grades[text] = max(grade, grades.get(text, 0.0))
    answered = {text for text, grades in own.items() if max(grades.values()) > 0}
    kept = []
    for q in found:
        if q.corpus is not None:
            kept.append(q)
        elif q.text in answered:
            answered.remove(q.text)
            grades = own[q.text]
            documents, values = tuple(grades), tuple(grades.values())
            kept.append(q._replace(documents=documents, grades=values, scores=()))
    if not kept:
        raise UserError(
            f"{wrong[0].place} and all others have a score of 0 or less (column {column!r}, "
            "config.options.score), so that nothing answers a query; give some above 0."
        )
    faults.note(f"{len(wrong):,} records have a {column!r} of 0 or less, and so are negatives")
    if unanswered := len(own) - sum(q.corpus is None for q in kept):
        faults.note(
            f"{unanswered:,} queries have no text with a {column!r} above 0 and were left out, as "
            "trec_eval does"
        )
    return kept


def corpus_of(
    queries: Sequence[Query],
) -> tuple[list[str], dict[str, Mapping[int, float]], dict[str, str]]:
    """Every text that is searched, once; by query which of them were judged, and how; and by query
    the one that it is itself, if there is one and that was not judged.

    A text that stands twice is one; of a query that stands twice the judgements are put together.
    What no folder says to be a query itself is what has its very text. Judged documents that are
    missing have the indices behind those of the texts.

    Raises:
      UserError: queries of several corpora, each of which would be put to the texts of all.
    """
    number: dict[str, int] = {}
    # By what is in them: judgements in several files of one folder have one corpus.
    asked = {repr(q.corpus): q for q in queries if q.corpus is not None}
    if len(asked) > 1:
        one, other, *_ = asked.values()
        raise UserError(
            f"{one.place} and {other.place} are of different corpora, and what is measured is the "
            "search of one; give one folder's judgements for dev or test (several are measured "
            "apart by experiments.evaluate, with --beir for each)."
        )
    for q in asked.values():
        for text in q.corpus.texts:
            number.setdefault(text, len(number))
    relevance: dict[str, dict[int, float]] = {}
    own: dict[str, str] = {}
    for query in queries:
        own[query.text] = query.itself or own.get(query.text, query.text)
        judged = relevance.setdefault(query.text, {})
        for text, grade in zip(query.documents, query.grades, strict=True):
            index = number.setdefault(text, len(number))
            judged[index] = max(grade, judged.get(index, 0.0))
    missing: dict[str, int] = {}
    for query in queries:
        for name, grade in query.missing:
            index = missing.setdefault(name, len(number) + len(missing))
            judged = relevance[query.text]
            judged[index] = max(grade, judged.get(index, 0.0))
    itself = {
        text: same
        for text, same in own.items()
        if same in number and number[same] not in relevance[text]
    }
    return list(number), relevance, itself
