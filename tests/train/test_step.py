"""The step: exact accumulation, a teacher only looked at, and a mesh that changes nothing."""

import dataclasses
from functools import cache

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
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=32, max_positions=24
)
STUDENT = dataclasses.replace(
    TEACHER, num_layers=1, type_vocab_size=0, pooler=False, dropout=0.0, attention_dropout=0.0
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


@cache
def params_of():
    """(teacher, student) in numpy: `models.init` would compile each of its operations."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        unit = 1.0 if path[-1].key == "scale" else 0.0
        return (unit + 0.02 * rng.normal(size=leaf.shape)).astype(np.float32)

    shapes = (models.shapes(encoder, mlm_head=True) for encoder in (TEACHER, STUDENT))
    return tuple(jax.tree_util.tree_map_with_path(draw, tree) for tree in shapes)


# Sums in another order; an average of averages would be off by a hundredth.
ROUNDING = 5e-5
ONE_DEVICE = settings.Mesh(1, 1, 1)
# Plain descent: Adam divides by the gradient's size and would blow rounding up to the step.
DESCENT = optax.sgd(0.1)


def mesh_of(mesh=ONE_DEVICE):
    return sharding.make_mesh(mesh, devices=jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])


def begin(which, mesh):
    """The state before the first step, and the teacher's parameters, on the mesh."""
    teacher, student = params_of()
    current = state.create(mesh, student, DESCENT, which.student)
    return current, sharding.place(teacher, sharding.param_shardings(mesh, teacher))


def run(which, steps=1, mesh=ONE_DEVICE, pair=PAIR, step=None):
    """(parameters, metrics) after each step."""
    the_mesh, seen = mesh_of(mesh), []
    with jax.set_mesh(the_mesh):
        current, teacher = begin(which, the_mesh)
        step = step or make_step(which, pair, DESCENT, 10)
        for number in range(steps):
            current, metrics = step(
                current, teacher, table(which), to_global(batch(seed=number), the_mesh)
            )
            seen.append(jax.device_get((current.params, metrics)))
    return seen


def assert_same(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def step():
    """Of the experiment as it is: compiled once, for one device."""
    return make_step(experiment(), PAIR, DESCENT, 10)


@pytest.fixture(scope="module")
def two_steps(step):
    """What others are compared with."""
    return run(experiment(), steps=2, step=step)


def test_accumulation_changes_nothing(two_steps):
    assert_same(two_steps, run(experiment(training={"accumulate": 4}), steps=2), ROUNDING)


def test_sharding_changes_nothing(two_steps):
    """Over rows, over parameters, and over heads and words, all at once."""
    mesh = settings.Mesh(2, 2, 2)
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
    (_, quiet), *_ = two_steps
    ((_, dropped),) = run(experiment(), pair=Pair(noisy, TEACHER))
    assert quiet["terms"]["mlm"].count == dropped["terms"]["mlm"].count
    assert abs(quiet["loss"] - dropped["loss"]) > 1e-3


def test_the_teacher_is_neither_changed_nor_donated_nor_in_the_state(step):
    which, mesh = experiment(), mesh_of()
    with jax.set_mesh(mesh):
        current, placed = begin(which, mesh)
        after, _ = step(current, placed, table(which), to_global(batch(), mesh))
    assert_same(jax.device_get(placed), params_of()[0], 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(current.params))
    layers = [name for name in after.params["encoder"] if name.startswith("layers_")]
    assert len(layers) == STUDENT.num_layers


def test_a_term_of_weight_zero_is_not_computed():
    only_mlm = experiment(losses={name: {"weight": 0.0} for name in ("kl", "cosine", "sentence")})
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        current, _ = begin(only_mlm, mesh)
        step = make_step(only_mlm, PAIR, DESCENT, 10)
        # No teacher at all: nothing of it may be touched.
        _, metrics = step(current, {}, table(only_mlm), to_global(batch(), mesh))
    assert set(metrics["terms"]) == {"mlm"}


def test_every_step_draws_new_masks_and_the_same_step_the_same(step):
    which, mesh = experiment(), mesh_of()
    losses_seen = []
    with jax.set_mesh(mesh):
        for number in (0, 1, 0, 1):
            # The parameters and the batch stand still: only masks can change the loss.
            current, teacher = begin(which, mesh)
            counted = jax.device_put(np.int32(number), current.step.sharding)
            inputs = (teacher, table(which), to_global(batch(), mesh))
            _, metrics = step(current._replace(step=counted), *inputs)
            losses_seen.append(float(metrics["loss"]))
    assert losses_seen[0] != losses_seen[1]
    assert losses_seen[:2] == losses_seen[2:]


def test_held_out_sums_are_the_same_each_time_and_divide_by_their_counts():
    which = experiment()
    teacher, student = params_of()
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        held_out = make_held_out_step(which, PAIR)
        inputs = (student, teacher, table(which), to_global(batch(), mesh), jnp.int32(3))
        first, second = held_out(*inputs), held_out(*inputs)
    assert jax.device_get(first) == jax.device_get(second)
    assert float(first["cosine"].count) == batch()["attention_mask"].sum()
    assert float(first["sentence"].count) == 16


def test_layers_that_take_turns_are_all_held_out():
    """At the end of the run, where the schedules are taken, all have had their turn."""
    terms = {"cosine": {"weight": 1.0, "layers": "uniform_last", "turns": 0.5}}
    teacher, student = params_of()
    mesh, sums = mesh_of(), []
    with jax.set_mesh(mesh):
        for turns in (0.5, 0.0):
            terms["cosine"]["turns"] = turns
            which = experiment(losses=terms)
            inputs = (student, teacher, table(which), to_global(batch(), mesh), jnp.int32(3))
            sums.append(jax.device_get(make_held_out_step(which, PAIR)(*inputs))["cosine"])
    assert sums[0] == sums[1] and sums[0].sum > 0


def test_frozen_embeddings_stay_and_the_rest_moves_as_if_they_were_not(two_steps):
    _, before = params_of()
    (free, _), *_ = two_steps
    ((frozen, _),) = run(experiment(student={"freeze_embeddings": True}))
    ours, theirs = (tree["encoder"]["embeddings"] for tree in (frozen, free))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, before["encoder"]["embeddings"]))
    assert not np.array_equal(theirs["word"], ours["word"])
    rest = [tree | {"encoder": tree["encoder"] | {"embeddings": {}}} for tree in (frozen, free)]
    assert_same(*rest, 1e-6)


def test_the_optimizer_knows_nothing_of_what_is_frozen():
    _, student = params_of()
    mesh = mesh_of()
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
