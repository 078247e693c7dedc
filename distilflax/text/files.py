"""Text files of every format that users bring, read as a stream of documents.

A document is one line of plain text, one record of JSON lines, CSV or TSV, or one row of Parquet.
Everything is read line by line or batch by batch, so a file may be larger than memory, and every
mistake is answered with the file, the line and the remedy.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from distilflax.errors import UserError, choose_from
from distilflax.text import lines

# Rows of Parquet that are read together: few, as a dictionary may make long texts of each.
ROWS = 64
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
    with lines.explained(path):
        for text in _reader(path)(path, column):
            if text and not text.isspace():
                yield text


def is_recognised(path: Path) -> bool:
    """Whether a file found in a folder is taken for text: by its suffix."""
    return _format(path) in RECOGNISED


def _format(path: Path) -> str:
    return lines.name_below(path).suffix.lower()


def _reader(path: Path) -> Callable[[Path, str], Iterable[str | None]]:
    return _READERS.get(_format(path), _plain)


def _plain(path: Path, column: str) -> Iterator[str]:
    for _, line in lines.read(path):
        yield line.strip()


def _json_lines(path: Path, column: str) -> Iterator[str | None]:
    for place, line in lines.read(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(
                f"{place} is not a JSON record; write one object a line, for example with "
                "`jq -c '.[]'`."
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{place} is not a JSON object with a {column!r} in it.")
        if column not in record:
            raise no_column(path, column, record)
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{place}: {column!r} is not text but {text!r:.40}.")
        yield text and lines.whole(text)


def _csv(path: Path, column: str) -> Iterator[str | None]:
    yield from _delimited(path, column, csv.excel)


def _tsv(path: Path, column: str) -> Iterator[str | None]:
    # Quotes in a TSV are text: the GLUE files are full of lone ones.
    yield from _delimited(path, column, _Tabs)


class _Tabs(csv.excel_tab):
    quoting = csv.QUOTE_NONE


def _delimited(path: Path, column: str, dialect: type[csv.Dialect]) -> Iterator[str | None]:
    # The standard limit of 128 KiB a field is shorter than some encyclopaedia articles.
    csv.field_size_limit(max(csv.field_size_limit(), lines.LONGEST))
    rows = csv.reader((line + "\n" for _, line in lines.read(path)), dialect, strict=True)
    begin = 1  # of the row that is being read: in quotes it may go on over lines
    try:
        header = next(rows, [])
        position, begin = _position(path, column, header), rows.line_num + 1
        for row in rows:
            # Spreadsheets leave out empty cells at a row's end, or write more of them.
            if row and (len(row) <= position or any(row[len(header) :])):
                raise UserError(
                    f"{path} line {begin} has {len(row)} columns but the first line names "
                    f"{len(header)}, so {column!r} may be cut; mend the row."
                )
            begin = rows.line_num + 1
            yield row[position] if row else None
    except csv.Error as error:
        raise UserError(f"{path} line {begin}: {error}; is a quote left open?") from None


def _position(path: Path, column: str, columns: Sequence[str]) -> int:
    """Where the column stands."""
    if column not in columns:
        raise no_column(path, column, columns)
    if columns.count(column) > 1:
        raise UserError(f"{path} has two columns {column!r}; rename one.")
    return columns.index(column)


def _parquet(path: Path, column: str) -> Iterator[str | None]:
    with pa.parquet.ParquetFile(path, memory_map=True) as file:
        schema = file.schema_arrow
        _position(path, column, schema.names)
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {column!r} holds {kind}, not text; name another.")
        for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
            try:
                yield from batch.column(0).to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: column {column!r} is not UTF-8 ({error!s:.80}); write it anew."
                ) from None


def rows_of(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, dict]]:
    """(`FILE row N`, its values by column) for every row of the batches of a file.

    Raises:
      UserError: values that Python has no like of.
    """
    number = 0
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
            yield f"{path} row {number}", row


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
