from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.batches.masking import Masked
from distilflax.losses import View, total_loss

BATCH, LENGTH, WIDTH, WORDS, SLOTS = 8, 6, 5, 11, 2
LENGTHS = np.array([6, 5, 2, 6, 1, 4, 3, 6])


class Case(NamedTuple):
    """A batch and two models, each one hidden state [B, L, D] and a head {kernel, matrix, bias}."""

    student: dict
    teacher: dict
    ids: jax.Array
    mask: jax.Array
    masked: Masked


@pytest.fixture(scope="session")
def case():
    rng = np.random.default_rng(0)

    def model():
        arrays = {
            "hidden": rng.normal(size=(BATCH, LENGTH, WIDTH)),
            "kernel": rng.normal(size=(WIDTH, WIDTH)),
            "matrix": rng.normal(size=(WORDS, WIDTH)),
            "bias": rng.normal(size=WORDS),
        }
        return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}

    mask = np.arange(LENGTH) < LENGTHS[:, None]
    ids = rng.integers(1, WORDS, mask.shape) * mask
    # One or two positions a row, except that the shortest row has none: its slots are unused.
    used = np.minimum(LENGTHS // 2, SLOTS)
    weights = np.arange(SLOTS) < used[:, None]
    positions = np.stack([rng.permutation(n)[:SLOTS] if n > 1 else [0, 0] for n in LENGTHS])
    positions = positions * weights
    masked = Masked(
        jnp.asarray(ids, jnp.int32),
        jnp.asarray(positions, jnp.int32),
        jnp.asarray(np.take_along_axis(ids, positions, axis=1), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )
    return Case(model(), model(), jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32), masked)


def view(model):
    return View(
        {"last_hidden_state": model["hidden"]},
        lambda hidden: jnp.tanh(hidden @ model["kernel"].astype(hidden.dtype)),
        model["matrix"],
        model["bias"],
    )


@pytest.fixture(scope="session")
def make_view():
    return view


@pytest.fixture(scope="session")
def gradient():
    """gradient(losses, case, progress=0, normalizers=None, chunk_rows=7) returns
    ((total, sums), gradient of the student's arrays)."""

    @cache  # a choice of terms is compiled once for all tests
    def compiled(named_terms, chunk_rows):
        def step(case, progress, normalizers):
            def loss(student):
                return total_loss(
                    dict(named_terms),
                    view(student),
                    None if case.teacher is None else view(case.teacher),
                    *case[2:],
                    progress=progress,
                    normalizers=normalizers,
                    chunk_rows=chunk_rows,
                )

            return jax.value_and_grad(loss, has_aux=True)(case.student)

        return jax.jit(step)

    def run(losses, case, *, progress=0.0, normalizers=None, chunk_rows=7):
        step = compiled(tuple(losses.items()), chunk_rows)
        return jax.tree.map(np.asarray, step(case, jnp.float32(progress), normalizers))

    return run
