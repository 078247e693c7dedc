"""Tagged sentences out of records that have them as text, not as lists: tables and files side by
side with the words in one column and the tags in another, and texts in which brackets tell the
spans, as MASSIVE's (FitzGerald et al. 2022, arXiv:2204.08582): `wake me up at [time : five am]`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from distilflax.errors import UserError
from distilflax.tasks import bio, named_files, records, tables, word_rows, written_lists
from distilflax.tasks.records import Faults, FaultyRecordError, Record, Table
from distilflax.tasks.sentences import Sentence, by_number, of_text
from distilflax.text.lines import whole

_OTHERWISE = "write words and tags with nothing but spaces between"
_BRACKETS = re.compile(r"\[([^\[\]:]*):([^\[\]]*)\]")


def is_table(path: Path, columns: Collection[str], comment: str = "") -> bool:
    """Whether a .tsv or .csv is a table, and not columns as CoNLL's: its first line names one of
    the columns, and is no comment (in a .tsv, that is, as a .csv has other columns than CoNLL's).

    Raises:
      UserError: an unreadable file.
    """
    if records.suffix(path) not in records.TABLES:
        return False
    first, delimiter = _first(path), tables.usual_delimiter(path)
    cells = {cell.strip(' "') for cell in first.split(delimiter)}
    is_comment = bool(comment) and delimiter == "\t" and first.startswith(comment)
    return not cells.isdisjoint(columns) and not is_comment


def has_commas(path: Path, comment: str = "") -> bool:
    """Whether the first line of a .csv has commas, and no tabs, as columns of CoNLL's have; of a
    comment nothing is said.

    Raises:
      UserError: an unreadable file.
    """
    if records.suffix(path) != ".csv":
        return False
    first = _first(path)
    return "," in first and "\t" not in first and not (comment and first.startswith(comment))


def _first(path: Path) -> str:
    return next((line for _, line in records.lines(path) if line.strip()), "")


def read(
    path: Path,
    faults: Faults,
    table: Table,
    *,
    words: str,
    tags: str,
    tag_names: Sequence[str] = (),
    labelled: bool,
) -> Iterator[Sentence]:
    """Of the columns `words` and `tags`, in which spaces part one from the next, or which hold
    lists that are written as text; `tag_names` where tags are numbers. A table of one word in every
    row is noted, but refused where it is to have tags: its rows are likely words, and not texts.

    Raises:
      UserError: as `records.read` does, another number of tags than of words (which `faults` may
        count instead), or, but for files side by side, a labelled table of one word in every row.
    """
    number = longest = 0
    for record in records.read(path, faults, table):
        try:
            tokens = words_of(record, words)
            given = _tags(record, tags) if labelled else None
            if given and tag_names:
                given = by_number(given, f"{record.place}: {tags!r}", tag_names)
        except FaultyRecordError as fault:
            faults.add(str(fault))
            continue
        if not tokens:
            faults.add(f"{record.place} has no words; leave the line out.")
        elif given is not None and len(given) != len(tokens):
            faults.add(
                f"{record.place} has {len(given)} tags for {len(tokens)} words; give one for each."
            )
        else:
            number, longest = number + 1, max(longest, len(tokens))
            yield Sentence(record.place, tokens, given, classes=tuple(tag_names))
    if number > 1 and longest == 1 and not named_files.are_beside(path):
        what = word_rows.of_one_word(path, word_rows.are_parted(path, table))
        if labelled:
            raise UserError(f"{what}.")
        faults.note(what)


def words_of(record: Record, column: str) -> tuple[str, ...]:
    """The words of a cell, in which a bracket may be a word; a quote after it begins a list, or a
    quotation."""
    written = records.text(record, column, "words").strip(" ")
    if not written_lists.is_written(written) or written[1] not in "'\"":
        return _parted(written)
    try:
        return _list(record, column, written)
    except FaultyRecordError:
        if any(mark in written for mark in (f"{written[1]},", f"{written[1]} {written[1]}", "...")):
            raise
        return _parted(written)


def _tags(record: Record, column: str) -> tuple[str, ...]:
    """A bracket may be a tag where a space follows, and else begins a list, as it may then."""
    written = records.text(record, column, "tags").strip(" ")
    if not written_lists.is_written(written):
        return _parted(written)
    try:
        return _list(record, column, written)
    except FaultyRecordError:
        # `[CLS] O O [SEP]` has a tag for each word, too.
        if written[1] == " " or "]" in written[1:-1]:
            return _parted(written)
        raise


def _list(record: Record, column: str, written: str) -> tuple[str, ...]:
    found = written_lists.read(written, f"{record.place}: {column!r}", _OTHERWISE)
    if not all(type(item) in (str, int) for item in found):
        raise FaultyRecordError(
            f"{record.place}: {column!r} is {written:.40}, not a list of texts; mend it."
        )
    return tuple(whole(str(item)) for item in found)


def _parted(text: str) -> tuple[str, ...]:
    """By spaces alone: words themselves may hold other white space."""
    return tuple(filter(None, text.split(" ")))


def read_bracketed(
    path: Path, faults: Faults, table: Table, *, column: str, labelled: bool
) -> Iterator[Sentence]:
    """Of the texts in `column`: their words, divided as those of a text that is predicted on (a
    bracket parts words too), and BIO tags.

    Raises:
      UserError: as `records.read` does, or a bracket that holds no span (which `faults` may count
        instead).
    """
    for record in records.read(path, faults, table):
        try:
            text = records.text(record, column, "bracketed")
            words, tags = _of_brackets(record.place, text)
        except FaultyRecordError as fault:
            faults.add(str(fault))
            continue
        yield Sentence(record.place, words, tags if labelled else None)


def _of_brackets(place: str, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    words, tags, at = [], [], 0
    for bracket in _BRACKETS.finditer(text):
        outside, kind = of_text(text[at : bracket.start()]).words, bracket[1].strip()
        inside = of_text(bracket[2]).words
        if not kind or not inside:
            raise FaultyRecordError(f"{place}: {bracket[0]!r:.40} has no type or no word; mend it.")
        words += [*outside, *inside]
        tags += [bio.OUTSIDE] * len(outside) + [f"B-{kind}"] + [f"I-{kind}"] * (len(inside) - 1)
        at = bracket.end()
    rest = of_text(text[at:]).words
    words, tags = (*words, *rest), (*tags, *[bio.OUTSIDE] * len(rest))
    if not words or {"[", "]"} & {*"".join(words)}:
        what = "a bracket that is none of `[type : words]`" if words else "no words"
        raise FaultyRecordError(f"{place} has {what} ({text!r:.60}); mend it, or leave it out.")
    return words, tags
