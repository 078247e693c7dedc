"""Terms that compare the sequences of a batch with each other: one value for each, the anchor.

They are of the whole batch: `counted` says which sequences are there at all, and a batch that is
cut into micro-batches would have other neighbours, so `checks.py` refuses accumulation.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distilflax.losses.view import Sum
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
    gap = similarities(student, student, term) - similarities(teacher, teacher, term)
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
    allowed = jnp.broadcast_to(counted, (len(counted), len(counted)))
    return contrast(student, teacher, allowed, term)


def contrast(
    anchors: Float[Array, "B D"],
    candidates: Float[Array, "N D"],
    allowed: Bool[Array, "B N"],
    term: Term,
) -> Float[Array, " B"]:
    """The same where there may be more candidates than anchors, and not everyone meets everyone.

    Candidate i is the positive of anchor i; those beyond B are hard negatives, and an anchor sees
    those that are `allowed`.
    """
    scores = similarities(anchors, candidates, term) / term.temperature
    # Finite, for the anchors that do not count, which may see nobody.
    seen = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.logsumexp(seen, axis=-1) - jnp.diagonal(scores)


def allowed(text: Array) -> Bool[Array, "B candidates"]:
    """Which texts of a batch a query is told to keep away from, its own positive among them.

    Args:
      text: [B, G], the number of each text; texts that are alike have one number, and what is not
        there is negative.

    A text that is known to belong to the query is no negative: its positive in another group, or
    the positive of the same query there, or the query itself.
    """
    query, positive = text[:, 0], text[:, 1]
    others = candidates(text)
    own = jnp.arange(len(others)) == jnp.arange(len(query))[:, None]
    asked_too = jnp.pad(query[:, None] == query[None, :], ((0, 0), (0, len(others) - len(query))))
    known = asked_too | (others == positive[:, None]) | (others == query[:, None])
    return own | ((others >= 0) & ~known)


def candidates(groups: Array) -> Array:
    """[B, G, ...] to [B (G - 1), ...]: every positive, then every first negative, ..."""
    return jnp.swapaxes(groups[:, 1:], 0, 1).reshape(-1, *groups.shape[2:])


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
    ours, theirs = similarities(student, student, term), similarities(teacher, teacher, term)
    lowest = jnp.finfo(jnp.float32).min
    positive = jnp.argmax(jnp.where(others, theirs, lowest), axis=-1)[:, None]
    negatives = others & (jnp.arange(len(counted)) != positive)
    return _margins(ours - theirs, positive, negatives)


def margin_to_scores(
    similarity: Float[Array, "B N"], scores: Float[Array, "B N"], counted: Bool[Array, "B N"]
) -> Float[Array, " B"]:
    """The same over given triples: of each row the first is the positive, the others negatives.

    `similarity` is ours and `scores` are a teacher's, as a rule those of a cross-encoder. A row
    whose positive or whose negatives do not count is 0.
    """
    gap = jnp.where(counted, similarity - jnp.where(counted, scores, 0.0), 0.0)
    negatives = (counted & counted[:, :1]).at[:, 0].set(False)
    return _margins(gap, jnp.zeros((len(gap), 1), jnp.int32), negatives)


def ordered(
    similarity: Float[Array, " B"],
    scores: Float[Array, " B"],
    counted: Bool[Array, " B"],
    temperature: float,
) -> Float[Array, ""]:
    """CoSENT (Su 2022, https://kexue.fm/archives/8847): pairs in the order of their scores.

        log (1 + sum over i, j with score_i < score_j of exp((sim_i - sim_j) / T))

    One value for the batch. `CoSENTLoss` of sentence-transformers; its `scale` 20 is T = 0.05.
    """
    wrong = (scores[:, None] < scores[None, :]) & counted[:, None] & counted[None, :]
    gap = (similarity[:, None] - similarity[None, :]) / temperature
    seen = jnp.where(wrong, gap, jnp.finfo(jnp.float32).min)
    return jax.nn.logsumexp(jnp.append(seen.ravel(), 0.0))


def nested(
    loss: Callable[[Float[Array, "... D"]], Sum],
    vectors: Float[Array, "... D"],
    dims: Sequence[int],
) -> Sum:
    """Matryoshka: the mean of a loss over the first d coordinates, for every d of `dims`.

    Kusupati et al. 2022 (arXiv:2205.13147), equation 1 with equal weights, divided by their number
    so that the learning rate means the same. Without `dims` the loss itself.
    """
    parts = [loss(vectors[..., :width]) for width in dims or (vectors.shape[-1],)]
    return Sum(sum(part.sum for part in parts) / len(parts), parts[0].count)


def similarities(a: Float[Array, "A D"], b: Float[Array, "B D"], term: Term) -> Float[Array, "A B"]:
    """Everyone with everyone, by the term's `similarity`."""
    if term.similarity == "cosine":
        a, b = normalize(a), normalize(b)
    # Left alone, an accelerator would multiply float32 in half precision.
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _margins(gap, positive, negatives):
    # The difference of the margins is the margin of the difference.
    return _mean_where(negatives, jnp.square(jnp.take_along_axis(gap, positive, axis=-1) - gap))


def _others(counted):
    """[B, B]: whom an anchor is compared with; itself is nobody's neighbour."""
    return counted[None, :] & counted[:, None] & ~jnp.eye(len(counted), dtype=bool)


def _mean_where(chosen, values):
    total = jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(chosen, axis=-1), 1)
