"""The one exception for mistakes that a user can mend, and how it is worded.

A `UserError` is a single sentence that names the thing, the place and the remedy. Entry points
print it without a traceback and exit with status 2 (`experiments/command.py`); a library caller
catches it like any `ValueError`.
"""

import difflib
from collections.abc import Iterable

# Where data stands in the place of names, a sentence is one still.
_LONGEST_NAME = 255  # characters, as many as the name of a file may have
_LONGEST_LIST = 4000  # characters


class UserError(ValueError):
    """Bad input: one sentence naming the thing, the place and the remedy."""


def choose_from(name: str, choices: Iterable[str]) -> str:
    """The clause that ends an "unknown name" message: the valid choices, and the nearest if any;
    what is no length for names is cut."""
    valid = [str(choice) for choice in choices]
    if not valid:
        return "there is nothing to choose from."
    alike = [choice for choice in valid if len(choice) <= _LONGEST_NAME]
    near = difflib.get_close_matches(str(name), alike, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    listed = ", ".join(choice[:_LONGEST_NAME] for choice in valid)
    more = f" ... ({len(valid):,} in all)" if len(listed) > _LONGEST_LIST else ""
    return f"choose from {listed[:_LONGEST_LIST]}{more}{hint}"


def first_line(error: Exception) -> str:
    """What another library's exception says first, or else its kind; the rest is its own affair."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
