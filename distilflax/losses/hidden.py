"""Terms on hidden states and on sentence vectors, one value for each position or sequence."""

import jax.numpy as jnp
from jaxtyping import Array, Float

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
