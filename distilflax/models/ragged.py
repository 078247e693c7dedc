"""Rows of unlike lengths without their padding: the real tokens of a batch one after the other.

Dense layers, LayerNorms and activations, nearly all of an encoder's work, see each token by itself,
and need not see what is no token; attention alone wants rows. Shapes use B rows of length L, and T
places for their real tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


class Real(NamedTuple):
    """Where the real tokens of [B, L] are, and back.

    place: of each token in the flattened rows, rising; B L and more where there are fewer than T.
    token: which of the T stands at a place; T at padding.
    """

    place: Int[Array, " T"]
    token: Int[Array, "B L"]


def real_tokens(attention_mask: Int[Array, "B L"], places: Int[Array, "1 T"]) -> Real:
    """`places` lists where `attention_mask` is not 0, all of it."""
    real = attention_mask > 0
    number = jnp.cumsum(real.ravel()).reshape(real.shape) - 1
    return Real(places[0], jnp.where(real, number, places.size))


def tokens_of(rows: Shaped[Array, "B L *rest"], real: Real | None) -> Shaped[Array, "R S *rest"]:
    """The real tokens as one row, [1, T, ...]; zeros where there are fewer than T. Without `real`
    the rows as they are."""
    if real is None:
        return rows
    flat = rows.reshape(-1, *rows.shape[2:])
    return _taken(flat, real.place, real.token.ravel())[None]


def rows_of(tokens: Shaped[Array, "R S *rest"], real: Real | None) -> Shaped[Array, "B L *rest"]:
    """Back again: what `tokens_of` made, in its rows; zeros at padding."""
    if real is None:
        return tokens
    flat = _taken(tokens[0], real.token.ravel(), real.place)
    return flat.reshape(*real.token.shape, *tokens.shape[2:])


@jax.custom_vjp
def _taken(x: Array, at: Int[Array, " to"], back: Int[Array, " from"]) -> Array:
    """`x` at the places `at`, each of which is taken once and lies `back` there; zeros beyond x.

    Hence the gradient is the same the other way round, where that of an indexing is a scatter,
    which adds row after row.
    """
    return x.at[at].get(mode="fill", fill_value=0)


def _forward(x: Array, at: Array, back: Array) -> tuple[Array, tuple[Array, Array]]:
    return _taken(x, at, back), (at, back)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    at, back = kept
    return _taken(gradient, back, at), None, None


_taken.defvjp(_forward, _backward)
