"""The step: exact accumulation, a teacher only looked at, and a mesh that changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilflax import models, settings
from distilflax.batches.masking import mask_table
from distilflax.batches.placement import to_global
from distilflax.train import sharding, state
from distilflax.train.optimizer import make_optimizer
from distilflax.train.step import Pair, make_held_out_step, make_step

TEACHER = settings.Encoder(
    vocab_size=64, hidden_size=16, num_layers=4, num_heads=4, intermediate_size=32, max_positions=24
)
STUDENT = dataclasses.replace(
    TEACHER, num_layers=2, type_vocab_size=0, pooler=False, dropout=0.0, attention_dropout=0.0
)
PAIR = Pair(STUDENT, TEACHER)
ALL_TERMS = {
    "kl": {"weight": 5.0, "temperature": 2.0},
    "mlm": {"weight": 2.0},
    "cosine": {"weight": 1.0},
    "sentence": {"weight": 1.0},
}
TABLE_IDS = np.arange(64)


def experiment(**changes):
    values = {"losses": ALL_TERMS, "training": {"batch_size": 16, "steps": 10}}
    for group, group_changes in changes.items():
        values[group] = values.get(group, {}) | group_changes
    return settings.from_config(values)


def table(which):
    return mask_table(TABLE_IDS < 5, TABLE_IDS < 0, 4, np.ones(64, np.int64), which.masking)


def batch(rows=16, length=24, seed=0):
    rng = np.random.default_rng(seed)
    # Very unequal lengths: an average of averages over micro-batches would show.
    lengths = rng.integers(3, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(5, 64, (rows, length)).astype(np.int32) * mask,
        "attention_mask": mask,
    }


def params_of():
    teacher = models.init(TEACHER, jax.random.key(1), mlm_head=True)
    student = models.init(STUDENT, jax.random.key(2), mlm_head=True)
    return jax.device_get(teacher), jax.device_get(student)


# Sums in another order; an average of averages would be off by a hundredth.
ROUNDING = 5e-5
ONE_DEVICE = settings.Mesh(1, 1, 1)


def run(which, steps=1, mesh=ONE_DEVICE, pair=PAIR):
    teacher, student = params_of()
    devices = jax.devices()[: max(mesh.data, 1) * mesh.fsdp * mesh.tensor]
    the_mesh = sharding.make_mesh(mesh, devices=devices)
    # Plain descent: Adam divides by the gradient's size and would blow rounding up to the step.
    optimizer = optax.sgd(0.1)
    with jax.set_mesh(the_mesh):
        current = state.create(the_mesh, student, optimizer, which.student)
        placed = sharding.place(teacher, sharding.param_shardings(the_mesh, teacher))
        step = make_step(which, pair, optimizer, 10)
        for number in range(steps):
            current, metrics = step(
                current, placed, table(which), to_global(batch(seed=number), the_mesh)
            )
        return jax.device_get(current.params), jax.device_get(metrics)


def assert_same(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def two_steps():
    """Of the experiment as it is, on one device: what others are compared with."""
    return run(experiment(), steps=2)


def test_accumulation_changes_nothing(two_steps):
    assert_same(two_steps, run(experiment(training={"accumulate": 4}), steps=2), ROUNDING)


@pytest.mark.parametrize("mesh", [settings.Mesh(8, 1, 1), settings.Mesh(2, 2, 2)], ids=str)
def test_sharding_changes_nothing(two_steps, mesh):
    assert_same(two_steps, run(experiment(), steps=2, mesh=mesh), ROUNDING)


def test_accumulation_on_a_mesh_changes_nothing(two_steps):
    mesh, parts = settings.Mesh(4, 1, 1), experiment(training={"accumulate": 2})
    assert_same(two_steps, run(parts, steps=2, mesh=mesh), ROUNDING)


def test_the_teacher_has_no_dropout_even_if_its_settings_do(two_steps):
    quiet = dataclasses.replace(TEACHER, dropout=0.0, attention_dropout=0.0)
    assert TEACHER.dropout > 0
    assert_same(two_steps, run(experiment(), steps=2, pair=Pair(STUDENT, quiet)), 0)


def test_the_student_has_dropout_when_its_settings_do(two_steps):
    noisy = dataclasses.replace(STUDENT, dropout=0.5)
    quiet, dropped = two_steps, run(experiment(), steps=2, pair=Pair(noisy, TEACHER))
    assert quiet[1]["terms"]["mlm"].count == dropped[1]["terms"]["mlm"].count
    assert abs(quiet[1]["loss"] - dropped[1]["loss"]) > 1e-3


def test_the_teacher_is_neither_changed_nor_donated_nor_in_the_state():
    which = experiment()
    teacher, student = params_of()
    mesh = sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1])
    optimizer, _ = make_optimizer(which.optimizer, 10)
    with jax.set_mesh(mesh):
        current = state.create(mesh, student, optimizer)
        placed = sharding.place(teacher, sharding.param_shardings(mesh, teacher))
        step = make_step(which, PAIR, optimizer, 10)
        after, _ = step(current, placed, table(which), to_global(batch(), mesh))
    assert_same(jax.device_get(placed), teacher, 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(current.params))
    layers = [name for name in after.params["encoder"] if name.startswith("layers_")]
    assert len(layers) == STUDENT.num_layers


def test_a_term_of_weight_zero_is_not_computed():
    only_mlm = experiment(losses={name: {"weight": 0.0} for name in ("kl", "cosine", "sentence")})
    mesh = sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1])
    optimizer = optax.sgd(0.1)
    _, student = params_of()
    with jax.set_mesh(mesh):
        current = state.create(mesh, student, optimizer)
        step = make_step(only_mlm, PAIR, optimizer, 10)
        # No teacher at all: nothing of it may be touched.
        _, metrics = step(current, {}, table(only_mlm), to_global(batch(), mesh))
    assert set(metrics["terms"]) == {"mlm"}


def test_every_step_draws_new_masks_and_the_same_step_the_same():
    which = experiment()
    teacher, student = params_of()
    mesh = sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1])
    optimizer = optax.sgd(0.0)  # the parameters stand still: only masks can change the loss
    losses_seen = []
    with jax.set_mesh(mesh):
        step = make_step(which, PAIR, optimizer, 10)
        for _ in range(2):
            current = state.create(mesh, student, optimizer)
            for _ in range(2):
                current, metrics = step(current, teacher, table(which), to_global(batch(), mesh))
                losses_seen.append(float(metrics["loss"]))
    assert losses_seen[0] != losses_seen[1]
    assert losses_seen[:2] == losses_seen[2:]


def test_held_out_sums_are_the_same_each_time_and_divide_by_their_counts():
    which = experiment()
    teacher, student = params_of()
    mesh = sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        held_out = make_held_out_step(which, PAIR)
        inputs = (student, teacher, table(which), to_global(batch(), mesh), jnp.int32(3))
        first, second = held_out(*inputs), held_out(*inputs)
    assert jax.device_get(first) == jax.device_get(second)
    assert float(first["cosine"].count) == batch()["attention_mask"].sum()
    assert float(first["sentence"].count) == 16


def test_frozen_embeddings_stay_and_the_rest_moves_as_if_they_were_not():
    _, before = params_of()
    free, _ = run(experiment())
    frozen, _ = run(experiment(student={"freeze_embeddings": True}))
    ours, theirs = (tree["encoder"].pop("embeddings") for tree in (frozen, free))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, before["encoder"]["embeddings"]))
    assert not np.array_equal(theirs["word"], ours["word"])
    assert_same(frozen, free, 1e-6)


def test_the_optimizer_knows_nothing_of_what_is_frozen():
    _, student = params_of()
    mesh = sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1])
    optimizer, _ = make_optimizer(settings.Optimizer(), 10)
    frozen = settings.Student(freeze_embeddings=True)
    with jax.set_mesh(mesh):
        kept = [
            sum(
                leaf.size for leaf in jax.tree.leaves(state.create(mesh, student, optimizer, which))
            )
            for which in (settings.Student(), frozen)
        ]
    embeddings = sum(leaf.size for leaf in jax.tree.leaves(student["encoder"]["embeddings"]))
    assert kept[0] - kept[1] == 2 * embeddings
