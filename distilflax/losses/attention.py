"""Terms on attention: one value for each query, a mean over the heads.

Both models' scores are q k / sqrt(K) before the softmax, and `visible` says which keys a query may
look at; a query that is padding sees none, and its value means nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distilflax.losses.hidden import cosine_distance
from distilflax.settings import Term


def scores_squared_error(
    student: Float[Array, "B H L L"],
    teacher: Float[Array, "B H L L"],
    visible: Bool[Array, "B 1 L L"],
    term: Term,
) -> Float[Array, "B L"]:
    """Mean over the visible keys of (student - teacher)^2, of scores (TinyBERT, Jiao et al. 2019,
    arXiv:1909.10351, equation 7).

    TinyBERT's code sums over the layers and averages over the padded square: for full sequences
    its weight 1 is a weight here of the number of layers.
    """
    del term
    square = jnp.square(jnp.where(visible, student - teacher, 0.0))
    keys = jnp.maximum(jnp.sum(visible, axis=-1), 1)
    return jnp.mean(jnp.sum(square, axis=-1) / keys, axis=1)


def probabilities_kl(
    student: Float[Array, "B H L L"],
    teacher: Float[Array, "B H L L"],
    visible: Bool[Array, "B 1 L L"],
    term: Term,
) -> Float[Array, "B L"]:
    """KL of the student's attention from the teacher's (MiniLM, Wang et al. 2020,
    arXiv:2002.10957, equation 6), sum over keys of p (log p - log q), mean over heads."""
    del term
    log_p, log_q = log_softmax(teacher, visible), log_softmax(student, visible)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), axis=1)


def probabilities_cosine(
    student: Float[Array, "B H L L"],
    teacher: Float[Array, "B H L L"],
    visible: Bool[Array, "B 1 L L"],
    term: Term,
) -> Float[Array, "B L"]:
    """1 - cosine between the two models' attention of each query, mean over heads.

    The cosine keeps the proportions of the probabilities and so listens to the few large ones,
    where `probabilities_kl` also hears the many small ones.
    """
    p, q = (jnp.where(visible, jnp.exp(log_softmax(x, visible)), 0.0) for x in (teacher, student))
    return jnp.mean(cosine_distance(q, p, term), axis=1)


def log_softmax(
    scores: Float[Array, "B H L L"], visible: Bool[Array, "B 1 L L"]
) -> Float[Array, "B H L L"]:
    """Log of the attention over the visible keys, in float32; at the others a finite low number.

    The lowest finite number, not -inf: a query that sees nothing would get NaN, and a gradient
    multiplies that into everything.
    """
    return jax.nn.log_softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
