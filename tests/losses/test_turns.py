"""Layers that take turns: each alone for its part of the run, none of them afterwards."""

import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.losses import units
from distilflax.settings import Term

VALUES = [jnp.full(2, 3.0), jnp.full(2, 5.0), jnp.full(2, 9.0), jnp.full(2, 1.0)]


@pytest.mark.parametrize(
    "progress, due", [(0.0, 3.0), (0.09, 3.0), (0.11, 5.0), (0.25, 9.0), (0.39, 1.0), (0.41, 0.0)]
)
def test_one_pair_at_a_time(progress, due):
    found = units._over_layers(VALUES, Term(turns=0.4), jnp.float32(progress))
    np.testing.assert_allclose(found, due / 4)


def test_over_the_run_the_turns_are_the_mean():
    moments = (np.arange(400) + 0.5) / 400
    for turns in (0.5, 1.0):
        term = Term(turns=turns)
        found = [units._over_layers(VALUES, term, jnp.float32(at))[0] for at in moments[::5]]
        # Each of four pairs has a quarter of the turns, and is divided by four.
        assert np.mean(found) == pytest.approx(turns * 4.5 / 4, rel=1e-5)


def test_without_turns_all_count_at_once():
    np.testing.assert_allclose(units._over_layers(VALUES, Term(), jnp.float32(0.9)), 4.5)
