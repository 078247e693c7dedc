"""Text files of records, line by line, each with the words for pointing at it."""

import math
from collections.abc import Iterator
from pathlib import Path

from distilflax.errors import UserError


def read(path: Path) -> Iterator[tuple[str, str]]:
    """(`FILE, line N`, the line) for every line that is not blank; UTF-8, with or without a BOM.

    Raises:
      UserError: no such file, or bytes that are not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; check the path.") from None
    except (UnicodeDecodeError, OSError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"{path} cannot be read as text ({reason}).") from None


def whole(text: str) -> str:
    """`text` with lone surrogates (JSON can escape half of a pair) replaced, one for one: nothing
    can encode them, and offsets into the text stay what they were."""
    return text.encode("utf-8", "replace").decode()


def number(text: str) -> float | None:
    """The finite number that `text` spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
