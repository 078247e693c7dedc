"""Float arithmetic that gives what an int8 file gives: for a student that is trained for one.

Number for number the rounding of `export/onnx_weights.Int8Weights`: kernels with one scale a
column, tables with one a row, activations with one scale and zero point a call. Gradients pass as
if nothing had been rounded (the straight-through estimator: Bengio et al. 2013, arXiv:1308.3432;
in this use Jacob et al. 2018, arXiv:1712.05877). Of a model with a masked-LM head the decoder
stays float32, here and in training alone: it would be rounded anew for every chunk of words.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The greatest weight in magnitude, by range; why there are two: `export/onnx_weights.py`.
LARGEST = {"portable": 64, "full": 127}
# Of tables that are only looked up in.
LARGEST_ROW = 127


def rows(
    int8_range: str, table: Float[Array | np.ndarray, "*B D"]
) -> Float[Array | np.ndarray, "*B D"]:
    """Rows of a table of embeddings as the file keeps them."""
    return table if int8_range == "none" else rounded(table, LARGEST_ROW, axis=-1)


def rounded(weights: Float[Array, "*B N"], largest: int, axis: int) -> Float[Array, "*B N"]:
    """Multiples, from -largest to largest, of one scale for each vector along `axis`."""
    exact = weights.astype(jnp.float32)
    scale = jnp.max(jnp.abs(exact), axis=axis, keepdims=True) / largest
    scale = jnp.where(scale > 0, scale, 1.0)
    numbers = jnp.clip(jnp.round(exact / scale), -largest, largest)
    return _straight_through(weights, numbers * scale)


def rounded_activations(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """ONNX's DynamicQuantizeLinear and back: 256 steps over the range of all of `x` and 0."""
    exact = x.astype(jnp.float32)
    low, high = jnp.minimum(jnp.min(exact), 0.0), jnp.maximum(jnp.max(exact), 0.0)
    scale = (high - low) / 255
    scale = jnp.where(scale > 0, scale, 1.0)
    zero = jnp.round(jnp.clip(-low / scale, 0, 255))
    numbers = jnp.clip(jnp.round(exact / scale) + zero, 0, 255)
    return _straight_through(x, (numbers - zero) * scale)


def _straight_through(x: Array, value: Array) -> Array:
    return x + jax.lax.stop_gradient(value.astype(x.dtype) - x)
