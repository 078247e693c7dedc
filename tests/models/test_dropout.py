"""Dropout: its rate, its expectation, and that no two numbers share a fate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.models.dropout import Dropout, dropped, kept


@pytest.mark.parametrize("rate", [1e-4, 0.02, 0.1, 0.2, 0.37, 0.5, 0.9])
def test_the_rate_is_right_and_the_expectation_unchanged(rate):
    mask = kept(jax.random.key(0), rate, (1000, 1001))
    assert mask.shape == (1000, 1001) and mask.dtype == bool
    # Five standard deviations of a million draws.
    assert abs(float(mask.mean()) - (1 - rate)) < 5 * (rate * (1 - rate) / mask.size) ** 0.5
    out = dropped(jax.random.key(0), jnp.full((1000, 1001), 3.0), rate)
    np.testing.assert_allclose(np.unique(out), [0, 3 / (1 - rate)], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_is_drawn_of_one_number_says_nothing_of_another(rate):
    """Of neighbours in a row and in a column, of rows, columns, and keys that follow each other."""
    keys = jax.vmap(jax.random.key)(jnp.arange(64))
    masks = np.stack([np.asarray(kept(key, rate, (128, 96)), np.float64) for key in keys])
    apart = (masks - (1 - rate)) / (rate * (1 - rate)) ** 0.5
    for axis, lags in ((0, (1, 2)), (1, (1, 2, 3, 64)), (2, (1, 2, 3, 4, 8, 64))):
        for lag in lags:
            there = np.moveaxis(apart, axis, 0)
            products = there[lag:] * there[:-lag]
            # Five standard deviations of the mean of so many products of expectation 0.
            assert abs(products.mean()) < 5 / products.size**0.5, (axis, lag)
    # How many of a row, of a column and of a mask stay is binomial: as wide as that, no wider.
    for axes in ((2,), (1,), (1, 2)):
        sums = apart.sum(axis=axes) / np.prod([apart.shape[axis] for axis in axes]) ** 0.5
        spread = 5 * (2 / sums.size) ** 0.5
        assert abs(sums.var() - 1) < spread + 2 / masks.shape[0] * (axes == (1, 2))


def test_nothing_and_everything_may_be_dropped():
    x = jnp.ones((3, 5), jnp.bfloat16)
    assert (dropped(jax.random.key(0), x, 1.0) == 0).all()
    assert dropped(jax.random.key(0), x, 0.1).dtype == jnp.bfloat16
    assert kept(jax.random.key(0), 1e-12, (3, 5)).all()
    assert Dropout(0.5, deterministic=True).apply({}, x) is x
    assert Dropout(0.0, deterministic=False).apply({}, x) is x


def test_a_sharded_mask_is_the_same_mask():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = lambda key: kept(key, 0.1, (16, 10))  # noqa: E731
    whole = jax.jit(draw)(jax.random.key(0))
    parts = jax.jit(draw, out_shardings=rows)(jax.random.key(0))
    np.testing.assert_array_equal(whole, parts)
