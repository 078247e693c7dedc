"""Fields of settings that know which values they may take; `settings.py` holds values to them."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from distilflax.errors import UserError, choose_from


def choice(default: str, *choices: str):
    """A string field that may only take one of `choices`."""
    return field(default=default, metadata={"choices": choices})


def number(default: int | float, least: int | float | None = None, most: int | float | None = None):
    """A numeric field with inclusive bounds."""
    return field(default=default, metadata={"least": least, "most": most})


def check_bounds(metadata: Mapping, value: Any, place: str) -> None:
    """Raises `UserError` naming `place` where `value` is not one that the field may take."""
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{place} is {value!r}; {choose_from(value, choices)}")
    least, most = metadata.get("least"), metadata.get("most")
    if least is not None and value < least:
        raise UserError(f"{place} is {value!r}; it must be at least {least}.")
    if most is not None and value > most:
        raise UserError(f"{place} is {value!r}; it must be at most {most}.")
