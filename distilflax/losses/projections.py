"""Learned linear maps from the student's width to the teacher's, for terms that compare vectors.

They are parameters of the student while it trains, `params["projections"]`, with the optimizer's
moments, the shardings and the checkpoints that every parameter has; the trained student is handed
on without them.
"""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from distilflax.errors import UserError
from distilflax.losses.layers import layer_pairs
from distilflax.losses.terms import TERMS, active
from distilflax.models.product import over_rows
from distilflax.settings import Encoder, Term

# Their place in a tree of parameters.
PROJECTIONS = "projections"


def init_projections(
    losses: Mapping[str, Term], student: Encoder, teacher: Encoder, key: PRNGKeyArray
) -> dict:
    """{term: {map: {"kernel" [D, E], "bias" [E]}}} of the active terms that learn one.

    The map is called `shared`, or `pair_I` for each of the term's pairs of layers. Kernels start as
    every other matrix of the student does, normal with its `initializer_range`; each is drawn from
    its own name, so that another term more or less changes no other.
    """
    return {
        name: {
            path: _init(f"{name}/{path}", student, teacher, key)
            for path in _maps(name, term, student, teacher)
        }
        for name, term in active(losses).items()
        if term.projection != "none"
    }


def project(
    projections: Mapping, name: str, term: Term, pair: int, states: Float[Array, "*B D"]
) -> Float[Array, "*B E"]:
    """The student's `states` as the term compares them: mapped, where it learns a projection."""
    if term.projection == "none":
        return states
    if name not in projections:
        raise UserError(
            f"config.losses.{name}.projection is {term.projection!r}, but the student's parameters "
            "hold no such map; add those of losses.init_projections(...)."
        )
    learned = projections[name]["shared" if term.projection == "shared" else f"pair_{pair}"]
    mapped = over_rows(states, learned["kernel"].astype(states.dtype))
    return mapped + learned["bias"].astype(states.dtype)


def _maps(name: str, term: Term, student: Encoder, teacher: Encoder) -> tuple[str, ...]:
    if term.projection == "shared" or "layers" not in TERMS[name].options:
        return ("shared",) if term.projection == "shared" else ("pair_0",)
    place = f"config.losses.{name}.layers"
    pairs = layer_pairs(term.layers, student.num_layers, teacher.num_layers, place)
    return tuple(f"pair_{i}" for i in range(len(pairs)))


def _init(path: str, student: Encoder, teacher: Encoder, key: PRNGKeyArray) -> dict:
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    shape = (student.hidden_size, teacher.hidden_size)
    kernel = student.initializer_range * jax.random.normal(key, shape, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(teacher.hidden_size, jnp.float32)}
