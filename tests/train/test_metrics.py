import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from distilflax.errors import UserError
from distilflax.train.metrics import Average, Diverged, Late, StepMetrics


class Sum(NamedTuple):
    sum: jax.Array
    count: jax.Array


def on_device(step, **terms):
    terms = terms or {"kl": (2.0 * step, 4.0)}
    return {
        "loss": jnp.float32(step),
        "grad_norm": jnp.float32(1.0),
        "tokens": jnp.int32(10),
        "terms": {name: Sum(jnp.float32(s), jnp.float32(n)) for name, (s, n) in terms.items()},
    }


def on_host(step=3, loss=1.0, grad_norm=1.0, **terms):
    return StepMetrics(step, loss, terms or {"kl": (1.0, 2.0)}, grad_norm, 10)


def test_metrics_come_one_step_late_and_each_once():
    late = Late()
    assert late.flush() is None
    assert late.push(1, on_device(1)) is None
    assert late.push(2, on_device(2)).step == 1
    assert late.push(3, on_device(3)).step == 2
    assert late.flush().step == 3
    assert late.flush() is None


def test_the_latest_step_is_never_waited_for(monkeypatch):
    """Only what was pushed before may be fetched: the newest step is still running."""
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(float(x["loss"])) or get(x))
    late = Late()
    for step in range(1, 5):
        late.push(step, on_device(step))
        assert fetched == [float(k) for k in range(1, step)]


def test_what_comes_back_is_on_the_host_with_sums_and_counts():
    late = Late()
    late.push(7, on_device(7, kl=(6.0, 3.0), mlm=(0.0, 0.0)))
    metrics = late.flush()
    assert metrics == StepMetrics(7, 7.0, {"kl": (6.0, 3.0), "mlm": (0.0, 0.0)}, 1.0, 10)
    # Nothing was masked in this batch: no mean, and no 0/0 that looks like divergence.
    assert metrics.term_means() == {"kl": 2.0}
    metrics.check_finite()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "metrics, what",
    [
        (lambda bad: on_host(loss=bad, kl=(1.0, 2.0), mlm=(bad, 2.0)), "the loss term 'mlm'"),
        (lambda bad: on_host(loss=bad), "the total loss"),
        (lambda bad: on_host(grad_norm=bad), "the gradient norm"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_named(metrics, what, value):
    with pytest.raises(Diverged, match=rf"^step 3: {what} is {value}; lower config.optimizer") as e:
        metrics(value).check_finite()
    assert (e.value.step, e.value.what) == (3, what)
    assert isinstance(e.value, UserError)


def test_averages_weigh_terms_by_their_counts():
    average = Average()
    average.add(on_host(loss=1.0, kl=(10.0, 1.0)))
    average.add(on_host(loss=3.0, kl=(10.0, 9.0), mlm=(4.0, 2.0)))
    assert average.take() == (2.0, {"kl": 2.0, "mlm": 2.0})
    average.add(on_host(loss=5.0))
    assert average.take() == (5.0, {"kl": 0.5})
