"""Whole numbers for weights: what every format of 8 bits stores."""

import numpy as np
from jaxtyping import Float, Int8


def quantized(
    matrix: Float[np.ndarray, "M N"], largest: int, axis: int
) -> tuple[Int8[np.ndarray, "M N"], Float[np.ndarray, "_"]]:
    """Whole numbers from -largest to largest, and their scales: matrix ~ numbers * scales.

    One scale for each vector along `axis`: 0 for each column, 1 for each row. Symmetric, because a
    zero point of the weights would cost a sum over the activations in every product.
    """
    scale = np.abs(matrix).max(axis=axis) / largest
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    numbers = np.rint(matrix / np.expand_dims(scale, axis))
    return np.clip(numbers, -largest, largest).astype(np.int8), scale
