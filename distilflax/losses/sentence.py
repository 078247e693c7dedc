"""Terms that compare the sequences of a batch with each other: one value for each, the anchor.

They are of the whole batch: `counted` says which sequences are there at all, and a batch that is
cut into micro-batches would have other neighbours, so `checks.py` refuses accumulation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distilflax.models import normalize
from distilflax.settings import Term


def similarity_squared_error(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B E"],
    counted: Bool[Array, " B"],
    term: Term,
) -> Float[Array, " B"]:
    """Mean over the other sequences j of (sim(s_i, s_j) - sim(t_i, t_j))^2.

    The structure of the batch and no coordinates, so that widths may differ (Tung and Mori 2019,
    arXiv:1907.09682, who divide each row by its norm and keep the diagonal; Park et al. 2019,
    arXiv:1904.05068).
    """
    others = _others(counted)
    gap = _similarities(student, student, term) - _similarities(teacher, teacher, term)
    return _mean_where(others, jnp.square(gap))


def info_nce(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B D"],
    counted: Bool[Array, " B"],
    term: Term,
) -> Float[Array, " B"]:
    """-log of the share of the own teacher vector among the batch's (van den Oord et al. 2018).

        -log (exp(sim(s_i, t_i) / T) / sum_j exp(sim(s_i, t_j) / T))

    arXiv:1807.03748, equation 4. `MultipleNegativesRankingLoss` of sentence-transformers with the
    student's vectors as anchors and the teacher's as positives; its `scale` 20 is T = 0.05.
    """
    scores = _similarities(student, teacher, term) / term.temperature
    # Finite, for the anchors that do not count, which may see nobody.
    seen = jnp.where(counted, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.logsumexp(seen, axis=-1) - jnp.diagonal(scores)


def margin_squared_error(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B E"],
    counted: Bool[Array, " B"],
    term: Term,
) -> Float[Array, " B"]:
    """Margin-MSE over triples of the batch (Hofstätter et al. 2020, arXiv:2010.02666, equation 2).

        mean over n of ((sim(s_i, s_p) - sim(s_i, s_n)) - (sim(t_i, t_p) - sim(t_i, t_n)))^2

    Nobody labelled the batch: the positive p of anchor i is the sequence that the teacher finds
    nearest to it, and every other one is a negative n. With `similarity="dot"` it is
    `MarginMSELoss` of sentence-transformers on those triples.
    """
    others = _others(counted)
    ours, theirs = _similarities(student, student, term), _similarities(teacher, teacher, term)
    lowest = jnp.finfo(jnp.float32).min
    positive = jnp.argmax(jnp.where(others, theirs, lowest), axis=-1)[:, None]
    negatives = others & (jnp.arange(len(counted)) != positive)
    # The difference of the margins is the margin of the difference.
    gap = ours - theirs
    gap = jnp.take_along_axis(gap, positive, axis=-1) - gap
    return _mean_where(negatives, jnp.square(gap))


def _similarities(a, b, term):
    if term.similarity == "cosine":
        a, b = normalize(a), normalize(b)
    # Left alone, an accelerator would multiply float32 in half precision.
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _others(counted):
    """[B, B]: whom an anchor is compared with; itself is nobody's neighbour."""
    return counted[None, :] & counted[:, None] & ~jnp.eye(len(counted), dtype=bool)


def _mean_where(chosen, values):
    total = jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(chosen, axis=-1), 1)
