"""Vectors as an index reads them: in blocks, so that a `np.memmap` is never read whole."""

from typing import Any

import numpy as np
from jaxtyping import Float, Real

from distilflax.errors import UserError
from distilflax.search.exact import at_unit_length

# Vectors that are float32 at once while an index is built: 65,536 of 384 coordinates are 100 MB.
BLOCK = 65_536
_UNIT = 1e-2


def ranges(vectors: Real[np.ndarray, "N D"], scale: bool) -> Float[np.ndarray, "2 D"]:
    """Least value and extent of every coordinate."""
    least = np.full(vectors.shape[1], np.inf, np.float32)
    most = -least
    for first in range(0, len(vectors), BLOCK):
        block = _block(vectors, slice(first, first + BLOCK), scale)
        least, most = np.minimum(least, block.min(axis=0)), np.maximum(most, block.max(axis=0))
    return np.stack([least, most - least])


def _block(vectors: Real[np.ndarray, "N D"], rows: Any, scale: bool) -> Float[np.ndarray, "n D"]:
    block = np.ascontiguousarray(vectors[rows], np.float32)
    return at_unit_length(block) if scale else block


def checked(
    vectors: Real[np.ndarray, "N D"], rows: Any, scale: bool, first: int | None = None
) -> Float[np.ndarray, "n D"]:
    """The float32 vectors of `rows`, numbers or a slice that begins at `first`; divided by their
    lengths if `scale`.

    Raises:
      UserError: one that is not of unit length.
    """
    block = _block(vectors, rows, scale)
    off = np.abs(np.linalg.norm(block, axis=1) - 1)
    # Written so that a NaN is refused too, and what has no length.
    wrong = np.flatnonzero(~(off <= _UNIT))
    if len(wrong):
        row = rows[wrong[0]] if first is None else first + wrong[0]
        raise UserError(
            f"Vector {row} is not of unit length, and cells are made for cosines; divide each "
            "vector by its length, or search exactly."
        )
    return block
