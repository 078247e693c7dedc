"""Several teachers, one drawn for each batch, and the student's own average."""

import dataclasses
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilflax import settings
from distilflax.batches.masking import mask_table
from distilflax.errors import UserError
from distilflax.train import optimizer as optimizers
from distilflax.train import sharding, state, teachers
from distilflax.train.setup import Materials
from distilflax.train.step import make_step
from distilflax.train.teachers import Pair
from distilflax.weights import Checkpoint, SentenceFiles

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = {"vocab_size": 32, "num_heads": 2, "hidden_size": 8, "intermediate_size": 8}
PLAIN = {"type_vocab_size": 0, "pooler": False, "dropout": 0.0, "attention_dropout": 0.0}
STUDENT = settings.Encoder(**SIZES, **PLAIN, num_layers=1, max_positions=8)
TEACHER = settings.Encoder(**SIZES, **PLAIN, num_layers=2, max_positions=8)
DEEPER = dataclasses.replace(TEACHER, num_layers=3)
PAIR = Pair(STUDENT, TEACHER, (DEEPER,))
STILL = {"learning_rate": 0.0}
STEPS = 8
TERMS = {"kl": {"weight": 1.0}, "mlm": {"weight": 0.5}, "cosine": {"weight": 1.0}}


@pytest.fixture(scope="module")
def world(drawn):
    """(student, {name: teacher parameters}, mask table, batch)."""
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < np.array([8, 5, 3, 7])[:, None]).astype(np.int32)
    batch = {"input_ids": rng.integers(5, 32, mask.shape).astype(np.int32) * mask}
    batch = jax.tree.map(jnp.asarray, batch | {"attention_mask": mask})
    masking = settings.Masking(rate=0.3)
    table = mask_table(np.arange(32) < 5, np.arange(32) < 0, 4, np.ones(32, np.int64), masking)
    student, first, deeper = (
        drawn(encoder, seed, mlm_head=True)
        for seed, encoder in enumerate((STUDENT, TEACHER, DEEPER))
    )
    return student, {"teacher": first, "deeper": deeper}, table, batch


def experiment(**changes):
    values = {
        "losses": TERMS,
        "masking": {"rate": 0.3},
        "training": {"batch_size": 4, "steps": 8},
        "teachers": {"deeper": {"path": "somewhere", "share": 3.0}},
    }
    return settings.from_config(values | changes)


def run(which, world, taught_by, steps, pair=PAIR):
    student, _, table, batch = world
    mesh = sharding.make_mesh(settings.Mesh(1, 1, 1), devices=jax.devices()[:1])
    optimizer, _ = optimizers.make_optimizer(
        which.optimizer, 8, average_decay=which.teaching.average_decay
    )
    seen = []
    with jax.set_mesh(mesh):
        current = state.create(mesh, student, optimizer)
        step = make_step(which, pair, optimizer, 8)
        for _ in range(steps):
            current, metrics = step(current, taught_by, table, batch)
            seen.append(jax.device_get(metrics))
    return jax.device_get(current), seen


@pytest.fixture(scope="module")
def alone(world):
    """Steps with each teacher by itself, at parameters that stand still."""
    which = experiment(teachers={}, optimizer=STILL)
    of = {"teacher": Pair(STUDENT, TEACHER), "deeper": Pair(STUDENT, DEEPER)}
    return {name: run(which, world, world[1][name], STEPS, pair) for name, pair in of.items()}


def test_the_sum_is_that_of_the_shares(world, alone):
    _, (metrics,) = run(experiment(), world, world[1], 1)
    first, deeper = (alone[name][1][0] for name in ("teacher", "deeper"))
    for term, share in (("kl", 0.25), ("cosine", 0.25), ("mlm", 1.0)):
        a, b = first["terms"][term], deeper["terms"][term]
        expected = share * a.sum + (1 - share) * b.sum
        np.testing.assert_allclose(metrics["terms"][term].sum, expected, rtol=1e-5)
        assert metrics["terms"][term].count == a.count
    expected = 0.25 * first["loss"] + 0.75 * deeper["loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_one_is_drawn_for_each_batch_with_its_share_for_a_probability(world, alone):
    others = {"deeper": {"path": "somewhere", "share": 99.0}}
    which = experiment(teachers=others, teaching={"several": "draw"}, optimizer=STILL)
    _, seen = run(which, world, world[1], STEPS)
    spoke = [
        [
            abs(float(ours["loss"]) - float(alone[name][1][step]["loss"])) < 1e-5
            for name in ("teacher", "deeper")
        ]
        for step, ours in enumerate(seen)
    ]
    assert all(sum(matches) == 1 for matches in spoke)
    key = state.purpose_key(which.seed, state.TEACHER)
    keys = [jax.random.fold_in(key, step) for step in range(STEPS)]
    drawn = [jax.random.categorical(one, jnp.log(jnp.array([0.01, 0.99]))) for one in keys]
    assert [matches.index(True) for matches in spoke] == [int(number) for number in drawn]


def test_the_average_is_the_average():
    decay, rate = 0.75, 0.5
    optimizer = optax.chain(optax.sgd(rate), optimizers.parameter_average(decay))
    params = {"kernel": jnp.array([1.0, -2.0])}
    opt_state, expected = optimizer.init(params), np.array([1.0, -2.0])
    for _ in range(3):
        updates, opt_state = optimizer.update({"kernel": jnp.ones(2)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        expected = decay * expected + (1 - decay) * np.asarray(params["kernel"])
    np.testing.assert_allclose(optimizers.average_of(opt_state)["kernel"], expected, rtol=1e-6)


def test_a_student_that_teaches_itself_begins_in_agreement_and_drifts(world):
    which = experiment(
        teachers={},
        teacher={"share": 0.0},
        teaching={"average_decay": 0.9},
        optimizer={"learning_rate": 0.05},
    )
    current, seen = run(which, world, {}, 3, Pair(STUDENT, TEACHER))
    apart = [float(metrics["terms"]["kl"].sum) for metrics in seen]
    assert abs(apart[0]) < 1e-5 and apart[2] > 10 * abs(apart[0])
    average = optimizers.average_of(current.opt_state)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), average, current.params)
    assert max(jax.tree.leaves(gaps)) > 1e-5


def test_the_average_lies_on_the_mesh_as_the_parameters_do(world):
    mesh = sharding.make_mesh(settings.Mesh(2, 2, 2))
    optimizer, _ = optimizers.make_optimizer(settings.Optimizer(), 8, average_decay=0.9)
    where = state.shardings_of(mesh, world[0], optimizer, settings.Student())
    average = optimizers.average_of(where.opt_state)
    kernel = average["encoder"]["layers_0"]["ffn"]["up"]["kernel"]
    assert kernel.spec == jax.P("fsdp", "tensor")


def test_shares_add_up_and_who_has_none_does_not_teach():
    which = experiment(teaching={"average_decay": 0.9, "average_share": 4.0})
    assert teachers.roster(which) == {"teacher": 0.125, "deeper": 0.375, "average": 0.5}
    none = experiment(teacher={"share": 0.0})
    assert teachers.roster(none) == {"deeper": 1.0}


def test_combinations_that_cannot_teach_are_refused():
    with pytest.raises(UserError, match="share is 0 and nobody else teaches"):
        experiment(teachers={}, teacher={"share": 0.0})
    with pytest.raises(UserError, match="draws among models that do not change"):
        experiment(teaching={"several": "draw", "average_decay": 0.9})


def test_a_run_s_pair_knows_how_its_teachers_make_vectors():
    def checkpoint(encoder, sentence=None):
        return Checkpoint(encoder, {}, "bert", Path("somewhere"), sentence, "")

    read = {
        "teacher": checkpoint(TEACHER, SentenceFiles("cls")),
        "others": {"deeper": checkpoint(DEEPER)},
    }
    materials = mock.Mock(Materials, **read)
    pair = teachers.pair_of(experiment(), materials, STUDENT)
    assert pair == Pair(STUDENT, TEACHER, (DEEPER,), "cls", ("mean",))


def test_sentence_vectors_are_made_as_each_model_makes_its_own(world):
    def of(pooling, pair, taught_by, **changes):
        which = experiment(
            losses={"similarity": {"weight": 1.0, "pooling": pooling}}, optimizer=STILL, **changes
        )
        _, (metrics,) = run(which, world, taught_by, 1, pair)
        return float(metrics["loss"])

    one = {"teachers": {}}
    first = world[1]["teacher"]
    cls = of("own", Pair(STUDENT, TEACHER, pooling="cls"), first, **one)
    mean = of("own", Pair(STUDENT, TEACHER), first, **one)
    assert cls == of("cls", Pair(STUDENT, TEACHER), first, **one) != mean
    assert mean == of("mean", Pair(STUDENT, TEACHER, pooling="cls"), first, **one)
    # Two teachers with the same weights: the other one's vectors are the mean, the student's not.
    pair = Pair(STUDENT, TEACHER, (TEACHER,), "cls", ("mean",))
    both = {"teacher": first, "deeper": first}
    assert of("own", pair, both) not in (cls, mean)
    assert of("own", pair._replace(others_pooling=("cls",)), both) == pytest.approx(cls, rel=1e-6)
