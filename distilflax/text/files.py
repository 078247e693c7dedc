"""Text files of every format that users bring, read as a stream of documents.

A document is one line of plain text, one record of JSON lines, CSV or TSV, or one row of Parquet.
Everything is read line by line or batch by batch, so a file may be larger than memory, and every
mistake is answered with the file, the line and the remedy.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from distilflax.errors import UserError, choose_from
from distilflax.text.lines import whole

# One line longer than this is no paragraph but a binary file, or an archive made to fill memory.
LONGEST_LINE = 64 << 20  # bytes
_BUFFER = 1 << 20  # bytes

_COMPRESSIONS: dict[str, Callable[[Path], io.BufferedIOBase]] = {
    ".xz": lzma.LZMAFile,
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".zst": lambda path: pa.input_stream(str(path), compression="zstd"),
}
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst")


def documents(path: Path, column: str) -> Iterator[str]:
    """The documents of one file, in order; those without any text are passed over.

    The format follows from the suffix, after that of the compression (`.xz .gz .bz2 .zst`):
    `.jsonl .ndjson .json` JSON lines, `.csv`, `.tsv` (tabs, no quoting), `.parquet`; any other is
    plain text, of which each line is a document. `column` is not looked at in plain text.

    Raises:
      UserError: the file cannot be read, decompressed or decoded, or lacks the column.
    """
    if path.name.lower().endswith(_ARCHIVES):
        raise UserError(f"{path} is an archive of several files; unpack it and give the folder.")
    with _explained(path):
        for text in _reader(path)(path, column):
            if text and not text.isspace():
                yield text


def is_recognised(path: Path) -> bool:
    """Whether a file found in a folder is taken for text: by its suffix."""
    return _format(path) in RECOGNISED


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _reader(path: Path) -> Callable[[Path, str], Iterable[str | None]]:
    return _READERS.get(_format(path), _plain)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends, decoded from UTF-8."""
    unpack = _COMPRESSIONS.get(path.suffix.lower())
    raw_file = unpack(path) if unpack else path.open("rb")
    with raw_file, io.BufferedReader(raw_file, _BUFFER) as file:
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if len(raw) > LONGEST_LINE or b"\0" in raw:
                raise UserError(
                    f"{path} line {number} is not text (a zero byte, or over {LONGEST_LINE >> 20} "
                    "MiB without a line end); give a text file, one paragraph a line."
                )
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} line {number} is not UTF-8 (byte 0x{raw[error.start]:02x} at position "
                    f"{error.start + 1}); convert the file, for example with "
                    "`iconv -f latin1 -t utf-8`."
                ) from None


def _plain(path: Path, column: str) -> Iterator[str]:
    for _, line in _lines(path):
        yield line.strip()


def _json_lines(path: Path, column: str) -> Iterator[str | None]:
    for number, line in _lines(path):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(
                f"{path} line {number} is not a JSON record; write one object a line, for example "
                "with `jq -c '.[]'`."
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{path} line {number} is not a JSON object with a {column!r} in it.")
        if column not in record:
            raise no_column(path, column, record)
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{path} line {number}: {column!r} is not text but {text!r:.40}.")
        yield text and whole(text)


def _csv(path: Path, column: str) -> Iterator[str | None]:
    yield from _delimited(path, column, csv.excel)


def _tsv(path: Path, column: str) -> Iterator[str | None]:
    # Quotes in a TSV are text: the GLUE files are full of lone ones.
    yield from _delimited(path, column, _Tabs)


class _Tabs(csv.excel_tab):
    quoting = csv.QUOTE_NONE


def _delimited(path: Path, column: str, dialect: type[csv.Dialect]) -> Iterator[str | None]:
    # The standard limit of 128 KiB a field is shorter than some encyclopaedia articles.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    rows = csv.reader((line for _, line in _lines(path)), dialect, strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise no_column(path, column, header)
        position = header.index(column)
        for row in rows:
            if row and len(row) <= position:
                raise UserError(
                    f"{path} line {rows.line_num} has {len(row)} columns and no {column!r}, which "
                    f"is number {position + 1}; mend the row."
                )
            yield row[position] if row else None
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num}: {error}; is a quote left open?") from None


def _parquet(path: Path, column: str) -> Iterator[str | None]:
    with pa.parquet.ParquetFile(path, memory_map=True) as file:
        schema = file.schema_arrow
        if column not in schema.names:
            raise no_column(path, column, schema.names)
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {column!r} holds {kind}, not text; name another.")
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            yield from batch.column(0).to_pylist()


_READERS = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


# Suffixes that are taken for text where a folder is given; a file given by name may have any.
RECOGNISED = (".txt", *_READERS)


def no_column(where: Path | str, column: str, columns: Iterable[str]) -> UserError:
    """The answer to a column that a source does not have."""
    return UserError(
        f"{where} has no column {column!r} (data.column); {choose_from(column, columns)}"
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what the file system and the decompressors raise into one sentence."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a file in data.sources.") from None
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied.") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is damaged or not what its suffix {path.suffix!r} says ({reason:.120}); "
            "fetch or write it again."
        ) from None
