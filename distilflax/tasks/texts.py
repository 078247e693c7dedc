"""Texts to rows of ids: one text or a pair as the model takes it, cut where it is too long."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from distilflax.errors import UserError
from distilflax.settings import Encoder
from distilflax.tasks.records import whole
from distilflax.text.pair_layout import PairLayout
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
    """The row of two texts, [CLS] first [SEP] second [SEP] in BERT's layout, and its token types.

    Of at most `max_length` tokens; the control tokens are always there.

    Raises:
      UserError: as `layout` does.
    """
    keep_first, keep_second = shares(len(first), len(second), room_of_pair(words, max_length))
    return joined(words, layout(words), first[:keep_first], second[:keep_second])


def rows(
    words: Tokenizer, first: Sequence[str], second: Sequence[str] | None, max_length: int
) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """(ids, token types, how many were cut) of texts, or of pairs of texts, a row for each."""
    found = pieces(words, first)
    if second is None:
        ids = [single(words, part, max_length) for part in found]
        cut = sum(len(part) > max_length - 2 for part in found)
        return ids, [np.zeros(len(row), np.int32) for row in ids], cut
    both = [*zip(found, pieces(words, second), strict=True)]
    laid = [pair(words, a, b, max_length) for a, b in both]
    room = room_of_pair(words, max_length)
    cut = sum(len(a) + len(b) > room for a, b in both)
    return [ids for ids, _ in laid], [types for _, types in laid], cut


def joined(
    words: Tokenizer, pairs: PairLayout, first: Int[np.ndarray, "_"], second: Int[np.ndarray, "_"]
) -> tuple[np.ndarray, np.ndarray]:
    """The row of two texts that fit, and its token types."""
    ids = [[words.cls_id], first, pairs.between, second, [words.sep_id]]
    times = [1, len(first), *(1 for _ in pairs.between), len(second), 1]
    types = np.repeat(np.array(pairs.types, np.int32), times)
    return np.concatenate(ids).astype(np.int32), types


def layout(words: Tokenizer) -> PairLayout:
    """How the model's tokenizer lays out two texts.

    Raises:
      UserError: in no way that can be told.
    """
    if words.pair is None:
        raise UserError(
            f"{words.source} puts two texts into one row otherwise than as [CLS] first [SEP] "
            "second [SEP], so that its model reads no pairs here; give its post_processor such a "
            "template for pairs."
        )
    return words.pair


def room_of_pair(words: Tokenizer, max_length: int) -> int:
    """How many tokens two texts may have beside the control tokens of their row."""
    return max(max_length - 2 - len(layout(words).between), 0)


def with_types(words: Tokenizer, encoder: Encoder) -> bool:
    """Whether a model is given token types: where it tells some apart, and the files of its
    tokenizer do not leave them out."""
    return words.typed and encoder.type_vocab_size > 1


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
