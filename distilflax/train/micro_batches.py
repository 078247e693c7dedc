"""A batch in parts, one after the other in one program, where a device has no room for it whole.

Part m takes rows m, m + A, m + 2A, ...: on a sharded batch each device then keeps its own rows,
where a split into consecutive blocks would move every row.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def summed(function: Callable[..., Any], batch: tuple, parts: int) -> Any:
    """Sums of `function(*part, number)` over the parts of a batch, a tuple of arrays [B, ...]."""
    if parts == 1:
        return function(*batch, 0)

    def add(total, numbered):
        number, part = numbered
        return jax.tree.map(jnp.add, total, function(*part, number)), None

    split = _split(batch, parts)
    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(lambda part: function(*part, 0), first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]


def joined(function: Callable[..., Any], batch: tuple, parts: int) -> Any:
    """What `function(*part)` makes of each part, arrays [B / parts, ...], in the batch's order."""
    if parts == 1:
        return function(*batch)
    found = jax.lax.map(lambda part: function(*part), _split(batch, parts))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found)


def _split(batch: tuple, parts: int) -> tuple:
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
