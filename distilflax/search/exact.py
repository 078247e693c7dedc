"""Exact search: the documents nearest to each query, block by block."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from distilflax.errors import UserError

# Scores held at once: 512 x 4096 floats are 8 MB, which stay in a CPU's cache, while the matrix
# products are large enough for any device.
QUERY_BLOCK = 512
DOCUMENT_BLOCK = 4096
# Blocks of documents that are on the device at once: 65,536 vectors of 384 floats are 100 MB.
_BLOCKS_AT_ONCE = 16


def nearest(
    queries: Real[np.ndarray, "Q D"],
    documents: Real[np.ndarray, "N _"],
    k: int,
    *,
    decode: Callable[[np.ndarray], np.ndarray] = np.asarray,
    query_block: int = QUERY_BLOCK,
    document_block: int = DOCUMENT_BLOCK,
) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """Scores and indices of the K = min(k, N) documents of greatest inner product, best first.

    With unit vectors that is the cosine. Every document is looked at: the result is that of
    sorting all Q x N scores, of which only one block exists at a time. Of equal scores the
    document that comes first wins.

    `documents` may be a `np.memmap`, and of any real type, or whatever `decode` makes [n, D] of
    (`compact.py`): 16 blocks of them at a time are made float32 and put on the device, so that what
    this takes beside its arguments does not grow with their number.

    Raises:
      UserError: queries or documents that are no rows of numbers or of unlike widths, a k below 0,
        or vectors that have no finite score.
    """
    check_vectors(queries, "The queries")
    check_vectors(documents, "The documents")
    k = min(checked_k(k), len(documents))
    if not len(queries) or not k:
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int32)
    # Powers of two, so that queries and documents of any number share a few programs.
    document_block = min(document_block, _rounded_up(len(documents)))
    query_block = min(query_block, _rounded_up(len(queries)))
    asked = [jnp.asarray(block) for block in _into_blocks(queries, query_block)]
    found = [_nothing(query_block, _rounded_up(k)) for _ in asked]
    # Every part has as many blocks, so that all run the same program; the last is filled up.
    blocks = min(_BLOCKS_AT_ONCE, -(-len(documents) // document_block))
    for first in range(0, len(documents), blocks * document_block):
        part = decode(documents[first : first + blocks * document_block])
        if part.shape[1] != queries.shape[1]:
            raise UserError(
                f"The queries have {queries.shape[1]} coordinates and the documents "
                f"{part.shape[1]}; make both with the same model."
            )
        placed = jnp.asarray(_into_blocks(part, document_block, blocks))
        found = [
            _nearest(queries, placed, best, first, len(part))
            for queries, best in zip(asked, found, strict=True)
        ]
        # Dispatched work keeps its blocks alive: wait, or all of them would be there at once.
        jax.block_until_ready(found)
    scores, indices = (
        np.concatenate([np.asarray(block) for block in part])[: len(queries), :k]
        for part in zip(*found, strict=True)
    )
    check_finite(scores, indices)
    return scores, indices


def check_vectors(vectors: Any, name: str) -> None:
    """Raises a UserError, which calls them `name`, unless they are an array [n, D] of numbers."""
    shape, kind = getattr(vectors, "shape", None), getattr(vectors, "dtype", None)
    try:
        numbers = np.dtype(kind).kind not in "OSUMmc"
    except TypeError:
        numbers = False  # torch's, say
    if shape is None or kind is None or len(shape) != 2 or not numbers:
        what = type(vectors).__name__ if kind is None else f"{kind} of shape {shape}"
        raise UserError(
            f"{name} are given as {what:.80}; give an array of numpy's numbers, "
            "[vectors, coordinates]."
        )


def checked_k(k: Any) -> int:
    """`k` as an int; raises a UserError unless it is a whole number of at least 0."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise UserError(f"k is {k!r:.20}, and says how many are wanted; give 0, 1, 2 or more.")
    return int(k)


def check_finite(scores: Float[np.ndarray, "Q K"], found: Int[np.ndarray, "Q K"]) -> None:
    """Raises a UserError if any score is not finite: NaN cannot be put in order, and would stand
    before or behind everything as the device has it."""
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        query, place = wrong[0]
        raise UserError(
            f"Query {query} and document {found[query, place]} have no finite score, so a vector "
            "holds NaN or numbers that are too large; leave it out."
        )


def at_unit_length(vectors: Real[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Each divided by its length; one of zeros stays what it is."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _rounded_up(number: int) -> int:
    """The power of two that is not below a number of at least 1."""
    return 1 << (number - 1).bit_length()


def _nothing(queries: int, k: int) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    return jnp.full((queries, k), -jnp.inf), jnp.zeros((queries, k), jnp.int32)


@partial(jax.jit, donate_argnums=2)
def _nearest(
    queries: Float[Array, "Q D"],
    blocks: Float[Array, "blocks M D"],
    best: tuple[Float[Array, "Q K"], Int[Array, "Q K"]],
    first: Int[Array, ""] | int,
    number: Int[Array, ""] | int,
) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    """`best` after `number` more documents, the first of which is document `first` of all."""
    size, k = blocks.shape[1], best[0].shape[1]

    def visit(best, block):
        start, documents = block
        scores = jnp.einsum("qd,md->qm", queries, documents, precision=jax.lax.Precision.HIGHEST)
        real = start * size + jnp.arange(size) < number
        # What is not finite comes first: `check_finite` then sees it, whatever NaN's order is.
        scores = jnp.where(jnp.isfinite(scores), scores, jnp.inf)
        # top_k puts 0.0 before -0.0. (A sum with 0.0, which is 0.0, is simplified away.)
        scores = jnp.where(scores == 0, 0.0, scores)
        scores, at = jax.lax.top_k(jnp.where(real, scores, -jnp.inf), min(k, size))
        # What was found before stands on the left: top_k prefers the left one of equals.
        scores = jnp.concatenate([best[0], scores], axis=1)
        index = jnp.concatenate([best[1], first + start * size + at], axis=1)
        scores, at = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(index, at, axis=1)), None

    return jax.lax.scan(visit, best, (jnp.arange(len(blocks)), blocks))[0]


def _into_blocks(
    rows: Real[np.ndarray, "N D"], size: int, blocks: int = 0
) -> Float[np.ndarray, "blocks size D"]:
    blocks = blocks or -(-len(rows) // size)
    padded = np.zeros((blocks * size, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return padded.reshape(blocks, size, -1)
