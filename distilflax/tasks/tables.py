"""Tables as rows of cells, each with the words for pointing at it: TSV, CSV, files side by side,
and lines of a label and a text. Quotes in a TSV are text, as in GLUE's files, unless asked for.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from distilflax.errors import UserError
from distilflax.tasks import named_files
from distilflax.tasks.faults import Faults
from distilflax.text import lines as text_lines

T = TypeVar("T")
QUOTING = ("auto", "none", "csv")
REST = "..."
_TABS = ("tab", "\t", "\\t")
_LABEL = "__label__"
_LABELS = re.compile(rf"(?<!\S){_LABEL}(\S*)\s*")


class Table(NamedTuple):
    """How tables are written: `header` names the columns where no first line does (and the values
    of JSON lines that are lists, as sentence-transformers' own data is), one of them perhaps `...`
    for any number of columns, none too, as some lines have more; `delimiter` makes a table of any
    file that is not JSON, Parquet or Arrow, whatever its suffix: `tab`; one character, then
    with CSV's quotes; `space`, of which the last column keeps its own (TREC's questions, after
    their label); or `__label__`, with which fastText begins each of a line's labels: those are the
    column `label` and the line without them is `text`, unless `header` has other names. `flags` is
    what stands before these names where a user gives them. With `quoting` of `none` a quote is a
    letter like any other, whatever the delimiter; with `csv` it is CSV's, between tabs too (as in
    GoEmotions); `auto` has it a letter between tabs alone. With `blank` a blank line is a row of
    empty cells."""

    header: tuple[str, ...] = ()
    delimiter: str = ""
    flags: str = ""
    quoting: str = "auto"
    blank: bool = False


def lines(path: Path, longest: int = text_lines.LONGEST) -> Iterator[tuple[str, str]]:
    """`text.lines.read` of a file that is to hold something.

    Raises:
      UserError: as that does, a folder, and nothing in it at all.
    """
    named_files.check_no_folder(path)
    empty = True
    for line in text_lines.read(path, longest):
        empty = False
        yield line
    if empty:
        raise UserError(f"{path} is empty; give a file with at least one record.")


def rows(path: Path, faults: Faults, table: Table) -> Iterator[tuple[str, list]]:
    """(where it begins, the cells) of each row that holds anything, that of the names too: of a
    .tsv with tabs between, of other files with commas, unless there is a delimiter.

    Raises:
      UserError: an unreadable file, a delimiter that cannot be, or not with such quotes, no names
        where they must be given, or a row that cannot be told from the next (which `faults` may
        count instead, but for a quote that is left open to the end).
    """
    delimiter = table.delimiter or usual_delimiter(path)
    quoted = table.quoting == "csv"
    if named_files.are_beside(path) or delimiter in ("space", _LABEL):
        check_unquoted(path, table)
    if named_files.are_beside(path):
        found = _beside(path, table)
    elif delimiter in _TABS:
        found = _csv(path, faults, "\t") if quoted else _unquoted(path, "\t")
    elif delimiter == "space":
        found = _spaced(path, table)
    elif delimiter == _LABEL:
        found = _labelled(path, table)
    elif len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(
            f"{table.flags}delimiter is {delimiter!r:.40}; give tab, space, {_LABEL}, or one "
            "character."
        )
    elif table.quoting == "none":
        found = _unquoted(path, delimiter)
    else:
        found = _csv(path, faults, delimiter)
    yield from _padded(found, table) if table.blank else filled(path, found, faults)


def check_unquoted(path: Path, table: Table) -> None:
    """Of lines that have no quotes.

    Raises:
      UserError: CSV's are asked for.
    """
    if table.quoting == "csv":
        raise UserError(
            f"{path}: {table.flags}quoting=csv is for a table whose cells are parted by tabs or by "
            f"one character; leave {table.flags}quoting out."
        )


def _padded(rows: Iterable[tuple[str, list]], table: Table) -> Iterator[tuple[str, list]]:
    """With as many empty cells in a blank row as there are names; those before the first row are
    left out."""
    width = 0
    for place, row in rows:
        is_blank = not "".join(map(str, row)).strip()
        if not is_blank:
            width = width or len([name for name in table.header or row if name != REST])
            yield place, row
        elif width:
            yield place, [""] * width


def filled(path: Path, rows: Iterable[tuple[str, T]], faults: Faults) -> Iterator[tuple[str, T]]:
    """The rows that hold anything; how many between them hold nothing is noted, but for those at
    the end: an editor leaves these, and a blank line in the middle may be a text that was lost."""
    blank = waiting = 0
    for place, row in rows:
        if not row:
            waiting += 1
            continue
        blank, waiting = blank + waiting, 0
        yield place, row
    if blank:
        faults.note(f"{blank:,} blank lines of {path} were passed over")


def usual_delimiter(path: Path) -> str:
    """What stands between the cells of a table, by its name."""
    return "\t" if text_lines.name_below(path).suffix == ".tsv" else ","


def _unquoted(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    for place, line in lines(path):
        yield place, line.split(delimiter) if line else []


def _spaced(path: Path, table: Table) -> Iterator[tuple[str, list[str]]]:
    _check_named(path, table)
    for place, line in lines(path):
        yield place, line.split(" ", len(table.header) - 1) if line.strip() else []


def _labelled(path: Path, table: Table) -> Iterator[tuple[str, list]]:
    """As fastText does, which takes for a label what begins so wherever it stands in a line: left
    in the text it would tell the answer. The labels are a tuple."""
    if not table.header:
        yield str(path), ["label", "text"]
    for place, line in lines(path):
        labels = tuple(_LABELS.findall(line))
        yield place, [labels, _LABELS.sub("", line).strip()] if line.strip() else []


def _csv(path: Path, faults: Faults, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """(where it begins, the cells) of each row: in quotes it may go on over lines, and a quote that
    is left open takes all lines up to the next one, each of which is counted."""
    # The standard limit of 128 KiB a field is shorter than some documents.
    csv.field_size_limit(2**31 - 1)
    written = (line + "\n" for _, line in lines(path))
    reader = csv.reader(written, strict=True, delimiter=delimiter)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = _fault(path, first, reader.line_num, str(error))
            if "end of data" in str(error):  # which swallowed all lines from there on
                raise UserError(what) from None
            faults.add(what, reader.line_num + 1 - first)
            continue
        if row is None:
            return
        yield f"{path} line {first}", row


def _fault(path: Path, first: int, last: int, error: str) -> str:
    place = f"{path} line {first}"
    if first < last:
        place = f"{path} lines {first} to {last} ({last + 1 - first:,} lines)"
    if error.startswith("new-line character"):
        return f"{place}: a cell holds a carriage return; put the cell in quotes."
    return f"{place}: {error}; is a quote left open, or not doubled?"


def _beside(path: Path, table: Table) -> Iterator[tuple[str, list[str]]]:
    """Rows of what stands in one line of all files, tabs parting the cells of each.

    A blank line is an empty cell, so that no line ever stands beside another one's; of lines that
    are all blank the row is empty. What an editor leaves at the end of some files is no line.
    """
    if table.delimiter not in ("", *_TABS):
        raise UserError(
            f"{path}: files side by side have tabs between their columns; leave out "
            f"{table.flags}delimiter."
        )
    _check_named(path, table)
    counted = [_count(part) for part in named_files.beside(path)]
    short = min(counted, key=lambda one: one.lines)
    long = max(counted, key=lambda one: one.filled)
    if long.filled > short.lines:
        raise UserError(
            f"{short.path} has {short.lines:,} lines and {long.path.name}, which stands beside it, "
            f"has {long.lines:,}; give files in which line i of each is of record i."
        )
    texts = ((line for _, line in text_lines.read(one.path)) for one in counted)
    for number, row in enumerate(zip(*texts, strict=False), 1):
        cells = [cell for line in row for cell in line.split("\t")]
        yield f"{path} line {number}", cells if any(map(str.strip, row)) else []


def _check_named(path: Path, table: Table) -> None:
    if not table.header:
        raise UserError(
            f"{path} has no first line of names; name its columns, in their order, as "
            f"{table.flags}header."
        )


class _Counted(NamedTuple):
    """How many lines a file has, and how many up to the last one that is not blank."""

    path: Path
    lines: int
    filled: int


def _count(path: Path) -> _Counted:
    number = filled = 0
    for number, (_, line) in enumerate(text_lines.read(path), 1):
        filled = number if line.strip() else filled
    return _Counted(path, number, filled)
