"""What a run carries from step to step: a step number, parameters and optimizer state.

Randomness is not in it. Every key is counted from the seed (`purpose_key`), so a run that was
killed and one that was not draw the same masks and the same dropout.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from distilflax.settings import Student
from distilflax.train import sharding
from distilflax.train.frozen import trained

# What a key is for. The numbers are part of what a seed means: append, never renumber.
INIT, MASKING, DROPOUT, HELD_OUT_MASKING, TEACHER, WORDS, LAYERS = range(7)


class State(NamedTuple):
    """`step` updates have been made; `params` are the student's alone."""

    step: Int[Array, ""]
    params: dict
    opt_state: Any


def purpose_key(seed: int, purpose: int) -> PRNGKeyArray:
    """The root key of one purpose; fold the step into it."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def shardings_of(
    mesh: Mesh, params: dict, optimizer: optax.GradientTransformation, student: Student
) -> State:
    """Where every array of a `State` lives: a `State` of shardings. `params` may be shapes."""
    of_params = sharding.param_shardings(mesh, params)
    state_shapes = jax.eval_shape(optimizer.init, trained(student, params))
    of_optimizer = sharding.optimizer_shardings(
        optimizer, state_shapes, trained(student, of_params), mesh
    )
    return State(sharding.replicated(mesh), of_params, of_optimizer)


def shardings_in(state: State) -> State:
    """Where every array of a state that is in place lives, as `shardings_of` says beforehand."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def create(
    mesh: Mesh,
    params: dict,
    optimizer: optax.GradientTransformation,
    student: Student = Student(),  # noqa: B008 - frozen
) -> State:
    """The state before the first step; `params` (host or device arrays) are copied into place.

    The optimizer's state covers what `student` trains (`frozen.trained`).
    """
    where = shardings_of(mesh, params, optimizer, student)
    placed = sharding.place(params, where.params)
    init = jax.jit(optimizer.init, out_shardings=where.opt_state)
    opt_state = init(trained(student, placed))
    return State(jax.device_put(jnp.zeros((), jnp.int32), where.step), placed, opt_state)


def shardings_of_arms(
    mesh: Mesh, params: dict, optimizer: optax.GradientTransformation, student: Student
) -> State:
    """`shardings_of` where every array but the step's number has a leading axis of arms, whole.

    `params` are those of one arm.
    """

    def with_axis(where):
        return jax.NamedSharding(mesh, jax.P(None, *where.spec))

    alone = shardings_of(mesh, params, optimizer, student)
    together = jax.tree.map(with_axis, (alone.params, alone.opt_state))
    return State(alone.step, *together)


def create_arms(
    where: State,
    students: Sequence[dict],
    optimizer: optax.GradientTransformation,
    student: Student,
) -> State:
    """`create` for several students of one shape at once, placed as `shardings_of_arms` says."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *students)
    placed = sharding.place(stacked, where.params)
    init = jax.jit(jax.vmap(optimizer.init), out_shardings=where.opt_state)
    opt_state = init(trained(student, placed))
    return State(jax.device_put(jnp.zeros((), jnp.int32), where.step), placed, opt_state)
