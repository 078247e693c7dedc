"""Distillation's prediction stage: distances between a model's logits and its teacher's.

Every one is a value for each row of logits; the tasks select, add up and count. Hinton et al. 2015
(arXiv:1503.02531): both sides are softened by a temperature T and the result is multiplied by T^2,
so that its gradient stays of one size whatever the temperature.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kl(
    logits: Float[Array, "*B N"], teacher: Float[Array, "*B N"], temperature: float
) -> Float[Array, "*B"]:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)). Outputs ruled out in both stay so."""
    log_p = jax.nn.log_softmax(teacher / temperature)
    log_q = jax.nn.log_softmax(logits / temperature)
    p = jnp.exp(log_p)
    # Where the teacher gives no probability the logarithms may be anything; 0 x that must be 0.
    return temperature**2 * jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)


def binary_kl(
    logits: Float[Array, "*B N"], teacher: Float[Array, "*B N"], temperature: float
) -> Float[Array, "*B"]:
    """The same for N independent yes-or-no outputs, averaged over them."""
    p, soft = jax.nn.sigmoid(teacher / temperature), logits / temperature
    own = -p * jax.nn.log_sigmoid(teacher / temperature) - (1 - p) * jax.nn.log_sigmoid(
        -teacher / temperature
    )
    cross = -p * jax.nn.log_sigmoid(soft) - (1 - p) * jax.nn.log_sigmoid(-soft)
    return temperature**2 * jnp.mean(cross - own, axis=-1)


def squared(logits: Float[Array, "*B N"], teacher: Float[Array, "*B N"]) -> Float[Array, "*B"]:
    """The mean squared difference, for outputs that are numbers."""
    return jnp.mean(jnp.square(logits - teacher), axis=-1)
