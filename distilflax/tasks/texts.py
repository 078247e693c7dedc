"""Texts to rows of ids: one text or a pair as BERT takes it, cut where it is too long."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from distilflax.tasks.records import whole
from distilflax.text.tokenizer import Tokenizer

_AT_ONCE = 4096


def pieces(words: Tokenizer, texts: Sequence[str]) -> list[Int[np.ndarray, "_"]]:
    """The ids of each text, without special tokens, uncut."""
    found = []
    # In parts: a tokenizer's own record of a text takes a hundred times the room of its ids.
    for start in range(0, len(texts), _AT_ONCE):
        part = [whole(text) for text in texts[start : start + _AT_ONCE]]
        encoded = words.fast.encode_batch_fast(part, add_special_tokens=False)
        found += [np.array(encoding.ids, np.int32) for encoding in encoded]
    return found


def single(words: Tokenizer, ids: Int[np.ndarray, "_"], max_length: int) -> np.ndarray:
    """[CLS] ids [SEP], of at most `max_length` tokens; these two are always there."""
    # A negative end would keep nearly all.
    return np.array([words.cls_id, *ids[: max(max_length - 2, 0)], words.sep_id], np.int32)


def pair(
    words: Tokenizer, first: Int[np.ndarray, "_"], second: Int[np.ndarray, "_"], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] first [SEP] second [SEP] and its token types: 0 to the first [SEP], then 1.

    Of at most `max_length` tokens; these three are always there.
    """
    keep_first, keep_second = shares(len(first), len(second), max(max_length - 3, 0))
    first, second = first[:keep_first], second[:keep_second]
    ids = np.array([words.cls_id, *first, words.sep_id, *second, words.sep_id], np.int32)
    types = np.repeat(np.array([0, 1], np.int32), [len(first) + 2, len(second) + 1])
    return ids, types


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of either text is kept: the longer one loses first, as in `tokenizers`
    ("longest_first"), until both have half."""
    if first + second <= room:
        return first, second
    half = room // 2
    shorter = min(first, second)
    if shorter > half:
        return (half, room - half) if first <= second else (room - half, half)
    return (first, room - first) if first <= second else (room - second, second)
