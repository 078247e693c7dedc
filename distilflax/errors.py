"""The one exception for mistakes that a user can mend, and how it is worded.

A `UserError` is a single sentence that names the thing, the place and the remedy. Entry points
print it without a traceback and exit with status 2 (`experiments/command.py`); a library caller
catches it like any `ValueError`.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one sentence naming the thing, the place and the remedy."""


def choose_from(name: str, choices: Iterable[str]) -> str:
    """The clause that ends an "unknown name" message: the valid choices, and the nearest if any."""
    valid = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"choose from {', '.join(valid)}{hint}" if valid else "there is nothing to choose from."
