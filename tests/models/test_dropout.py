"""Dropout: its rate, its expectation, and that no two numbers share a fate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.models.dropout import Dropout, dropped, kept


@pytest.mark.parametrize("rate", [1e-4, 0.02, 0.1, 0.2, 0.37, 0.5, 0.9])
def test_the_rate_is_right_and_the_expectation_unchanged(rate):
    mask, share = kept(jax.random.key(0), rate, (1000, 1001))
    assert mask.shape == (1000, 1001) and mask.dtype == bool
    assert abs((1 - share) - rate) <= 0.02 * rate
    # Five standard deviations of a million draws.
    assert abs(float(mask.mean()) - share) < 5 * (share * (1 - share) / mask.size) ** 0.5
    out = dropped(jax.random.key(0), jnp.full((1000, 1001), 3.0), rate)
    np.testing.assert_allclose(np.unique(out), [0, 3 / share], rtol=1e-6)


def test_numbers_of_one_word_and_of_neighbouring_rows_are_drawn_apart():
    mask = np.asarray(kept(jax.random.key(1), 0.5, (4000, 8))[0], np.float64)
    correlation = np.corrcoef(np.concatenate([mask[:-1], mask[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(16)).max() < 0.08
    other = np.asarray(kept(jax.random.key(2), 0.5, (4000, 8))[0])
    assert 0.45 < (mask == other).mean() < 0.55


def test_nothing_and_everything_may_be_dropped():
    x = jnp.ones((3, 5), jnp.bfloat16)
    assert (dropped(jax.random.key(0), x, 1.0) == 0).all()
    assert dropped(jax.random.key(0), x, 0.1).dtype == jnp.bfloat16
    mask, share = kept(jax.random.key(0), 1e-12, (3, 5))
    assert mask.all() and share == 1.0
    assert Dropout(0.5, deterministic=True).apply({}, x) is x
    assert Dropout(0.0, deterministic=False).apply({}, x) is x


def test_a_sharded_mask_is_the_same_mask():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = lambda key: kept(key, 0.1, (16, 10))[0]  # noqa: E731
    whole = jax.jit(draw)(jax.random.key(0))
    parts = jax.jit(draw, out_shardings=rows)(jax.random.key(0))
    np.testing.assert_array_equal(whole, parts)
