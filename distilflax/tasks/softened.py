"""Distillation's prediction stage: distances between a model's logits and its teacher's.

Every one is a value for each row of logits; the tasks select, add up and count. Hinton et al. 2015
(arXiv:1503.02531): both sides are softened by a temperature T and the result is multiplied by T^2,
so that its gradient stays of one size whatever the temperature.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from distilflax.losses import hidden
from distilflax.settings import Term


def kl(
    student: Float[Array, "*B N"], teacher: Float[Array, "*B N"], temperature: float
) -> Float[Array, "*B"]:
    """T^2 sum_n p_n (log p_n - log q_n), p = softmax(teacher / T), q = softmax(student / T). What
    is ruled out in both, by one and the same low number, adds nothing."""
    log_p, log_q = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (teacher, student))
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def binary_kl(
    student: Float[Array, "*B N"], teacher: Float[Array, "*B N"], temperature: float
) -> Float[Array, "*B"]:
    """The same for N independent yes-or-no outputs, averaged over them."""
    entropy, soft = optax.sigmoid_binary_cross_entropy, teacher / temperature
    p = jax.nn.sigmoid(soft)
    return temperature**2 * jnp.mean(entropy(student / temperature, p) - entropy(soft, p), axis=-1)


def squared(student: Float[Array, "*B N"], teacher: Float[Array, "*B N"]) -> Float[Array, "*B"]:
    """The mean squared difference, for outputs that are numbers."""
    return hidden.mean_squared_error(student, teacher, Term())
