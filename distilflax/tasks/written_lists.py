"""Lists that stand as text in a cell of a table, as pandas and `datasets` write them: Python's
`['a', 'b']`, JSON's `["a", "b"]` and NumPy's `['a' 'b']` or `[ 2 14]`.
"""

import ast
import json
import re

from distilflax.tasks.faults import FaultyRecordError

_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+\d.][-+.\w]*|True|False|None)"""
_ITEMS = re.compile(_ITEM)
_SPACED = re.compile(rf"\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]")
# What `literal_eval` raises for what it cannot read.
_NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def is_written(text: str) -> bool:
    """Whether a text has the brackets of a list around it."""
    return text.startswith("[") and text.endswith("]")


def read(text: str, where: str, otherwise: str) -> list:
    """The list that a text in brackets is.

    Raises:
      FaultyRecordError: `where` stands no list in these ways; `otherwise` is how to write it.
    """
    try:
        # Python joins texts that only a space parts, as NumPy writes them.
        if _SPACED.fullmatch(text):
            found = [ast.literal_eval(item) for item in _ITEMS.findall(text)]
        else:
            found = _of_json(text) or ast.literal_eval(text)
    except _NO_LITERAL:
        found = None
    # Three dots are what NumPy leaves out.
    if not isinstance(found, list) or ... in found:
        raise FaultyRecordError(
            f"{where} is a list written as text ({text:.40}) that cannot be read; {otherwise}, or "
            "the records as JSON lines."
        )
    return found


def _of_json(text: str) -> list | None:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
