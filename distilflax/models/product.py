"""The product of a dense layer, x W, in the form whose gradients are fast."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from distilflax.models import int8

ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))


def product(int8_range: str) -> Callable[..., Array]:
    """What a dense layer multiplies with: `over_rows`, by way of int8 numbers unless "none"."""
    if int8_range == "none":
        return over_rows

    def rounded(x: Array, kernel: Array, dimensions: Any = None, **rest: Any) -> Array:
        kernel = int8.rounded(kernel, int8.LARGEST[int8_range], axis=0)
        return over_rows(int8.rounded_activations(x), kernel, dimensions, **rest)

    return rounded


def over_rows(
    x: Float[Array | np.ndarray, "*B D"],
    kernel: Float[Array | np.ndarray, "D N"],
    dimensions: Any = None,
    **rest: Any,
) -> Float[Array, "*B N"]:
    """`x` times `kernel`, as `nn.Dense` calls `jax.lax.dot_general`: all axes of x but the last
    are made one.

    For the sake of the kernel's gradient, x^T g: where that sums over two axes, batch and length,
    XLA's CPU backend transposes all of g in memory and then takes its slow kernel. A gradient of
    3 layers of 384, 40 x 256 tokens, on a core of an AMD EPYC of 2 GHz: 17 s so, and 13.9 over one
    axis, where every product runs at what the core can do.
    """
    del dimensions
    rows = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, ROWS_BY_COLUMNS, **rest)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])
