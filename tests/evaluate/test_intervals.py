import math

import numpy as np
import pytest

from distilflax.evaluate import intervals


def test_interval_holds_the_value_and_has_the_width_of_theory():
    """For a mean of n values of unit variance the 95% interval is 2 * 1.96 / sqrt(n) wide."""
    difference = np.random.default_rng(0).normal(size=400)
    difference = (difference - difference.mean()) / difference.std()
    found = intervals.compare_means(difference + 3.0, np.full(400, 2.5)).difference
    assert found.value == pytest.approx(0.5)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.1)


def test_pairing_removes_what_queries_have_in_common():
    rng = np.random.default_rng(0)
    hard = rng.normal(scale=10.0, size=200)
    found = intervals.compare_means(hard + 0.3 + 0.01 * rng.normal(size=200), hard).difference
    assert 0.29 < found.low < found.high < 0.31


def test_retention_is_the_ratio_of_means_and_not_the_mean_of_ratios():
    found = intervals.compare_means(np.array([1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.5]))
    assert found.retention.value == pytest.approx(2 / 2.5)


def test_same_seed_same_interval():
    x, y = np.random.default_rng(0).random((2, 30))

    def means(at):
        return x[at].mean(), y[at].mean()

    once = intervals.compare(means, 30)
    assert intervals.compare_means(x, y) == once == intervals.compare(means, 30)
    assert intervals.compare(means, 30, seed=1) != once


@pytest.mark.parametrize("score", [0.0, -0.5])
def test_of_a_score_that_is_not_above_0_nothing_is_kept(score):
    found = intervals.compare_means(np.full(5, 1.0 + score), np.full(5, score))
    assert found.difference == (1.0, 1.0, 1.0)
    assert all(map(math.isnan, found.retention))
    drawn = intervals.compare_draws((0.5, 0.1), np.array([0.5, 0.6]), np.array([-0.05, 0.2]))
    assert drawn.retention[1:] == pytest.approx((3.0, 3.0))
