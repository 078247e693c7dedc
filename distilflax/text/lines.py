"""Text files line by line, compressed or not, each line with the words for pointing at it.

Only "\\n" ends a line, and a "\\r" before it goes too: the other characters that Unicode calls line
ends stand inside of texts.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from distilflax.errors import UserError

# One line longer than this is no paragraph but a binary file, or an archive made to fill memory.
LONGEST = 64 << 20  # bytes
_BUFFER = 1 << 20  # bytes

COMPRESSIONS: dict[str, Callable[[Path], io.BufferedIOBase]] = {
    ".xz": lzma.LZMAFile,
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".zst": lambda path: pa.input_stream(str(path), compression="zstd"),
}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: Path, longest: int = LONGEST) -> Iterator[tuple[str, str]]:
    """(`FILE line N`, the line without its end) for every line, blank ones too; UTF-8, BOM or not.

    Raises:
      UserError: the file cannot be read or decompressed, or holds something else than lines of
        text, none of them over `longest` bytes.
    """
    with explained(path), _opened(path) as file:
        for place, raw in numbered(file, str(path), longest):
            check_text(place, raw, longest)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{place} is not UTF-8 (byte 0x{raw[error.start]:02x} at position "
                    f"{error.start + 1}); convert the file, for example with "
                    "`iconv -f latin1 -t utf-8`."
                ) from None
            yield place, text.rstrip("\r\n")


def _opened(path: Path) -> io.BufferedReader:
    unpack = COMPRESSIONS.get(path.suffix.lower())
    return io.BufferedReader(unpack(path) if unpack else path.open("rb", buffering=0), _BUFFER)


def numbered(file: io.BufferedReader, name: str, longest: int) -> Iterator[tuple[str, bytes]]:
    """(`NAME line N`, the line) for every line as soon as it is there, without a BOM; of one of
    over `longest` bytes the first of them, and one more.

    Raises:
      UserError: another encoding, as the first line betrays it.
    """
    for number, raw in enumerate(iter(lambda: file.readline(longest + 1), b""), 1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
            _check_first(name, raw)
        yield f"{name} line {number}", raw


def _check_first(name: str, raw: bytes) -> None:
    """What the first line betrays of the whole input, which it calls `name`."""
    if raw.startswith(_UTF16):
        raise UserError(
            f"{name} is in UTF-16; convert it, for example with `iconv -f utf-16 -t utf-8`."
        )
    if b"\n" not in raw and b"\r" in raw.rstrip(b"\r"):
        raise UserError(
            f"{name} ends its lines with carriage returns alone; convert it, for example with "
            "`tr '\\r' '\\n'`."
        )


def check_text(place: str, raw: bytes, longest: int = LONGEST) -> None:
    """Raises a UserError if the line at `place` is over `longest` bytes, or no text."""
    # One zero byte may be dirt in a text; of UTF-16 each second byte is one.
    if len(raw) > longest or 4 * raw.count(0) > len(raw):
        raise UserError(
            f"{place} is not text (zero bytes, or over {longest >> 20} MiB without a line end); "
            "give text in UTF-8."
        )


def name_below(path: Path) -> Path:
    """The path without the suffix of a compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path


def packed_or_not(path: Path) -> Path:
    """The path, or where there is none the same file compressed."""
    packed = (path.with_name(path.name + suffix) for suffix in COMPRESSIONS)
    return path if path.exists() else next((one for one in packed if one.exists()), path)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the file system and the decompressors raise into one sentence."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; check the path.") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        if strerror := getattr(error, "strerror", None):
            raise UserError(f"{path} cannot be read ({strerror}).") from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is damaged or not what its suffix {path.suffix!r} says ({reason:.120}); fetch "
            "or write it again."
        ) from None


def local(path: str | Path) -> Path:
    """The path, with ~ as the user's home.

    Raises:
      UserError: a ~ of nobody, or a name that no file system takes.
    """
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{str(path)[:200]} cannot be looked up ({error!s:.120}).") from None
    return found


def whole(text: str) -> str:
    """`text` with lone surrogates (JSON can escape half of a pair) replaced, one for one: nothing
    can encode them, and offsets into the text stay what they were. Another text is given back
    itself, so that questions about one context share it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def number(text: str) -> float | None:
    """The finite number that `text` spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
