"""Exact search: the documents nearest to each query, block by block."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

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
    (`compact.py`): 16 blocks of them at a time are made
    float32 and put on the device, so that what this takes beside its arguments does not grow with
    their number.
    """
    k = min(k, len(documents))
    if not len(queries) or not k:
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int32)
    document_block = min(document_block, len(documents))
    query_block = min(query_block, len(queries))
    asked = [jnp.asarray(block) for block in _into_blocks(queries, query_block)]
    found = [_nothing(query_block, k) for _ in asked]
    # Every part has as many blocks, so that all run the same program; the last is filled up.
    blocks = min(_BLOCKS_AT_ONCE, -(-len(documents) // document_block))
    for first in range(0, len(documents), blocks * document_block):
        part = decode(documents[first : first + blocks * document_block])
        placed = jnp.asarray(_into_blocks(part, document_block, blocks))
        found = [
            _nearest(queries, placed, best, first, len(part))
            for queries, best in zip(asked, found, strict=True)
        ]
        # Dispatched work keeps its blocks alive: wait, or all of them would be there at once.
        jax.block_until_ready(found)
    scores, indices = (
        np.concatenate([np.asarray(block) for block in part])[: len(queries)]
        for part in zip(*found, strict=True)
    )
    return scores, indices


def at_unit_length(vectors: Real[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Each divided by its length; one of zeros stays what it is."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


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
