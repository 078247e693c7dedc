"""Tables as rows of cells, each with the words for pointing at it: TSV and CSV. Quotes in a TSV are
text, as in GLUE's files.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from distilflax.errors import UserError
from distilflax.tasks.faults import Faults
from distilflax.text import lines as text_lines

T = TypeVar("T")
_TABS = ("tab", "\t", "\\t")


class Table(NamedTuple):
    """How tables are written: `header` names the columns where no first line does (and the values
    of JSON lines that are lists, as sentence-transformers' own data is); `delimiter` (`tab`, or one
    character: then with CSV's quotes) makes a table of any file that is not JSON, Parquet or Arrow,
    whatever its suffix. `flags` is what stands before both names where a user gives them."""

    header: tuple[str, ...] = ()
    delimiter: str = ""
    flags: str = ""


def lines(path: Path, longest: int = text_lines.LONGEST) -> Iterator[tuple[str, str]]:
    """`text.lines.read` of a file that is to hold something.

    Raises:
      UserError: as that does, and nothing in it at all.
    """
    empty = True
    for line in text_lines.read(path, longest):
        empty = False
        yield line
    if empty:
        raise UserError(f"{path} is empty; give a file with at least one record.")


def rows(path: Path, faults: Faults, table: Table) -> Iterator[tuple[str, list[str]]]:
    """(where it begins, the cells) of each row that holds anything, that of the names too: of a
    .tsv with tabs between, of other files with commas, unless there is a delimiter.

    Raises:
      UserError: an unreadable file, a delimiter that cannot be, or a row that cannot be told from
        the next (which `faults` may count instead, but for a quote that is left open to the end).
    """
    delimiter = table.delimiter or (text_lines.name_below(path).suffix == ".tsv" and "tab")
    found = _tsv(path) if delimiter in _TABS else _csv(path, faults, table)
    yield from filled(path, found, faults)


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


def _tsv(path: Path) -> Iterator[tuple[str, list[str]]]:
    for place, line in lines(path):
        yield place, line.split("\t") if line else []


def _csv(path: Path, faults: Faults, table: Table) -> Iterator[tuple[str, list[str]]]:
    # The standard limit of 128 KiB a field is shorter than some documents.
    csv.field_size_limit(2**31 - 1)
    written = (line + "\n" for _, line in lines(path))
    try:
        reader = csv.reader(written, strict=True, delimiter=table.delimiter or ",")
    except TypeError:
        raise UserError(
            f"{table.flags}delimiter is {table.delimiter!r:.40}; give tab, or one character."
        ) from None
    yield from _csv_rows(path, reader, faults)


def _csv_rows(path: Path, reader: Any, faults: Faults) -> Iterator[tuple[str, list[str]]]:
    """(where it begins, the cells) of each row: in quotes it may go on over lines."""
    while True:
        place = f"{path} line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = f"{place}: {error}; is a quote left open, or not doubled?"
            if "end of data" in str(error):  # which swallowed all lines from there on
                raise UserError(what) from None
            faults.add(what)
            continue
        if row is None:
            return
        yield place, row
