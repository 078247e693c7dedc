"""Bootstrap intervals: what another draw of as many queries might have said.

The queries are drawn anew, with replacement, and the statistic is taken of each draw; the middle
95% of its values are the interval (the percentile method, Efron 1979). Two systems are compared
on the same draws: that a query is hard for both then cancels out, and the interval of the
difference is far narrower than either system's own.

The interval speaks of the queries alone. The noise of training needs several seeds, whose interval
is `over_runs`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from distilflax.errors import UserError

RESAMPLES = 2000
_COVERAGE = 0.95


class Interval(NamedTuple):
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A system against a reference: absolute difference, and ratio (1 is as good)."""

    difference: Interval
    retention: Interval


def over_runs(values: Sequence[float]) -> Interval:
    """The mean of some runs and its interval by Student's t; of one run that is NaN, of none all.

    Raises:
      UserError: scipy is missing.
    """
    mean = float(np.mean(values)) if len(values) else math.nan
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    try:
        from scipy import stats
    except ImportError:
        raise UserError(
            "Intervals over several seeds need scipy: pip install 'distilflax[tasks]'."
        ) from None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = float(stats.t.ppf(0.5 + _COVERAGE / 2, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


# The score of a system, and of the reference, over the items at the given indices.
Statistic = Callable[[Int[np.ndarray, "n"]], tuple[float, float]]


def compare(
    statistic: Statistic, number: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """The scores that `statistic` gives over `number` items, compared, with bootstrap intervals.

    A draw where the reference scores 0 or less has nothing to keep, and is left out of the
    retention's interval.
    """
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(0, number, number)) for _ in range(resamples)])
    return compare_draws(statistic(np.arange(number)), draws[:, 0], draws[:, 1])


def compare_draws(
    scores: tuple[float, float],
    ours: Float[np.ndarray, "draws"],
    reference: Float[np.ndarray, "draws"],
) -> Comparison:
    """A system and its reference, whose `scores` are those of all items, by their scores of one and
    the same draws."""
    own, other = scores
    has_ratio = reference > 0
    return Comparison(
        around(own - other, ours - reference),
        around(own / other if other > 0 else float("nan"), ours[has_ratio] / reference[has_ratio]),
    )


def around(value: float, draws: Float[np.ndarray, "draws"]) -> Interval:
    """`value`, and the interval that its values of some draws make."""
    return Interval(value, *_middle(draws))


def compare_means(scores: Float[np.ndarray, "n"], reference: Float[np.ndarray, "n"]) -> Comparison:
    """`compare` for means of per-item scores; item i is the same for both."""

    def means(at: Int[np.ndarray, "n"]) -> tuple[float, float]:
        return float(scores[at].mean()), float(reference[at].mean())

    return compare(means, len(scores))


def _middle(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return float(low), float(high)
