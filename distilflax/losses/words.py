"""A teacher's distribution over the words, kept as a few of its words at each position.

Two ways to choose them:

  sampled   n words drawn from p with replacement, each of weight 1/n: "random sampling" of
            Anshumann et al. 2025 (Sparse Logit Sampling, arXiv:2503.16870) with the teacher's own
            distribution for the proposal, where the importance weights are counts. The expectation
            of the weights is p, so what is linear in p (the cross-entropy with it, hence KL and its
            gradient) is unbiased. `systematic` spreads the n draws evenly over the cumulative
            distribution (one uniform number for all): the same expectation, less noise.
  top_k     the n likeliest words with their probabilities, and one bucket for all others. What is
            compared is then the distribution over n + 1 outcomes: less than KL, without noise, and
            biased, because nothing is said of how the teacher spreads the rest.

p is softmax(logits / T) at the temperature T of the term, which the loss multiplies by T^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from distilflax.settings import Term


class Words(NamedTuple):
    """n words at each of N positions (or [B, P] of them).

    ids, weights [N, n]: the words, and how much of the distribution each stands for.
    constant [N]: the part of KL that does not depend on the student, sum p log p over the words or
    over the outcomes that are compared; the value is then a KL divergence and not only its
    gradient. rest [N]: the share of the words that are not among them; None where the weights add
    up to 1.
    """

    ids: Int[Array, "*N n"]
    weights: Float[Array, "*N n"]
    constant: Float[Array, "*N"]
    rest: Float[Array, "*N"] | None = None


def sampled(
    key: PRNGKeyArray, logits: Float[Array, " V"], draws: int, systematic: bool = False
) -> tuple[Int[Array, " n"], Float[Array, ""]]:
    """(ids of `draws` words drawn from softmax(logits), with replacement; sum p log p)."""
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    cumulative = jnp.cumsum(p)
    if systematic:
        uniform = (jnp.arange(draws) + jax.random.uniform(key)) / draws
    else:
        uniform = jax.random.uniform(key, (draws,))
    # "right": a word of probability 0 has an empty interval, which no number falls into.
    ids = jnp.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return jnp.minimum(ids, len(logits) - 1), jnp.sum(p * log_p)


def likeliest(
    logits: Float[Array, " V"], number: int
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, ""]]:
    """(ids, probabilities) of the `number` likeliest words, and the probability of the rest."""
    top, ids = jax.lax.top_k(logits, number)
    others = jax.nn.logsumexp(logits.at[ids].set(-jnp.inf))
    normalizer = jax.nn.logsumexp(logits)
    return ids, jnp.exp(top - normalizer), jnp.exp(others - normalizer)


def of_samples(ids: Int[Array, "*N n"], constant: Float[Array, "*N"]) -> Words:
    """`Words` of draws: each stands for 1/n."""
    weights = jnp.full(ids.shape, 1.0 / ids.shape[-1], jnp.float32)
    return Words(ids, weights, constant)


def of_likeliest(
    ids: Int[Array, "*N n"], weights: Float[Array, "*N n"], rest: Float[Array, "*N"]
) -> Words:
    """`Words` of the likeliest; weights that were rounded are made to add up to 1 with the rest."""
    whole = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
    weights = weights * (1.0 - rest[..., None]) / whole
    constant = jnp.sum(jax.scipy.special.xlogy(weights, weights), axis=-1)
    return Words(ids, weights, constant + jax.scipy.special.xlogy(rest, rest), rest)


def kl(
    student: Float[Array, "N V"], teacher: Words, labels: Int[Array, " N"], term: Term
) -> Float[Array, " N"]:
    """`logits.kl` against the words that were kept.

    sum p log p - sum_v w_v log q_v - rest log(1 - sum_v q_v),  q = softmax(student)
    """
    return teacher.constant + cross_entropy(student, teacher, labels, term)


def cross_entropy(
    student: Float[Array, "N V"], teacher: Words, labels: Int[Array, " N"], term: Term
) -> Float[Array, " N"]:
    """`logits.soft_cross_entropy` against the words that were kept: `kl` without the constant."""
    del labels, term
    normalizer = jax.nn.logsumexp(student, axis=-1)
    chosen = jnp.take_along_axis(student, teacher.ids, axis=-1)
    value = jnp.sum(teacher.weights * (normalizer[:, None] - chosen), axis=-1)
    if teacher.rest is None:
        return value
    rows = jnp.arange(len(student))[:, None]
    others = student.at[rows, teacher.ids].set(jnp.finfo(student.dtype).min)
    return value + teacher.rest * (normalizer - jax.nn.logsumexp(others, axis=-1))
