"""Questions about a text out of SQuAD files, 1.1 and 2.0, out of flat records of the same, and out
of MRQA's JSON lines, a text with its questions in each, or its flat records, as the hub has them.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822); Fisch et al. 2019
(arXiv:1910.09753); Park et al. 2021 (KLUE, arXiv:2105.09680). Every answer is checked against the
characters that its offset points at.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilflax.errors import UserError
from distilflax.tasks import named_files, records
from distilflax.tasks.records import Faults, FaultyRecordError
from distilflax.tasks.squad_score import is_alike
from distilflax.text.lines import whole


class Answer(NamedTuple):
    """A text, and where in the context it begins, in characters."""

    start: int
    text: str


class Question(NamedTuple):
    """`answers` is empty where the text has none, and None where nobody has said."""

    place: str
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None = None


def read(path: Path, faults: Faults, *, labelled: bool = True) -> Iterator[Question]:
    """The questions of one file, in order.

    Raises:
      UserError: a file that cannot be read or holds no question; and, unless `faults` counts them,
        an empty question or context, and an offset that does not point at its answer.
    """
    empty = True
    for name, question, context, answers in _entries(path, faults, labelled):
        empty = False
        place = f"{path} question {name!r}"
        if fault := _fault(place, question, context):
            faults.add(fault)
            continue
        question, context = whole(question), whole(context)
        try:
            found = _answers(place, context, answers) if labelled else None
        except _FaultyAnswerError as error:
            faults.add(str(error))
            continue
        yield Question(place, name, question, context, found)
    if empty and not faults.count:
        raise UserError(f"{path} has no questions; give a file in the format of SQuAD.")


def _fault(place: str, question: Any, context: Any) -> str:
    for what, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            return f"{place}: the {what} is not text but {text!r:.40}; mend it."
        if not text.strip():
            return f"{place}: the {what} is empty; give it one, or leave the entry out."
    return ""


class _FaultyAnswerError(Exception):
    """An answer that cannot be believed; a fault of one question."""


def _answers(place: str, context: str, answers: Any) -> tuple[Answer, ...]:
    if answers is None:
        raise _FaultyAnswerError(
            f"{place} has no `answers`; give a list of them, empty where the text has none."
        )
    found = []
    for answer in _listed(place, answers):
        if isinstance(answer, dict) and "char_spans" in answer:
            found += _detected(place, context, answer)
            continue
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        text = answer.get("text") if isinstance(answer, dict) else None
        if type(start) is not int or not isinstance(text, str) or not text.strip():
            raise _FaultyAnswerError(
                f"{place}: an answer should be a text and a whole number answer_start, not "
                f"{answer!r:.80}; mend it."
            )
        text = whole(text)
        there = context[start : start + len(text)] if start >= 0 else ""
        if there != text:
            raise _FaultyAnswerError(
                f"{place}: answer_start {start} points at {there!r:.80} but the answer is "
                f"{text!r:.80}; mend the offset."
            )
        found.append(Answer(start, text))
    return tuple(found)


def _detected(place: str, context: str, answer: dict) -> list[Answer]:
    """MRQA's answer at each place where it was found, first character and last: as it stands there,
    since its `text` may be a normalised one. MRQA's own script also counts `answers` that stand
    nowhere in the text; figures here do not."""
    text, spans = answer.get("text"), answer["char_spans"]
    listed = isinstance(spans, list) and spans and all(map(_is_span, spans))
    if not isinstance(text, str) or not listed:
        raise _FaultyAnswerError(
            f"{place}: an answer should be a text and pairs of whole numbers char_spans, not "
            f"{answer!r:.80}; mend it."
        )
    found = []
    for start, end in spans:
        there = context[start : end + 1] if start >= 0 else ""
        if not there.strip() or not is_alike(there, text):
            raise _FaultyAnswerError(
                f"{place}: char_spans {start} to {end} point at {there!r:.80} but the answer is "
                f"{text!r:.80}; mend them."
            )
        found.append(Answer(start, there))
    return found


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(at) is int for at in value)


def _entries(path: Path, faults: Faults, labelled: bool) -> Iterator[tuple[str, Any, Any, Any]]:
    """(id, question, context, answers) as they stand in the file; no answers are None, as are all
    where they are not asked for."""
    if named_files.are_beside(path):
        raise UserError(f"{path}: questions are read out of one file each; put a comma for the +.")
    nested = _nested(path) if records.suffix(path) == ".json" else None
    if nested is None or _is_flat(nested):
        for record in records.read(path, faults) if nested is None else _flat(path, nested):
            if record.values.keys() == {"header"}:  # MRQA's first line
                continue
            if "qas" in record.values:
                yield from _of_paragraph(record.place, record.values, faults, labelled)
                continue
            try:
                name, question, context = (
                    records.column(record, name, name, flag="a record of SQuAD has one")
                    for name in (_name_of_id(record.values), "question", "context")
                )
                answers = _of_entry(record.place, record.values) if labelled else None
            except FaultyRecordError as fault:
                faults.add(str(fault))
                continue
            yield str(name), question, context, answers
        return
    for paragraph in _paragraphs(path, nested):
        yield from _of_paragraph(str(path), paragraph, faults, labelled)


def _of_paragraph(
    place: str, paragraph: dict, faults: Faults, labelled: bool
) -> Iterator[tuple[str, Any, Any, Any]]:
    questions = paragraph.get("qas")
    if not isinstance(questions, list):
        raise UserError(f"{place}: a paragraph has no list `qas`; give a file of SQuAD's format.")
    for entry in questions:
        if not isinstance(entry, dict):
            faults.add(f"{place}: a question is not an object but {entry!r:.80}; mend it.")
            continue
        name = entry.get("qid", entry.get(_name_of_id(entry)))
        if name is None or "question" not in entry:
            faults.add(
                f"{place}: a question lacks id or question (there is: {', '.join(entry):.200}); "
                "give it both."
            )
            continue
        try:
            answers = _of_entry(f"{place} question {name}", entry) if labelled else None
        except FaultyRecordError as fault:
            faults.add(str(fault))
            continue
        yield str(name), entry["question"], paragraph.get("context"), answers


def _name_of_id(entry: dict) -> str:
    """What a question's id is called: KLUE's is `guid`, MRQA's `qid`."""
    return next((name for name in ("id", "guid", "qid") if name in entry), "id")


def is_mrqa(path: Path) -> bool:
    """Whether the lines of a file are texts with their questions, and not a question each."""
    first = next((line for _, line in records.lines(path) if line.strip()), "")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (value.keys() == {"header"} or "qas" in value)


_IMPOSSIBLE = ("true", "1")


def _is_flat(content: dict) -> bool:
    """Whether `data` holds questions with their contexts, as for `load_dataset(field="data")`."""
    found = content.get("data")
    return isinstance(found, list) and any("question" in one for one in found if type(one) is dict)


def _flat(path: Path, content: dict) -> Iterator[records.Record]:
    for number, entry in enumerate(content["data"], 1):
        yield records.Record(f"{path} entry {number}", entry if isinstance(entry, dict) else {})


def _of_entry(place: str, entry: dict) -> Any:
    """Its answers: in 2.0 what cannot be answered may still list plausible ones, and of MRQA's some
    have no place in the text."""
    given = entry.get("is_impossible")
    told = str(given).lower().removesuffix(".0")
    if told not in (*_IMPOSSIBLE, "none", "", "false", "0"):
        raise FaultyRecordError(
            f"{place}: `is_impossible` is {given!r:.40}, neither true nor false; mend it."
        )
    if told in _IMPOSSIBLE:
        return []
    detected = entry.get("detected_answers")
    if detected == [] or (isinstance(detected, dict) and not any(detected.values())):
        raise FaultyRecordError(
            f"{place}: none of its answers was detected in the text; leave the question out, or "
            "set `is_impossible` if the text has none."
        )
    return entry.get("detected_answers", entry.get("answers"))


def _listed(place: str, answers: Any) -> Sequence:
    """A list of answers; `datasets` turns it into an object of lists, MRQA's spans too."""
    if not isinstance(answers, dict):
        return answers if isinstance(answers, list) else [answers]
    of_mrqa = "char_spans" in answers
    what, where = ("detected_answers", "char_spans") if of_mrqa else ("answers", "answer_start")
    texts, places = answers.get("text"), answers.get(where)
    if not isinstance(texts, list) or not isinstance(places, list) or len(texts) != len(places):
        raise _FaultyAnswerError(
            f"{place}: `{what}` should have as many of `text` as of `{where}`, and is "
            f"{answers!r:.80}; mend it."
        )
    places = map(_pairs, places) if of_mrqa else places
    return [{"text": text, where: at} for text, at in zip(texts, places, strict=True)]


def _pairs(spans: Any) -> Any:
    """Spans whose starts and ends stand in lists of their own, as pairs; others as they are."""
    starts, ends = map(spans.get, ("start", "end")) if isinstance(spans, dict) else (None, None)
    if not isinstance(starts, list) or not isinstance(ends, list) or len(starts) != len(ends):
        return spans
    return [list(pair) for pair in zip(starts, ends, strict=True)]


def _nested(path: Path) -> dict | None:
    """What a .json file of SQuAD's format holds; None of one that holds records, a list of them or
    one a line, as `datasets` writes it."""
    rows = [line for _, line in records.lines(path, records.LONGEST_DOCUMENT)]
    try:
        content = json.loads("\n".join(rows))
    except (ValueError, RecursionError) as error:
        if _is_record(next((row for row in rows if row.strip()), "")):
            return None
        raise UserError(f"{path} is not JSON ({error!s:.80}); copy it again.") from None
    if isinstance(content, list) or (isinstance(content, dict) and "question" in content):
        return None
    return content if isinstance(content, dict) else {}


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _paragraphs(path: Path, content: dict) -> Iterator[dict]:
    articles = content.get("data")
    if not isinstance(articles, list):
        raise UserError(
            f"{path} has no list `data` at its top (there is: {', '.join(content):.80}); give a "
            "file in the format of SQuAD."
        )
    for article in articles:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list) or not all(isinstance(p, dict) for p in paragraphs):
            raise UserError(f"{path}: an article has no list `paragraphs` of objects; mend it.")
        yield from paragraphs
