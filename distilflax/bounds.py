"""Fields of settings that know which values they may take, and settings built from plain values.

`settings.py` and `tasks/settings.py` say what there is; here values are held to it.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import ml_collections

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


def build(kind: type, values: Any, place: str) -> Any:
    """A dataclass of `kind` from plain values, each checked against its annotation and bounds.

    Raises:
      UserError: naming the value by `place`.
    """
    values = group_of(values, place)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            raise UserError(f"{place}.{key} is not a setting; {choose_from(str(key), fields)}")
    checked = {}
    for key, value in values.items():
        where = f"{place}.{key}"
        checked[key] = _convert(hints[key], value, where)
        check_bounds(fields[key].metadata, checked[key], where)
    return kind(**checked)


def _convert(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, place)
    if hint is dict:
        return group_of(value, place)
    origin = typing.get_origin(hint)
    if origin is dict:
        inner, group = typing.get_args(hint)[1], group_of(value, place)
        return {name: _convert(inner, item, f"{place}.{name}") for name, item in group.items()}
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{place} must be a tuple, not {value!r}.")
        inner = typing.get_args(hint)
        if inner[0] is str and len(value) == 1 and isinstance(value[0], str):
            # --config.options.labels=no,yes: ml_collections takes words with commas for one word.
            value = value[0].split(",")
        if inner[0] is str:
            # Of --config.options.labels=1,2 it makes numbers, and here they are names like others.
            value = [str(item) if type(item) is int else item for item in value]
        inner = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(inner) != len(value):
            raise UserError(f"{place} must have {len(inner)} entries, not {len(value)}.")
        places = [f"{place}[{i}]" for i in range(len(value))]
        return tuple(map(_convert, inner, value, places))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        is_named = hint is str and isinstance(value, float | bool)  # 1.0 or True on a command line
        quoted = f"; put it in quotes, as in \"'{value}'\"" if is_named else ""
        raise UserError(f"{place} must be {hint.__name__}, not {value!r}{quoted}.")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{place} is {value!r}; it must be a finite number.")
    return value


def group_of(values: Any, place: str) -> dict:
    """`values` as a dict, whether a config file or plain Python made them."""
    if isinstance(values, ml_collections.ConfigDict):
        return values.to_dict()
    if not isinstance(values, Mapping):
        raise UserError(f"{place} must be a group of settings, not {values!r}.")
    return dict(values)
