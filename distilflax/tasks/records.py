"""Records out of files: TSV, CSV, JSON lines and Parquet, each with the words for pointing at it.

A file is read line by line, and only "\\n" ends a line: the other characters that Unicode calls
line ends stand inside of texts. Quotes in a TSV are text, as in GLUE's files.
"""

import csv
import functools
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet

from distilflax.errors import UserError, choose_from
from distilflax.text.lines import whole

T = TypeVar("T")

_OPEN = {".gz": gzip.open, ".xz": lzma.open}


class Record(NamedTuple):
    """One record: `FILE line N`, its values by column, and whether the first line named those."""

    place: str
    values: dict[str, Any]
    headed: bool = False


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
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the data's as config.data.folder.")
    found = []
    for name in filter(None, map(str.strip, names.split(","))):
        if not (folder / name).is_file():
            there = sorted(path.name for path in folder.iterdir() if path.is_file())
            raise UserError(f"{folder} has no file {name!r}; {choose_from(name, there)}")
        found.append(folder / name)
    return found


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(`FILE line N`, the line without its end) for every line, blank ones too; UTF-8, BOM or not.

    Raises:
      UserError: no such file, bytes that are not UTF-8, or nothing in it at all.
    """
    number = 0
    try:
        with _OPEN.get(path.suffix, open)(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield f"{path} line {number}", text.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} line {number} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert "
            "the file, for example with `iconv -f latin1 -t utf-8`."
        ) from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again.") from None
    if not number:
        raise UserError(f"{path} is empty; give a file with at least one record.")


def suffix(path: Path) -> str:
    """What a file holds, by its name: the suffix below that of a compressed one."""
    return path.with_suffix("").suffix if is_compressed(path) else path.suffix


def is_compressed(path: Path) -> bool:
    return path.suffix in _OPEN


def read(path: Path, faults: Faults, header: Sequence[str] = ()) -> Iterator[Record]:
    """The records of one file, in order, by its suffix: .tsv .csv .jsonl .ndjson .json .parquet.

    `header` names the columns of a .tsv or .csv whose first line is a record already; the other
    formats have their own names, and may stand beside such tables.

    Raises:
      UserError: an unreadable file, an unknown suffix, no record at all, or a line that is not
        what the suffix says (which `faults` may count instead).
    """
    kind = suffix(path)
    readers = {name: functools.partial(of, header=tuple(header)) for name, of in _TABLES.items()}
    readers |= _READERS
    if kind not in readers:
        raise UserError(f"{path}: {kind!r} is no format; {choose_from(kind, readers)}")
    empty = True
    for record in readers[kind](path, faults):
        empty = False
        yield record
    if empty and not faults.count:
        raise UserError(f"{path} has no records; give a file with at least one.")


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


def _tsv(path: Path, faults: Faults, header: tuple[str, ...]) -> Iterator[Record]:
    rows = ((place, line.split("\t") if line else []) for place, line in lines(path))
    yield from _rows(path, _filled(path, rows, faults), faults, header)


def _csv(path: Path, faults: Faults, header: tuple[str, ...]) -> Iterator[Record]:
    # The standard limit of 128 KiB a field is shorter than some documents.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for _, line in lines(path)), strict=True)
    yield from _rows(path, _filled(path, _csv_rows(path, reader, faults), faults), faults, header)


def _csv_rows(path: Path, reader: Any, faults: Faults) -> Iterator[tuple[str, list[str]]]:
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = f"{path} line {reader.line_num}: {error}; is a quote left open, or not doubled?"
            if "end of data" in str(error):  # which swallowed all lines from there on
                raise UserError(what) from None
            faults.add(what)
            continue
        if row is None:
            return
        yield f"{path} line {reader.line_num}", row


def _rows(
    path: Path, rows: Iterable[tuple[str, list[str]]], faults: Faults, header: tuple[str, ...]
) -> Iterator[Record]:
    """Rows of cells as records, named by `header` or else by the first row."""
    rows = iter(rows)
    names = header or next(rows, ("", []))[1]
    namer = "config.options.header" if header else "the first line"
    if len(set(names)) < len(names):
        raise UserError(f"{path}: {namer} names two columns alike; rename one.")
    for place, cells in rows:
        if len(cells) != len(names):
            faults.add(
                f"{place} has {len(cells)} columns but {namer} names {len(names)} "
                f"({', '.join(names):.200}); mend the line."
            )
            continue
        yield Record(place, dict(zip(names, cells, strict=True)), headed=not header)


def _json_lines(path: Path, faults: Faults) -> Iterator[Record]:
    stripped = ((place, line.strip()) for place, line in lines(path))
    for place, line in _filled(path, stripped, faults):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.add(f"{place} is not JSON ({error!s:.80}); write one object a line.")
            continue
        if not isinstance(value, dict):
            faults.add(f"{place} is not a JSON object but {value!r:.40}; write one object a line.")
            continue
        yield Record(place, value)


def _json(path: Path, faults: Faults) -> Iterator[Record]:
    """An array of objects, or else JSON lines."""
    start = next((line for _, line in lines(path) if line.strip()), "")
    if not start.lstrip().startswith("["):
        yield from _json_lines(path, faults)
        return
    content = io.StringIO()
    for _, line in lines(path):
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


def _parquet(path: Path, _: Faults) -> Iterator[Record]:
    try:
        with pa.parquet.ParquetFile(path, memory_map=True) as file:
            readable = _class_names(file.schema_arrow)
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{path} row {number}"
                    for column, named in readable.items():
                        row[column] = named(row[column], f"{place}: {column!r}")
                    yield Record(place, row)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; check the path.") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error!s:.80}); copy it again.") from None


def _class_names(schema: pa.Schema) -> dict[str, Callable[[Any, str], Any]]:
    """For each column in which `datasets` keeps classes as numbers, what gives them their names.

    They stand in the schema's metadata, as `datasets.Features.arrow_schema` writes it; a list has
    those of its elements under `feature`. Minus one is no label, as in GLUE's test files.
    """
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = dict(written["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature") if isinstance(feature, dict) else None
        kind = inner if isinstance(inner, dict) else feature
        if column in schema.names and isinstance(kind, dict) and kind.get("_type") == "ClassLabel":
            found[column] = functools.partial(by_name, names=list(kind.get("names") or ()))
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
            f"{where} is {value!r:.40}, and {namer} names {len(names)} classes."
        )
    return names[value]


_TABLES = {".tsv": _tsv, ".csv": _csv}
_READERS = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
