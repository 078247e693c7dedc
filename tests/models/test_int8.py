"""Arithmetic as in an int8 file: the numbers are those of the files, the gradients of none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models
from distilflax.export.rounding import quantized
from distilflax.models import int8
from distilflax.models.product import product
from distilflax.settings import Compute


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("largest", sorted(int8.LARGEST.values()))
def test_weights_are_rounded_as_the_files_round_them(axis, largest):
    matrix = drawn(17, 9)
    matrix[3], matrix[:, 4] = 0.0, 0.0
    numbers, scale = quantized(matrix, largest, axis)
    wanted = numbers * np.expand_dims(scale, axis)
    np.testing.assert_allclose(int8.rounded(jnp.asarray(matrix), largest, axis), wanted, rtol=1e-6)


@pytest.mark.parametrize("shift", [-100.0, 0.0, 0.5, 100.0])
def test_activations_take_256_steps_that_include_zero(shift):
    """As DynamicQuantizeLinear: nothing is off by more than half a step, and 0 stays 0."""
    x = drawn(3, 5, 8) + np.float32(shift)
    x[0, 0, 0] = 0.0
    found = np.asarray(int8.rounded_activations(jnp.asarray(x)))
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    # The zero point is a whole number, so that the ends of the range may lie half a step off.
    assert np.abs(found - x).max() <= step * 1.001
    assert found[0, 0, 0] == 0.0
    steps = found / step
    np.testing.assert_allclose(steps, np.rint(steps), atol=2e-2)
    assert not np.asarray(int8.rounded_activations(jnp.zeros((2, 3)))).any()


def test_gradients_pass_through_the_rounding():
    x, kernel = jnp.asarray(drawn(4, 6)), jnp.asarray(drawn(6, 3, seed=1))
    weight = drawn(4, 3, seed=2)
    multiply = product("full")

    def loss(x, kernel):
        return jnp.sum(multiply(x, kernel) * weight)

    of_x, of_kernel = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)
    np.testing.assert_allclose(of_x, weight @ int8.rounded(kernel, 127, 0).T, rtol=1e-5)
    np.testing.assert_allclose(
        of_kernel, np.asarray(int8.rounded_activations(x)).T @ weight, rtol=1e-4, atol=1e-5
    )


def test_the_setting_alone_decides(distilbert, make_params):
    # Lively ones: of an initialisation's small numbers the rounding would not show.
    params = make_params(distilbert)["encoder"]
    ids = jnp.arange(12).reshape(2, 6) % distilbert.vocab_size
    encode = jax.jit(models.encode, static_argnums=(0, 1))

    def hidden(int8_range):
        encoder = dataclasses.replace(distilbert, int8_range=int8_range)
        return encode(encoder, Compute(), params, ids, jnp.ones_like(ids))["last_hidden_state"]

    exact, seven, eight = (np.asarray(hidden(name)) for name in ("none", "portable", "full"))
    assert 0 < np.abs(eight - exact).mean() < np.abs(seven - exact).mean()
