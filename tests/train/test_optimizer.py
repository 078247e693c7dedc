import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilflax import models, settings
from distilflax.errors import UserError
from distilflax.train import optimizer as optimizers
from distilflax.train import sharding

BERT = settings.Encoder(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=32, max_positions=24
)


def rates(total, **values):
    schedule = optimizers.make_schedule(settings.Optimizer(learning_rate=1.0, **values), total)
    return np.array([schedule(step) for step in range(total + 1)])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.05, 0.5, 1.0])
def test_no_update_is_wasted_and_the_end_is_zero(kind, warmup):
    lr = rates(100, schedule=kind, warmup_fraction=warmup)
    assert (lr[:100] > 0).all()
    assert lr.max() == pytest.approx(1.0)
    if warmup < 1:
        assert lr[100] == pytest.approx(0.0, abs=1e-7)


def test_warm_up_rises_in_equal_parts_to_the_peak():
    lr = rates(100, schedule="linear", warmup_fraction=0.1)
    np.testing.assert_allclose(lr[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(lr[10:], (100 - np.arange(10, 101)) / 90, atol=1e-6)


def test_cosine_is_half_way_at_the_middle_and_constant_stays():
    assert rates(100, schedule="cosine", warmup_fraction=0.0)[50] == pytest.approx(0.5)
    assert (rates(100, schedule="constant", warmup_fraction=0.0) == 1).all()


def test_one_step_runs_at_the_peak():
    assert rates(1, warmup_fraction=0.05)[0] == 1.0


def test_a_run_without_steps_is_refused():
    with pytest.raises(UserError, match=r"config.training: the run has 0 steps"):
        optimizers.make_optimizer(settings.Optimizer(), 0)


def test_decay_takes_kernels_and_tables_and_nothing_else():
    mask = optimizers.decay_mask(models.shapes(BERT, mlm_head=True))
    names = {
        sharding.path_name(path): bool(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
    }
    spared = {name for name, decayed in names.items() if not decayed}
    assert spared == {name for name in names if name.endswith(("/bias", "/scale"))}
    # An untied decoder is a table too.
    head = {"decoder": 0, "bias": 0}
    assert optimizers.decay_mask(head) == {"decoder": True, "bias": False}
    # The other way round of the same trap: a kernel under a path that says "norm".
    assert optimizers.decay_mask({"norm_adapter": {"kernel": 0}}) == {
        "norm_adapter": {"kernel": True}
    }


def one_update(values, params, gradients):
    transform, _ = optimizers.make_optimizer(
        settings.Optimizer(schedule="constant", warmup_fraction=0.0, **values), 10
    )
    updates, _ = transform.update(gradients, transform.init(params), params)
    return optax.apply_updates(params, updates)


def test_decay_shrinks_a_kernel_that_learns_and_leaves_layernorm_alone():
    names = ("learns", "waits")
    params = {name: {"scale": jnp.ones(3), "kernel": jnp.ones((3, 3))} for name in names}
    gradients = jax.tree.map(jnp.zeros_like, params)
    # One weight of a kernel is reached; the others feel the decay alone.
    gradients["learns"]["kernel"] = gradients["learns"]["kernel"].at[0, 0].set(1e-3)
    for clip in (0.0, 1.0):
        given = {"learning_rate": 0.1, "weight_decay": 0.5, "clip_norm": clip}
        after = one_update(given, params, gradients)
        for name in names:
            np.testing.assert_array_equal(after[name]["scale"], 1.0)
        np.testing.assert_allclose(after["learns"]["kernel"][1:], 0.95, rtol=1e-6)
        np.testing.assert_array_equal(after["waits"]["kernel"], 1.0)


def test_the_first_update_is_adams():
    # At the first step m / sqrt(v) is the sign of the gradient, whatever the betas.
    params = {"dense": {"kernel": jnp.zeros(2)}}
    gradients = {"dense": {"kernel": jnp.array([3.0, -4.0])}}
    after = one_update({"learning_rate": 0.1, "eps": 0.0}, params, gradients)
    np.testing.assert_allclose(after["dense"]["kernel"], [-0.1, 0.1], rtol=1e-5)


def test_the_second_update_weighs_both_gradients_by_the_betas():
    values = {"learning_rate": 0.1, "b1": 0.5, "b2": 0.6, "eps": 0.0, "clip_norm": 0.0}
    flat = settings.Optimizer(schedule="constant", warmup_fraction=0.0, **values)
    transform, _ = optimizers.make_optimizer(flat, 10)
    params = {"dense": {"kernel": jnp.zeros(2)}}
    state = transform.init(params)
    first, second = np.array([3.0, -4.0]), np.array([-1.0, -2.0])
    for gradient in (first, second):
        updates, state = transform.update({"dense": {"kernel": jnp.array(gradient)}}, state, params)
    mean = (0.5 * 0.5 * first + 0.5 * second) / (1 - 0.5**2)
    square = (0.6 * 0.4 * first**2 + 0.4 * second**2) / (1 - 0.6**2)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1 * mean / square**0.5, rtol=1e-5)


@pytest.mark.parametrize("clip, scale", [(0.0, 1.0), (100.0, 1.0), (1.0, 0.2)])
def test_clipping_scales_the_whole_gradient(clip, scale):
    # With a huge eps, Adam's first update is proportional to the gradient that reaches it.
    params = {"dense": {"kernel": jnp.zeros(2)}}
    gradients = {"dense": {"kernel": jnp.array([3.0, -4.0])}}
    after = one_update({"learning_rate": 1.0, "eps": 1e6, "clip_norm": clip}, params, gradients)
    expected = np.array([-3.0, 4.0]) * scale / 1e6
    np.testing.assert_allclose(after["dense"]["kernel"], expected, rtol=1e-4)


def test_clipping_leaves_a_gradient_of_zeros_and_shows_one_that_is_not_finite():
    clip = optimizers.clip_by_norm(1.0)
    for given, wanted in ((0.0, 0.0), (np.nan, np.nan), (np.inf, np.nan)):
        found, _ = clip.update({"kernel": jnp.array([given])}, optax.EmptyState())
        np.testing.assert_array_equal(found["kernel"], [wanted])


def test_the_state_counts_with_the_schedule():
    config = settings.Optimizer(learning_rate=1.0, warmup_fraction=0.5, weight_decay=0.0)
    transform, schedule = optimizers.make_optimizer(config, 4)
    params = {"dense": {"kernel": jnp.zeros(1)}}
    state = transform.init(params)
    for step in range(4):
        before = params["dense"]["kernel"]
        updates, state = transform.update({"dense": {"kernel": jnp.ones(1)}}, state, params)
        params = optax.apply_updates(params, updates)
        moved = float((before - params["dense"]["kernel"])[0])
        assert moved == pytest.approx(float(schedule(step)), rel=1e-4)


def test_a_distillation_keeps_the_average_that_teaches():
    params = {"dense": {"kernel": jnp.zeros(1)}}
    for decay in (0.0, 0.9):
        teaching = dataclasses.replace(settings.Teaching(), average_decay=decay)
        experiment = dataclasses.replace(settings.Experiment(), teaching=teaching)
        kept = optimizers.optimizer_of(experiment, 4)[0].init(params)
        assert isinstance(kept[-1], optimizers.Average) == bool(decay)
