"""Spans of a text that is longer than the model: overlapping windows, and the best spans of all."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from distilflax.tasks.records import whole
from distilflax.text.tokenizer import Tokenizer

_AT_ONCE = 256


class Context(NamedTuple):
    """A text as tokens: `starts` and `ends` are each token's characters in the original text."""

    text: str
    ids: Int[np.ndarray, "n"]
    starts: Int[np.ndarray, "n"]
    ends: Int[np.ndarray, "n"]


class Window(NamedTuple):
    """Tokens `first` to `last` - 1 of `context` stand in this row from position `at` on."""

    context: Context
    first: int
    last: int
    at: int


class Span(NamedTuple):
    """Characters `start` to `end` - 1, and the sum of the two logits."""

    start: int
    end: int
    score: float


def contexts(words: Tokenizer, texts: Sequence[str]) -> list[Context]:
    """Each text as tokens with their offsets, uncut; equal texts are one and the same object."""
    different = list(dict.fromkeys(texts))
    found = {}
    for start in range(0, len(different), _AT_ONCE):
        part = different[start : start + _AT_ONCE]
        encoded = words.fast.encode_batch([whole(t) for t in part], add_special_tokens=False)
        for text, encoding in zip(part, encoded, strict=True):
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            ids = np.array(encoding.ids, np.int32)
            found[text] = Context(text, ids, offsets[:, 0], offsets[:, 1])
    return [found[text] for text in texts]


def windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first, last) of windows of `room` tokens that share `stride` with their neighbours.

    A stride of more than half a window would hardly move on; it is taken as half.
    """
    step = room - min(stride, room // 2)
    found = [(0, min(room, length))]
    while found[-1][1] < length:
        first = found[-1][0] + step
        found.append((first, min(first + room, length)))
    return found


def tokens_of(context: Context, start: int, end: int) -> tuple[int, int]:
    """The first and the last token that touch characters `start` to `end` - 1."""
    first = int(np.searchsorted(context.ends, start, side="right"))
    last = int(np.searchsorted(context.starts, end, side="left")) - 1
    return first, last


def best_spans(
    rows: Sequence[Float[np.ndarray, "_ 2"]],
    windows: Sequence[Window],
    *,
    n_best: int,
    max_tokens: int,
) -> list[Span]:
    """The best spans over all windows of one text, best first, each once.

    A span begins at one of a window's `n_best` best starts, ends at one of its `n_best` best ends,
    and has at most `max_tokens` tokens; where no such two fit anywhere, at any start and end.
    """
    best: dict[tuple[int, int], float] = {}
    for row, window in zip(rows, windows, strict=True):
        here = row[window.at : window.at + window.last - window.first].astype(np.float64)
        starts, ends = (_largest(here[:, i], n_best) for i in range(2))
        tokens = ends[None, :] - starts[:, None] + 1
        scores = here[starts, 0][:, None] + here[ends, 1][None, :]
        scores = np.where((tokens >= 1) & (tokens <= max_tokens), scores, -np.inf)
        for flat in _largest(scores.ravel(), n_best):
            i, j = np.unravel_index(flat, scores.shape)
            if scores[i, j] == -np.inf:
                break
            first, last = window.first + int(starts[i]), window.first + int(ends[j])
            characters = _characters(window.context, first, last)
            best[characters] = max(float(scores[i, j]), best.get(characters, -np.inf))
    if not best and n_best < (longest := max(one.last - one.first for one in windows)):
        return best_spans(rows, windows, n_best=longest, max_tokens=max_tokens)[:n_best]
    ordered = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [Span(start, end, score) for (start, end), score in ordered[:n_best]]


def _largest(values: Float[np.ndarray, "n"], number: int) -> Int[np.ndarray, "some"]:
    return np.argsort(-values, kind="stable")[:number]


def _characters(context: Context, first: int, last: int) -> tuple[int, int]:
    """The characters of some tokens, with the marks that follow the last one, which the tokenizer
    strips, and what it made one letter of with those before: an answer must not lose its last
    accent, vowel sign or jamo."""
    text, start, end = context.text, int(context.starts[first]), int(context.ends[last])
    following = context.starts[last + 1] if last + 1 < len(context.starts) else len(text)
    while end < len(text) and (
        _is_mark(text[end]) or (end < following and _is_composed(text[start : end + 1]))
    ):
        end += 1
    return start, end


def _is_composed(text: str) -> bool:
    """Whether the last character is one with those before under NFKC, as XLM-R's tokenizer has it:
    a jamo of Hangul, the voicing of half-width katakana."""
    return len(unicodedata.normalize("NFKC", text)) <= len(unicodedata.normalize("NFKC", text[:-1]))


def _is_mark(character: str) -> bool:
    """What BERT's `strip_accents` takes away is of category Mn: beside accents the vowel signs of
    Indic scripts and Thai, and U+FE0F of emoji, many of which have no combining class."""
    return unicodedata.category(character) == "Mn" or unicodedata.combining(character) > 0
