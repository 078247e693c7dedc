"""JSON, an object a line: what was asked for and what is answered."""

import json
from typing import Any

from distilflax.text.lines import whole
from distilflax.train.records import plain


def parsed(line: str) -> Any:
    """What the line says, or the error that says why it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def written(value: dict) -> str:
    """The line without its end: null where a number is none or infinite, for which JSON has no
    word; whole, as an id may hold what no file takes."""
    options = {"ensure_ascii": False, "default": str, "allow_nan": False}
    try:
        return whole(json.dumps(value, **options))
    except ValueError:
        return whole(json.dumps(plain(value), **options))
