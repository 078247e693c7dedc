"""Terms on logits: one value for each row, a row being one position's distribution over words.

Each is a pure function of student logits [N, V], teacher logits [N, V], labels [N] and the term's
settings. The algebra (`total.py`) sums over the rows that the term's positions select and divides
by their number, so that "batchmean" over tokens is what every one of them comes to.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distilflax.settings import Term


def kl(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """Temperature-scaled KL divergence of the student from the teacher (Hinton et al. 2015).

        T^2 sum_v p_v (log p_v - log q_v),  p = softmax(teacher / T), q = softmax(student / T)

    T^2 keeps the gradient's size independent of T. This is DistilBERT's `loss_ce`
    (`KLDivLoss(reduction="batchmean") * T**2` over the selected tokens). Elsewhere: without T^2
    (TextBrewer) multiply their weight by 1 / T^2; `reduction="mean"` divides by V as well.
    """
    del labels
    temperature = term.temperature
    # The two maxima and normalisers are the only reductions: the rest of the row stays one loop.
    student, teacher = student / temperature, teacher / temperature
    log_ratio_constant = jax.nn.logsumexp(student, axis=-1) - jax.nn.logsumexp(teacher, axis=-1)
    probabilities = jax.nn.softmax(teacher, axis=-1)
    cross = jnp.sum(probabilities * (teacher - student), axis=-1)
    return temperature**2 * (cross + log_ratio_constant)


def cross_entropy(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"] | None,
    labels: Int[Array, " N"],
    term: Term | None = None,
) -> Float[Array, " N"]:
    """Masked-LM cross-entropy, -log softmax(student)[label] (Devlin et al. 2019), in nats."""
    del teacher, term
    chosen = jnp.take_along_axis(student, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(student, axis=-1) - chosen


def squared_error(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """sum_v (student - teacher)^2, the sum over words as in DistilBERT's `alpha_mse`.

    Implementations that average over the words (`MSELoss()` of the logits) give 1/V of this.
    """
    del labels, term
    return jnp.sum(jnp.square(student - teacher), axis=-1)


def correct(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"] | None,
    labels: Int[Array, " N"],
) -> Float[Array, " N"]:
    """1 where the likeliest word is the label: a metric, without a gradient."""
    del teacher
    return (jnp.argmax(student, axis=-1) == labels).astype(jnp.float32)


def agreement(
    student: Float[Array, "N V"], teacher: Float[Array, "N V"], labels: Int[Array, " N"]
) -> Float[Array, " N"]:
    """1 where student and teacher have the same likeliest word: a metric, without a gradient."""
    del labels
    return (jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)).astype(jnp.float32)
