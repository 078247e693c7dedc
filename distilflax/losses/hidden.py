"""Terms on hidden states and on sentence vectors, one value for each position or sequence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distilflax.models import normalize
from distilflax.settings import Term

# Under this norm (of 384 to 1024 float32 numbers) a vector has no direction worth matching.
_LEAST_NORM = 1e-8


def cosine_distance(
    student: Float[Array, "*B D"], teacher: Float[Array, "*B D"], term: Term
) -> Float[Array, "*B"]:
    """1 - cos(student, teacher), computed in float32.

    On last hidden states it is DistilBERT's `loss_cos`, `CosineEmbeddingLoss` with target 1 over
    the real tokens (Sanh et al. 2019, section 2). On pooled vectors it aligns what a sentence
    encoder is used for.
    """
    del term
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    dot = jnp.sum(student * teacher, axis=-1)
    # The squares are bounded before the root, whose gradient at zero is infinite.
    squares = jnp.sum(student**2, axis=-1) * jnp.sum(teacher**2, axis=-1)
    return 1.0 - dot / jnp.sqrt(jnp.maximum(squares, _LEAST_NORM**2))


def mean_squared_error(
    student: Float[Array, "*B D"], teacher: Float[Array, "*B D"], term: Term
) -> Float[Array, "*B"]:
    """Mean over the width of (student - teacher)^2, in float32.

    TinyBERT's hidden and embedding losses (Jiao et al. 2019, arXiv:1909.10351, equations 8 and 9)
    with the learned projection of the term; FitNets' hint (Romero et al. 2015, arXiv:1412.6550).
    """
    del term
    gap = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.mean(jnp.square(gap), axis=-1)


def normalized_squared_error(
    student: Float[Array, "*B D"], teacher: Float[Array, "*B D"], term: Term
) -> Float[Array, "*B"]:
    """Squared distance of the vectors at unit length, summed over the width, in float32.

    The patient loss of PKD (Sun et al. 2019, arXiv:1908.09355, equation 7) where the term's
    positions are `cls` and its layers all but the last. It is twice `cosine_distance`. PKD's own
    code averages over the width: 1/D of this.
    """
    del term
    gap = normalize(student.astype(jnp.float32)) - normalize(teacher.astype(jnp.float32))
    return jnp.sum(jnp.square(gap), axis=-1)


def cka_distance(
    student: Float[Array, "*B D"],
    teacher: Float[Array, "*B E"],
    counted: Bool[Array, "*B"],
    term: Term,
) -> Float[Array, ""]:
    """1 - linear CKA of all counted vectors (Kornblith et al. 2019, arXiv:1905.00414, eq. 3).

        CKA = |X' Y|^2 / (|X' X| |Y' Y|),  Frobenius norms, columns of X and Y centred

    One number for the whole batch. Rotating or scaling either side changes nothing, and the widths
    may differ, hence no projection.
    """
    del term
    x, y = (_centred(side, counted) for side in (student, teacher))
    cross, own_x, own_y = (jnp.sum(jnp.square(_product(a, b))) for a, b in ((x, y), (x, x), (y, y)))
    return 1.0 - cross / jnp.sqrt(jnp.maximum(own_x * own_y, 1e-24))


def _centred(states, counted):
    """[N, D] float32 without their mean and at norm 1, so that fourth powers stay in range."""
    states, counted = states.reshape(-1, states.shape[-1]), counted.reshape(-1, 1)
    states = jnp.where(counted, states.astype(jnp.float32), 0.0)
    mean = jnp.sum(states, axis=0) / jnp.maximum(jnp.sum(counted), 1)
    states = jnp.where(counted, states - mean, 0.0)
    return states * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(states)), 1e-24))


def _product(a, b):
    # Left alone, an accelerator would multiply float32 in half precision, and nearly equal
    # matrices are compared here.
    return jnp.einsum("nd,ne->de", a, b, precision=jax.lax.Precision.HIGHEST)
