"""Records out of files: TSV, CSV, JSON lines, Parquet and Arrow, each with the words for pointing
at it. Quotes in a TSV are text, as in GLUE's files.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from distilflax.errors import UserError, choose_from
from distilflax.text import lines as text_lines
from distilflax.text.files import ROWS
from distilflax.text.lines import whole

T = TypeVar("T")

# A whole document of JSON often stands in one line.
LONGEST_DOCUMENT = 1 << 30  # bytes


class Record(NamedTuple):
    """One record: `FILE line N`, its values by column, and whether the first line named those;
    `classes` are the names of all classes of a column, in the order of their numbers, where the
    file says them."""

    place: str
    values: dict[str, Any]
    headed: bool = False
    classes: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Table(NamedTuple):
    """How tables are written: `header` names the columns where no first line does (and the values
    of JSON lines that are lists, as sentence-transformers' own data is); `delimiter` (`tab`, or one
    character: then with CSV's quotes) makes a table of any file that is not JSON, Parquet or Arrow,
    whatever its suffix. `flags` is what stands before both names where a user gives them."""

    header: tuple[str, ...] = ()
    delimiter: str = ""
    flags: str = ""


_PLAIN = Table()


class FaultyRecordError(UserError):
    """One record is not what it should be; its readers give it to `Faults`."""


class Faults:
    """What was wrong with records: raised at once, or counted where `skip` says so."""

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.count = 0
        self.first = ""
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """Something that is no fault, and that one should know of."""
        self.notes.append(sentence)

    def add(self, sentence: str) -> None:
        """
        Raises:
          UserError: unless faulty records are to be skipped.
        """
        if not self.skip:
            raise UserError(sentence)
        self.count += 1
        self.first = self.first or sentence

    def summary(self) -> str:
        """`3 faulty records were skipped; the first: ...`, or nothing."""
        if not self.count:
            return ""
        if self.count == 1:
            return f"1 faulty record was skipped: {self.first}"
        return f"{self.count:,} faulty records were skipped; the first: {self.first}"


def paths(folder: str | Path, names: str) -> list[Path]:
    """The files that a comma-separated list names, inside of `folder`.

    Raises:
      UserError: there is no such folder or file, with the files that are there.
    """
    folder = text_lines.local(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the data's as config.data.folder.")
    found = []
    for name in filter(None, map(str.strip, names.split(","))):
        path = text_lines.local(folder / name)
        shards = sorted(path.glob("*.arrow")) if path.is_dir() else []
        # Beside them `datasets` keeps what it made of them.
        shards = [shard for shard in shards if not shard.name.startswith("cache-")]
        if not shards and not path.is_file():
            there = sorted(path.name for path in folder.iterdir() if path.is_file())
            raise UserError(f"{folder} has no file {name!r}; {choose_from(name, there)}")
        found += shards or [path]
    return found


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


def suffix(path: Path) -> str:
    """What a file holds, by its name: the suffix below that of a compressed one."""
    return text_lines.name_below(path).suffix


def read(path: Path, faults: Faults, table: Table = _PLAIN) -> Iterator[Record]:
    """The records of one file, in order, by its suffix: .tsv .csv .jsonl .ndjson .json .parquet
    .arrow. `table` says how those are written that are tables; others may stand beside them.

    Raises:
      UserError: an unreadable file, an unknown suffix, no record at all, or a line that is not
        what the suffix says (which `faults` may count instead).
    """
    kind = suffix(path)
    if table.delimiter and kind not in KEYED:
        kind = ".tsv" if table.delimiter in ("tab", "\t", "\\t") else ".csv"
    readers = TABLES | KEYED
    if kind not in readers:
        raise UserError(
            f"{path}: {kind!r} is no format; {choose_from(kind, readers)}{_otherwise(table)}"
        )
    empty = True
    for record in readers[kind](path, faults, table):
        empty = False
        yield record
    if empty and not faults.count:
        raise UserError(f"{path} has no records; give a file with at least one.")


def _otherwise(table: Table) -> str:
    if not table.flags:
        return ""
    return f" A table of another suffix is read with {table.flags}delimiter (tab, or a character)."


def column(record: Record, name: str, option: str, *, flag: str = "") -> Any:
    """The value of a column that must be there; `flag`, where it is not a config that names it.

    Raises:
      UserError: the columns that are there, and the option that says which is meant; of a record
        that names its own columns a FaultyRecordError, since others may have it.
    """
    if name not in record.values:
        hint = " If the first line holds no names, give them as config.options.header."
        kind = UserError if record.headed else FaultyRecordError
        raise kind(
            f"{record.place} has no column {name!r} ({flag or f'config.options.{option}'}); "
            f"{choose_from(name, record.values)}{hint if record.headed and not flag else ''}"
        )
    return record.values[name]


def text(record: Record, name: str, option: str, *, flag: str = "") -> str:
    """The text of a column; numbers are taken as they are written, and words joined by spaces.

    Raises:
      FaultyRecordError: something else (NaN is what is missing).
      UserError: as `column` does.
    """
    value = column(record, name, option, flag=flag)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if not isinstance(value, str) and not number:
        raise FaultyRecordError(f"{record.place}: {name!r} is not text but {value!r:.40}.")
    return whole(str(value))


def _filled(path: Path, rows: Iterable[tuple[str, T]], faults: Faults) -> Iterator[tuple[str, T]]:
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


def _tsv(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    rows = ((place, line.split("\t") if line else []) for place, line in lines(path))
    yield from _rows(path, _filled(path, rows, faults), faults, table)


def _csv(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    # The standard limit of 128 KiB a field is shorter than some documents.
    csv.field_size_limit(2**31 - 1)
    written = (line + "\n" for _, line in lines(path))
    try:
        reader = csv.reader(written, strict=True, delimiter=table.delimiter or ",")
    except TypeError:
        raise UserError(
            f"{table.flags}delimiter is {table.delimiter!r:.40}; give tab, or one character."
        ) from None
    rows = _filled(path, _csv_rows(path, reader, faults), faults)
    yield from _rows(path, rows, faults, table)


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


def _rows(
    path: Path, rows: Iterable[tuple[str, list[str]]], faults: Faults, table: Table
) -> Iterator[Record]:
    """Rows of cells as records, named by `header` or else by the first row; what has no name is
    left out."""
    rows = iter(rows)
    names = table.header or next(rows, ("", []))[1]
    namer = f"{table.flags}header" if table.header else "the first line"
    named = [name for name in names if name]
    if len({*named}) < len(named):
        raise UserError(f"{path}: {namer} names two columns alike; rename one.")
    for place, cells in rows:
        if len(cells) != len(names):
            faults.add(
                f"{place} has {len(cells)} columns but {namer} names {len(names)} "
                f"({', '.join(names):.200}); mend the line."
            )
            continue
        values = {name: cell for name, cell in zip(names, cells, strict=True) if name}
        yield Record(place, values, headed=not table.header)


def _json_lines(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    stripped = ((place, line.strip()) for place, line in lines(path))
    for place, line in _filled(path, stripped, faults):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.add(f"{place} is not JSON ({error!s:.80}); write one object a line.")
            continue
        if table.header and isinstance(value, list) and len(value) == len(table.header):
            value = dict(zip(table.header, value, strict=True))
        if not isinstance(value, dict):
            faults.add(f"{place} is not a JSON object but {value!r:.40}; write one object a line.")
            continue
        yield Record(place, value)


def _json(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    """An array of objects, or else JSON lines."""
    start = next((line for _, line in lines(path, LONGEST_DOCUMENT) if line.strip()), "")
    if not start.lstrip().startswith("["):
        yield from _json_lines(path, faults, table)
        return
    content = io.StringIO()
    for _, line in lines(path, LONGEST_DOCUMENT):
        content.write(line + "\n")
    try:
        values = json.loads(content.getvalue())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error!s:.80}).") from None
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield Record(f"{path} entry {number}", value)
        else:
            faults.add(f"{path} entry {number} is not a JSON object but {value!r:.40}.")


def _parquet(path: Path, faults: Faults, _: Table) -> Iterator[Record]:
    with text_lines.explained(path), pa.parquet.ParquetFile(path, memory_map=True) as file:
        batches = file.iter_batches(batch_size=ROWS)
        yield from _of_batches(path, file.schema_arrow, batches, faults)


def _arrow(path: Path, faults: Faults, _: Table) -> Iterator[Record]:
    """What `save_to_disk` of `datasets` leaves."""
    with text_lines.explained(path), pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_stream(file)
        yield from _of_batches(path, reader.schema, _checked(reader), faults)


def _checked(reader: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        batch.validate(full=True)  # offsets that point elsewhere would be followed
        yield from (batch.slice(at, ROWS) for at in range(0, len(batch), ROWS))


def _of_batches(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], faults: Faults
) -> Iterator[Record]:
    if len({*schema.names}) < len(schema.names):
        raise UserError(f"{path} names two columns alike; rename one.")
    classes, number = _classes(schema), 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # no UTF-8, or a date beyond Python's
            raise UserError(
                f"{path} rows {number + 1} to {number + len(batch)} cannot be read ({error!s:.80});"
                " write the column anew."
            ) from None
        for row in rows:
            number += 1
            place = f"{path} row {number}"
            try:
                for column, names in classes.items():
                    row[column] = by_name(row[column], f"{place}: {column!r}", names)
            except FaultyRecordError as fault:
                faults.add(str(fault))
                continue
            yield Record(place, row, classes=classes)


def _classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """For each column in which `datasets` keeps classes as numbers, their names.

    They stand in the schema's metadata, as `datasets.Features.arrow_schema` writes it; a list has
    those of its elements under `feature`, or is written as one. Minus one is no label, as in GLUE's
    test files.
    """
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = dict(written["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature") if isinstance(feature, dict) else feature
        inner = inner[0] if isinstance(inner, list) and inner else inner
        kind = inner if isinstance(inner, dict) else feature
        if column in schema.names and isinstance(kind, dict) and kind.get("_type") == "ClassLabel":
            names = kind.get("names")
            found[column] = tuple(map(str, names)) if isinstance(names, list) else ()
    return found


def by_name(value: Any, where: str, names: Sequence[str], namer: str = "the file") -> Any:
    """The name of a class that is given by its number, or those of a list; -1 is None.

    Raises:
      FaultyRecordError: what is `where` is no number of a class that `namer` names, nor a name.
    """
    if isinstance(value, list):
        return [by_name(one, where, names, namer) for one in value]
    if value is None or value == -1:
        return None
    if isinstance(value, str) and value in names:
        return value
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise FaultyRecordError(
            f"{where} is {value!r:.40}, and {namer} names {len(names)} classes, from 0 on."
        )
    return names[value]


# By suffix: tables, whose columns stand in order, and what names them in every record.
TABLES = {".tsv": _tsv, ".csv": _csv}
KEYED = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
