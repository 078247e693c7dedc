"""Piecewise-linear schedules: what a weight or a temperature is at a moment of the run."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def at_progress(
    schedule: tuple[tuple[float, float], ...],
    progress: Float[Array, ""],
    otherwise: float | Float[Array, ""],
) -> float | Float[Array, ""]:
    """The value of pairs (fraction of the run, value) at `progress`; `otherwise` without any."""
    if not schedule:
        return otherwise
    at, value = zip(*schedule, strict=True)
    return jnp.interp(progress, jnp.asarray(at), jnp.asarray(value))
