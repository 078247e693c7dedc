"""The step with terms on every output, a wider teacher and learned projections."""

import jax
import numpy as np
import optax
import pytest

from distilflax import losses, settings
from distilflax.batches.masking import mask_table
from distilflax.batches.placement import to_global
from distilflax.errors import UserError
from distilflax.train import sharding, state
from distilflax.train.optimizer import decay_mask
from distilflax.train.setup import without_projections
from distilflax.train.step import Pair, make_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = {"vocab_size": 32, "num_heads": 2, "intermediate_size": 16, "max_positions": 8}
TEACHER = settings.Encoder(**SIZES, hidden_size=16, num_layers=2)
STUDENT = settings.Encoder(
    **SIZES,
    hidden_size=8,
    num_layers=1,
    type_vocab_size=0,
    pooler=False,
    dropout=0.0,
    attention_dropout=0.0,
)
TERMS = {
    "hidden_mse": {
        "weight": 1.0,
        "layers": "embeddings,uniform_last",
        "projection": "per_layer",
    },
    "attention_kl": {"weight": 1.0},
    "relations": {"weight": 1.0, "relation_heads": 4, "between": ("values",)},
    "info_nce": {"weight": 1.0, "temperature": 0.1, "projection": "shared"},
}


def experiment(**training):
    values = {"batch_size": 8, "steps": 4} | training
    return settings.from_config({"losses": TERMS, "training": values})


def batch():
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < rng.integers(2, 9, 8)[:, None]).astype(np.int32)
    ids = rng.integers(5, 32, mask.shape).astype(np.int32) * mask
    # Packed, so that attention stays within a passage: two of them in the longer rows.
    segments = (1 + (np.arange(8) > 3)).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask, "segment_ids": segments}


@pytest.fixture(scope="module")
def begun(drawn):
    maps = losses.init_projections(experiment().losses, STUDENT, TEACHER, jax.random.key(2))
    return drawn(STUDENT, 1) | {losses.PROJECTIONS: jax.device_get(maps)}


def run(mesh, params, teacher):
    which, optimizer = experiment(), optax.sgd(0.1)
    table = mask_table(
        np.arange(32) < 5, np.arange(32) < 0, 4, np.ones(32, np.int64), which.masking
    )
    the_mesh = sharding.make_mesh(mesh, devices=jax.devices()[: mesh.data * mesh.fsdp])
    with jax.set_mesh(the_mesh):
        current = state.create(the_mesh, params, optimizer)
        placed = sharding.place(teacher, sharding.param_shardings(the_mesh, teacher))
        step = make_step(which, Pair(STUDENT, TEACHER), optimizer, 4)
        current, metrics = step(current, placed, table, to_global(batch(), the_mesh))
        return jax.device_get((current.params, metrics))


def test_every_output_is_compared_and_the_projections_learn(begun, drawn):
    params, metrics = run(settings.Mesh(2, 2, 1), begun, drawn(TEACHER, 0))
    assert set(metrics["terms"]) == set(TERMS)
    assert all(value.sum > 0 for value in metrics["terms"].values())
    before = begun[losses.PROJECTIONS]
    assert set(before) == {"hidden_mse", "info_nce"}
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params[losses.PROJECTIONS], before)
    assert min(jax.tree.leaves(moved)) > 1e-6


def test_projections_are_parameters_until_the_student_leaves(begun):
    mesh = sharding.make_mesh(settings.Mesh(4, 2, 1))
    kernel = sharding.param_shardings(mesh, begun)[losses.PROJECTIONS]["info_nce"]["shared"]
    assert kernel["kernel"].spec[0] == "fsdp"
    assert decay_mask(begun)[losses.PROJECTIONS]["info_nce"]["shared"] == {
        "kernel": True,
        "bias": False,
    }
    assert set(without_projections(begun)) == {"encoder"}


def test_a_term_across_the_batch_takes_no_micro_batches():
    with pytest.raises(UserError, match=r"info_nce compares .*accumulate=2 would tear"):
        make_step(experiment(accumulate=2), Pair(STUDENT, TEACHER), optax.sgd(0.1), 4)


def test_terms_that_do_not_fit_the_models_are_refused():
    other = settings.Encoder(**SIZES | {"num_heads": 4}, hidden_size=16, num_layers=2)
    with pytest.raises(UserError, match=r"attention_kl compares head by head"):
        make_step(experiment(), Pair(STUDENT, other), optax.sgd(0.1), 4)
