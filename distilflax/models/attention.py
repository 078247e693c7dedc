"""Multi-head attention as pure functions: who may look at whom, and the weighted sum.

Shapes use B batch, L length, Q queries (L, or the first token alone), H heads, K width of a head.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distilflax.settings import Compute


def visible(
    attention_mask: Int[Array, "B L"], segment_ids: Int[Array, "B L"] | None
) -> Bool[Array, "B 1 #L L"]:
    """True where a query (second to last axis) may look at a key (last axis).

    Keys that are padding are never visible. With `segment_ids` (packed passages) a token sees its
    own passage only.
    """
    mask_BxLk = (attention_mask > 0)[:, None, None, :]
    if segment_ids is None:
        return mask_BxLk
    same_BxLqxLk = segment_ids[:, :, None] == segment_ids[:, None, :]
    return mask_BxLk & same_BxLqxLk[:, None]


# What cuDNN's kernel takes on every card that has one; beyond it jax refuses to compile.
_LARGEST_HEAD, _HEAD_MULTIPLE, _LENGTH_MULTIPLE = 128, 8, 2


def takes_fused(
    compute: Compute, dropout: float, wanted: bool, length: Any, head_size: int
) -> bool:
    """Whether `jax.nn.dot_product_attention` serves this call.

    It has no dropout and does not show its probabilities, so those calls take the plain path
    whatever the setting. Left to itself ("auto") it is used where it has a fused kernel: half
    precision on a GPU (cuDNN), of heads and lengths that this takes. On CPU and TPU it compiles to
    what the plain path compiles to.
    """
    if compute.attention == "plain" or dropout > 0 or wanted:
        return False
    if compute.attention == "fused":
        return True
    on_gpu = jax.default_backend() == "gpu" and compute.dtype == "bfloat16"
    return on_gpu and _kernel_takes(length, head_size)


def _kernel_takes(length: Any, head_size: int) -> bool:
    # A length that an exported program leaves open is no int, and may be odd.
    known = isinstance(length, int) and length % _LENGTH_MULTIPLE == 0
    return known and head_size <= _LARGEST_HEAD and head_size % _HEAD_MULTIPLE == 0


def fused_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    mask: Bool[Array, "B 1 #L L"],
) -> Float[Array, "B L H K"]:
    """softmax(q k^T / sqrt(K)) v by the device's fused kernel (cuDNN on a GPU, where it takes these
    shapes)."""
    length, head_size = query.shape[1], query.shape[3]
    on_gpu = jax.default_backend() == "gpu" and query.dtype != jnp.float32
    on_gpu = on_gpu and _kernel_takes(length, head_size)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=jnp.broadcast_to(mask, (mask.shape[0], 1, length, length)),
        implementation="cudnn" if on_gpu else "xla",
    )


def attention_scores(
    query: Float[Array, "B Q H K"], key: Float[Array, "B L H K"]
) -> Float[Array, "B H Q L"]:
    """q k^T / sqrt(K) before the mask, in float32 (the "attention scores" of TinyBERT)."""
    query, key = _heads_first(query * (query.shape[-1] ** -0.5)), _heads_first(key)
    return jnp.matmul(query, key.mT, preferred_element_type=jnp.float32)


def softmax_parts(
    scores: Float[Array, "B H Q L"], mask: Bool[Array, "B 1 #Q L"]
) -> tuple[Float[Array, "B H Q L"], Float[Array, "B H Q 1"]]:
    """Softmax over the visible keys as numerator and denominator, in float32.

    Apart, because to divide the weighted sum of the values is a matter of L K numbers where the
    probabilities are L L, and a CPU's fused loops are shorter for it.

    Hidden keys get the lowest finite float32: a query that sees nothing (a row of padding) ends
    with equal probabilities, where -inf would give NaN, which no later mask can take out of a
    gradient.
    """
    masked = scores + jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    # A constant: softmax does not change with what is subtracted, so neither does its gradient.
    highest = jax.lax.stop_gradient(jnp.max(masked, axis=-1, keepdims=True))
    numerator = jnp.exp(masked - highest)
    return numerator, jnp.sum(numerator, axis=-1, keepdims=True)


def weighted_values(
    weights: Float[Array, "B H Q L"], value: Float[Array, "B L H K"]
) -> Float[Array, "B H Q K"]:
    """The sum of the values by weight, in the values' precision."""
    return jnp.matmul(weights.astype(value.dtype), _heads_first(value))


def plain_attention(
    scores: Float[Array, "B H Q L"],
    mask: Bool[Array, "B 1 #Q L"],
    value: Float[Array, "B L H K"],
) -> Float[Array, "B Q H K"]:
    """softmax(scores) v over the visible keys."""
    numerator, denominator = softmax_parts(scores, mask)
    context = weighted_values(numerator, value) / denominator
    return _heads_first(context.astype(value.dtype))


def shown_attention(
    scores: Float[Array, "B H Q L"],
    mask: Bool[Array, "B 1 #Q L"],
    value: Float[Array, "B L H K"],
    dropout: Callable[[Float[Array, "B H Q L"]], Float[Array, "B H Q L"]],
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B H Q L"]]:
    """The same by way of the probabilities, which are returned; `dropout` is applied to them."""
    numerator, denominator = softmax_parts(scores, mask)
    probabilities = numerator / denominator
    return _heads_first(weighted_values(dropout(probabilities), value)), probabilities


def _heads_first(x: Float[Array, "B M N K"]) -> Float[Array, "B N M K"]:
    """[B, L, H, K] to [B, H, L, K], or back.

    Products over adjacent batch dimensions are what a CPU's matrix library takes; left to
    `einsum("bqhk,bmhk->bhqm")` XLA's CPU backend loops by itself and takes four times as long.
    """
    return jnp.swapaxes(x, 1, 2)
