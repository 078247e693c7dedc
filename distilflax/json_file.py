"""JSON from outside, read with suspicion: bounded, strict, one sentence when it is not right."""

import itertools
import json
import stat
from pathlib import Path
from typing import Any

from distilflax.errors import UserError

# The largest file of these formats that is not a mistake: a sharded index of thousands of tensors
# is a few hundred kB, and vocabularies are not read here.
LARGEST = 16 * 2**20
_BLOCK = 64 * 2**10


def read(path: Path) -> dict:
    """The object that the file at `path` holds.

    Raises:
      UserError: absent, unreadable, no regular file, larger than `LARGEST`, not JSON, or not an
        object.
    """
    value = _read(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {_shorten(value)}.")
    return value


def read_if_there(path: Path) -> dict:
    """`read`, or nothing where there is no file."""
    return read(path) if path.is_file() else {}


def read_list(path: Path) -> list:
    """The array that the file at `path` holds; raises as `read` does."""
    value = _read(path)
    if not isinstance(value, list):
        raise UserError(f"{path} should hold a JSON array, not {_shorten(value)}.")
    return value


def _read(path: Path) -> Any:
    return parse(_bytes(path), str(path))


def _bytes(path: Path) -> bytes:
    content = None
    try:
        # A pipe would be waited for, and a device may have no end. Neither has a size, nor what is
        # in /proc: only reading says how much there is.
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                blocks = iter(lambda: file.read(_BLOCK), b"")
                content = b"".join(itertools.islice(blocks, LARGEST // _BLOCK + 1))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:  # a zero byte or half of a surrogate pair, which no name of a file has
        raise UserError(f"{str(path)!a} cannot be the name of a file; mend it.") from None
    if content is None:
        raise UserError(f"{path} is no regular file; put one that holds JSON in its place.")
    if len(content) > LARGEST:
        raise UserError(
            f"{path} is over {LARGEST >> 20} MiB of JSON and should be far smaller; fetch it again."
        )
    return content


def parse(text: bytes, where: str) -> Any:
    """The JSON value of `text`; `where` names it in errors.

    A key given twice is refused: which of the two was meant is anyone's guess, and two readers
    that guess differently see different models.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except _DuplicateError as error:
        raise UserError(f"{where} gives {_shorten(error.args[0])} twice.") from None
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError, JSONDecodeError, and numbers of thousands of digits are ValueErrors.
        raise UserError(
            f"{where} is not valid JSON ({_shorten(error)}); mend it, or fetch it again."
        ) from None


def integer(config: dict, key: str, where: str, *, least: int, default: int | None = None) -> int:
    """`config[key]`, which must be a whole number of at least `least`.

    With a `default`, an absent key or a null takes it.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        found = "is missing" if key not in config else f"is {_shorten(value)}"
        raise UserError(f"{where}: {key} {found}; it must be a whole number of at least {least}.")
    return value


def number(
    config: dict, key: str, where: str, *, least: float, most: float, default: float
) -> float:
    """`config[key]` as a float between `least` and `most`; absent or null takes `default`."""
    value = config.get(key)
    if value is None:
        return default
    # Written so that NaN, which compares false with everything, is refused too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(
            f"{where}: {key} is {_shorten(value)}; it must be a number from {least:g} to {most:g}."
        )
    return float(value)


class _DuplicateError(Exception):
    """A key that occurs twice in one object."""


def _no_duplicates(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateError(key)
            seen.add(key)
    return found


def _shorten(value: Any) -> str:
    # A bad number may have thousands of digits, which int's own repr refuses to print.
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except ValueError:
        return "an absurdly long number"
    return text if len(text) <= 80 else f"{text[:77]}..."
