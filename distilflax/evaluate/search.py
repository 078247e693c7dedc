"""Exact search: the documents nearest to each query, block by block."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Scores held at once: 512 x 4096 floats are 8 MB, which stay in a CPU's cache, while the matrix
# products are large enough for any device.
QUERY_BLOCK = 512
DOCUMENT_BLOCK = 4096


def nearest(
    queries: Float[np.ndarray, "Q D"],
    documents: Float[np.ndarray, "N D"],
    k: int,
    *,
    query_block: int = QUERY_BLOCK,
    document_block: int = DOCUMENT_BLOCK,
) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """Scores and indices of the K = min(k, N) documents of greatest inner product, best first.

    With unit vectors that is the cosine. Every document is looked at: the result is that of
    sorting all Q x N scores, of which only one block exists at a time. Of equal scores the
    document that comes first wins.
    """
    k = min(k, len(documents))
    if not len(queries) or not k:
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int32)
    blocks = jnp.asarray(_into_blocks(documents, min(document_block, len(documents))))
    query_block = min(query_block, len(queries))
    found = [
        _nearest(jnp.asarray(block), blocks, len(documents), k)
        for block in _into_blocks(queries, query_block)
    ]
    scores, indices = (np.concatenate(part)[: len(queries)] for part in zip(*found, strict=True))
    return scores, indices


@partial(jax.jit, static_argnums=(2, 3))
def _nearest(
    queries: Float[Array, "Q D"], blocks: Float[Array, "blocks M D"], number: int, k: int
) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    size = blocks.shape[1]

    def visit(best, block):
        start, documents = block
        scores = jnp.einsum("qd,md->qm", queries, documents, precision=jax.lax.Precision.HIGHEST)
        real = start * size + jnp.arange(size) < number
        scores, at = jax.lax.top_k(jnp.where(real, scores, -jnp.inf), min(k, size))
        # What was found before stands on the left: top_k prefers the left one of equals.
        scores = jnp.concatenate([best[0], scores], axis=1)
        index = jnp.concatenate([best[1], start * size + at], axis=1)
        scores, at = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(index, at, axis=1)), None

    nothing = (jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
    return jax.lax.scan(visit, nothing, (jnp.arange(len(blocks)), blocks))[0]


def _into_blocks(rows: Float[np.ndarray, "N D"], size: int) -> Float[np.ndarray, "blocks size D"]:
    blocks = -(-len(rows) // size)
    padded = np.pad(np.asarray(rows, np.float32), ((0, blocks * size - len(rows)), (0, 0)))
    return padded.reshape(blocks, size, -1)
