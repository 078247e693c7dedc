"""What a step draws, and how far in the run it takes itself to be: dropout, masks, schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilflax import models, settings
from distilflax.batches.masking import mask_table
from distilflax.train.state import State
from distilflax.train.step import Pair, make_held_out_step, make_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TEACHER = settings.Encoder(
    vocab_size=32,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=8,
    max_positions=8,
    type_vocab_size=0,
    pooler=False,
    dropout=0.0,
    attention_dropout=0.0,
)
STUDENT = dataclasses.replace(TEACHER, num_layers=1)
TOTAL = 10


@pytest.fixture(scope="module")
def world():
    """(student, teacher, batch), the parameters drawn so large that the two disagree."""
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < np.array([8, 5, 3, 7])[:, None]).astype(np.int32)
    ids = rng.integers(5, 32, mask.shape).astype(np.int32) * mask
    params = (
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
        for shapes in (models.shapes(one, mlm_head=True) for one in (STUDENT, TEACHER))
    )
    return *params, {"input_ids": jnp.array(ids), "attention_mask": jnp.array(mask)}


def experiment(terms, accumulate=1, **masking):
    training = {"batch_size": 4, "steps": TOTAL, "accumulate": accumulate}
    masking = {"rate": 0.3} | masking
    return settings.from_config({"losses": terms, "training": training, "masking": masking})


def table(which):
    return mask_table(np.arange(32) < 5, np.arange(32) < 0, 4, np.ones(32, np.int64), which.masking)


def stepper(which, world, student=STUDENT):
    """From the number of a step and a batch to its metrics, at parameters that stand still."""
    params, teacher, whole = world
    still = optax.sgd(0.0)
    step = make_step(which, Pair(student, TEACHER), still, TOTAL)

    def at(number, batch=whole):
        own = jax.tree.map(jnp.array, params)  # They are donated.
        state = State(jnp.int32(number), own, still.init(own))
        return jax.device_get(step(state, teacher, table(which), batch)[1])

    return at


def held_out(terms, world, number):
    student, teacher, batch = world
    which = experiment(terms)
    step = make_held_out_step(which, Pair(STUDENT, TEACHER))
    return jax.device_get(step(student, teacher, table(which), batch, jnp.int32(number)))


def test_every_micro_batch_has_a_dropout_of_its_own(world):
    noisy, terms = dataclasses.replace(STUDENT, dropout=0.5), {"cosine": {"weight": 1.0}}
    at = stepper(experiment(terms, accumulate=2, sequences=0.0), world, noisy)
    # Micro-batch m takes every second row from m on: the same rows in the first and in the second,
    # beside nothing but padding in the other one.
    apart = jax.tree.map(lambda leaf: jnp.zeros((8, 8), leaf.dtype).at[::2].set(leaf), world[2])
    first, second = at(3, apart), at(3, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), apart))
    assert first["terms"]["cosine"].count == second["terms"]["cosine"].count == 23
    assert abs(first["loss"] - second["loss"]) > 1e-3


MLM = {"mlm": {"weight": 3.0, "schedule": ((0.0, 0.0), (1.0, 1.0))}}
SOFTENING = {"kl": {"weight": 1.0, "temperature_schedule": ((0.0, 1.0), (1.0, 4.0))}}


@pytest.fixture(scope="module")
def halfway(world):
    """Metrics at the first step of a run and at the one in its middle."""
    at = stepper(experiment(MLM), world)
    return at(0), at(TOTAL // 2)


@pytest.fixture(scope="module")
def measured(world):
    """What held-out batch 5 comes to: of the number of the step in the middle."""
    return held_out(MLM | SOFTENING, world, TOTAL // 2)


def test_a_weight_is_scheduled_by_the_updates_made_so_far(halfway):
    for found, share in zip(halfway, (0.0, 0.5), strict=True):
        mean = found["terms"]["mlm"].sum / found["terms"]["mlm"].count
        assert found["loss"] == pytest.approx(3.0 * share * mean, rel=1e-5)


def test_held_out_text_is_masked_by_keys_of_its_own(halfway, measured):
    trained = halfway[1]["terms"]["mlm"]
    assert measured["mlm"].count == trained.count
    assert abs(measured["mlm"].sum - trained.sum) > 1e-2


def test_held_out_text_is_measured_as_at_the_end_of_a_run(world, measured):
    last = held_out({"kl": {"weight": 1.0, "temperature": 4.0}}, world, TOTAL // 2)
    assert measured["kl"].sum == pytest.approx(last["kl"].sum, rel=1e-5)
