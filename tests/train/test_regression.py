"""The linear algebra of student.init=regressed; what it does to a student is in test_loop.py."""

import numpy as np
import pytest

from distilflax.train import regression

WIDTH, OUT = 20, 3


def moments(rng, rows, true, noise):
    x = rng.normal(size=(rows, WIDTH))
    y = x @ true + noise * rng.normal(size=(rows, OUT))
    return [x.T @ x, x.T @ y]


@pytest.mark.parametrize("rows", [400, 4000])
def test_what_is_linear_is_found(rows):
    rng = np.random.default_rng(0)
    before, change = rng.normal(size=(2, WIDTH, OUT))
    fit, held_out = (moments(rng, rows, before + change, 0.0) for _ in range(2))
    found = regression._ridge_change(before, fit, held_out)
    np.testing.assert_allclose(found, change, atol=0.03 * np.abs(change).max())


def test_what_is_noise_stays_as_it_was():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(WIDTH, OUT))
    fit, held_out = (moments(rng, 30, before, 5.0) for _ in range(2))
    found = regression._ridge_change(before, fit, held_out)
    weakest = regression._change(before, *fit, min(regression._RIDGES))
    assert np.linalg.norm(found) < 0.7 * np.linalg.norm(weakest)


def test_the_solution_is_that_of_the_least_squares():
    rng = np.random.default_rng(0)
    before, true = rng.normal(size=(2, WIDTH, OUT))
    x = rng.normal(size=(50, WIDTH))
    y = x @ true + rng.normal(size=(50, OUT))
    # A ridge is so many more rows that ask for the old weights.
    root = np.sqrt(0.3 * np.square(x).sum() / WIDTH)
    rows, wanted = np.vstack([x, root * np.eye(WIDTH)]), np.vstack([y, root * before])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0] - before
    found = regression._change(before, x.T @ x, x.T @ y, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
