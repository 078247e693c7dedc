"""What a model's calls are given, checked: it comes back, or a UserError says what is wrong."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from distilflax import bounds
from distilflax.errors import UserError
from distilflax.search.index import is_whole
from distilflax.settings import Compute, Encoder
from distilflax.tasks import sentences
from distilflax.tasks.sentences import Sentence

# A text, or any number of them: a list, an array of strings, what a generator gives.
Texts = str | Iterable[str]
# What can be iterated over, and is one thing.
_SINGLE = str | bytes | bytearray | memoryview | Mapping


def listed(text: Any, call: str) -> tuple[list[str], bool]:
    """The texts as a list, and whether there was one alone."""
    given = items(text)
    wrong = [item for item in given if not isinstance(item, str)]
    if wrong:
        raise UserError(f"{call} takes a text or a list of texts, not {_shown(wrong[0])}.")
    return given, isinstance(text, str)


def sentence_of(item: Any) -> Sentence:
    """The words of a text, or those that are given."""
    if isinstance(item, str):
        return sentences.of_text(item)
    words = tuple(items(item))
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"tag takes texts, or lists of words, not {_shown(item)}.")
    return Sentence("words", words)


def items(given: Any) -> list:
    """What a list, an array or an iterator holds, and anything else as the only item. Mappings,
    tables and bytes are of the latter: their iterators give keys, names of columns and numbers,
    which are no texts."""
    several = isinstance(given, Iterable) and not isinstance(given, _SINGLE)
    table, single = hasattr(given, "columns"), getattr(given, "ndim", 1) == 0
    return list(given) if several and not table and not single else [given]


def _shown(item: Any) -> str:
    return " ".join(repr(item).split())[:60]


def prompt(given: Any) -> str:
    if not isinstance(given, str):
        raise UserError(
            f"prompt is {_shown(given)}, and is put before every text; give a text, or None for "
            "the model's own."
        )
    return given


def compute(given: Any) -> Compute:
    """Each setting held to what it may be, as those of a config are; of None all as they are
    meant."""
    if not isinstance(given, Compute | None):
        raise UserError(
            f"compute is {_shown(given)}; give a Compute of distilflax.settings, such as "
            "Compute(dtype='bfloat16')."
        )
    return bounds.build(Compute, dataclasses.asdict(given or Compute()), "compute")


def length(given: Any, least: int, encoder: Encoder, path: str) -> int:
    if not is_whole(given, least, encoder.max_positions):
        raise UserError(
            f"max_length is {given!r:.20}; {path} takes from {least} to {encoder.max_positions} "
            "tokens."
        )
    return int(given)
