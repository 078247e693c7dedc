"""Records out of files: TSV, CSV, JSON lines, Parquet and Arrow, and out of folders with a text a
file, each with the words for pointing at it.
"""

import io
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from distilflax.errors import UserError, choose_from
from distilflax.tasks import class_folders, named_files, tables
from distilflax.tasks.faults import Faults, FaultyRecordError
from distilflax.tasks.tables import REST, Table, filled, lines
from distilflax.text import lines as text_lines
from distilflax.text.files import ROWS, rows_of
from distilflax.text.lines import whole

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


_PLAIN = Table()
_SUFFIX = "suffix"


def suffix(path: Path) -> str:
    """What a file holds, by its name: the suffix below that of a compressed one."""
    return text_lines.name_below(path).suffix


def read(path: Path, faults: Faults, table: Table = _PLAIN) -> Iterator[Record]:
    """The records of one file, in order, by its suffix: .tsv .csv .jsonl .ndjson .json .parquet
    .arrow; of files side by side; or of a folder, columns `text` and `label`. `table` says how
    those are written that are tables; others may stand beside them. With a `delimiter` of `suffix`
    a line is a text, and the suffix of its file, whichever it is, the label (rt-polarity.pos).

    Raises:
      UserError: an unreadable file, an unknown suffix, no record at all, or a line that is not
        what the suffix says (which `faults` may count instead).
    """
    kind, readers = suffix(path), TABLES | KEYED
    if path.is_dir():
        readers[kind] = _folder
    elif table.delimiter == _SUFFIX and not named_files.are_beside(path):
        readers[kind] = _lines_of_class
    elif named_files.are_beside(path) or (table.delimiter and kind not in KEYED):
        readers[kind] = _table
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
    return (
        f" A table of another suffix is read with {table.flags}delimiter (tab, space, __label__, "
        "or a character; suffix if that is the class of its lines)."
    )


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
            f"{record.place} has no column {name!r:.80} ({flag or f'config.options.{option}'}); "
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


def _table(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    """Rows of cells as records, named by `header` or else by the first row; what has no name is
    left out, and so is a first row that holds nothing but the names."""
    rows = tables.rows(path, faults, table)
    names = table.header or next(rows, ("", []))[1]
    namer = f"{table.flags}header" if table.header else "the first line"
    named = [name for name in names if name]
    if len({*named}) < len(named):
        raise UserError(f"{path}: {namer} names two columns alike; rename one.")
    for number, (place, cells) in enumerate(rows):
        values = _named(cells, names, table)
        if values is None:
            # A quote that was left open may have taken them.
            taken = sum(cell.count("\n") for cell in cells if isinstance(cell, str))
            more = f" (and in quotes {taken:,} lines after it)" if taken else ""
            what = f"{place}{more} has {len(cells)} columns"
            faults.add(_misfit(what, names, table), 1 + taken)
        elif table.header and not number and all(map(operator.eq, values, values.values())):
            faults.note(f"{place} was passed over: it holds the names of {namer}")
        else:
            yield Record(place, values, headed=not table.header)


def _named(cells: Sequence, names: Sequence[str], table: Table) -> dict[str, Any] | None:
    """Those that have a name, by it; None where there are too few or too many."""
    spare = len(cells) + 1 - len(names)
    if REST in table.header and spare >= 0:
        at = names.index(REST)
        names, cells = [*names[:at], *names[at + 1 :]], [*cells[:at], *cells[at + spare :]]
    if len(cells) != len(names):
        return None
    return {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _misfit(what: str, names: Sequence[str], table: Table) -> str:
    namer = f"{table.flags}header" if table.header else "the first line"
    number, remedy = f"{len(names)}", "mend the line"
    if REST in table.header:
        number = f"{len(names) - 1} or more"
    elif table.flags:
        remedy += f", or give {table.flags}header, in which {REST} stands for any number of columns"
    return f"{what} but {namer} names {number} ({', '.join(names):.200}); {remedy}."


def _folder(path: Path, faults: Faults, _: Table) -> Iterator[Record]:
    for place, text, label in class_folders.read(path, faults, TABLES | KEYED):
        yield Record(place, {"text": text, "label": label})


def _lines_of_class(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    tables.check_unquoted(path, table)
    label = suffix(path).removeprefix(".")
    if not label:
        raise UserError(f"{path} has no suffix, which is to be its class; rename it.")
    stripped = ((place, line.strip()) for place, line in lines(path))
    for place, line in filled(path, stripped, faults):
        yield Record(place, {"text": line, "label": label})


def _json_lines(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    stripped = ((place, line.strip()) for place, line in lines(path))
    for place, line in filled(path, stripped, faults):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.add(f"{place} is not JSON ({error!s:.80}); write one object a line.")
            continue
        yield from _of_json(place, value, faults, table, "write one object a line")


def _of_json(place: str, value: Any, faults: Faults, table: Table, remedy: str) -> Iterator[Record]:
    """Of an object, or of a list whose values `header` names."""
    if table.header and isinstance(value, list):
        values = _named(value, table.header, table)
        if values is None:
            faults.add(_misfit(f"{place} has {len(value)} values", table.header, table))
            return
        value = values
    if isinstance(value, dict):
        yield Record(place, value)
        return
    if isinstance(value, list) and table.flags:
        remedy += f", or name the values of lists as {table.flags}header"
    faults.add(f"{place} is not a JSON object but {value!r:.40}; {remedy}.")


def _json(path: Path, faults: Faults, table: Table) -> Iterator[Record]:
    """An array of objects or lists, one object over several lines, or else JSON lines."""
    start = next((line for _, line in lines(path, LONGEST_DOCUMENT) if line.strip()), "")
    if start.lstrip().startswith("["):
        for number, value in enumerate(_document(path), 1):
            yield from _of_json(f"{path} entry {number}", value, faults, table, "write objects")
        return
    try:
        value, is_line = json.loads(start), True
    except (ValueError, RecursionError):
        value, is_line = _object(path), False
    if isinstance(value, dict):
        _check_no_parts(path, value, table)
    if is_line or value is None:
        yield from _json_lines(path, faults, table)
    else:
        yield Record(str(path), value)


def _document(path: Path) -> Any:
    content = io.StringIO()
    for _, line in lines(path, LONGEST_DOCUMENT):
        content.write(line + "\n")
    try:
        return json.loads(content.getvalue())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error!s:.80}).") from None


def _object(path: Path) -> dict | None:
    """That of all lines; None of lines that are each to be one, some faulty."""
    try:
        value = _document(path)
    except UserError:
        return None
    return value if isinstance(value, dict) else None


def _check_no_parts(path: Path, value: dict, table: Table) -> None:
    """
    Raises:
      UserError: one object holds lists of records, as CLINC150's does its parts.
    """
    entries = [entry for part in value.values() if isinstance(part, list) for entry in part]
    if not all(isinstance(part, list) for part in value.values()) or not entries:
        return
    if not all(isinstance(entry, list | dict) for entry in entries):
        return
    part = "train" if "train" in value else next(iter(value))
    header = f", and name their values as {table.flags}header" if table.flags else ""
    raise UserError(
        f"{path} is one JSON object of lists ({', '.join(value):.80}), and no record; write those "
        f"of a list as JSON lines, as `jq -c '.[{json.dumps(part)}][]' {path.name} > "
        f"{part}.jsonl` does{header if isinstance(entries[0], list) else ''}."
    )


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
    classes = _classes(schema)
    for place, row in rows_of(path, batches):
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
            names = names if isinstance(names, list) else []
            found[column] = tuple(whole(str(name)) for name in names)
    return found


def by_name(
    value: Any, where: str, names: Sequence[str], namer: str = "the file", first: int = 0
) -> Any:
    """The name of a class that is given by its number, or those of a list; -1 is None. `first` is
    the number of the first name.

    Raises:
      FaultyRecordError: what is `where` is no number of a class that `namer` names, nor a name.
    """
    if isinstance(value, list):
        return [by_name(one, where, names, namer, first) for one in value]
    if value is None or value == -1:
        return None
    if isinstance(value, str) and value in names:
        return value
    if not isinstance(value, int) or not 0 <= value - first < len(names):
        raise FaultyRecordError(
            f"{where} is {value!r:.40}, and {namer} names {len(names)} classes, from {first} on."
        )
    return names[value - first]


# By suffix: tables, whose columns stand in order, and what names them in every record.
TABLES = {".tsv": _table, ".csv": _table}
KEYED = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
