"""How fast models are beside each other, from token ids to sentence vectors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from distilflax import settings
from distilflax.errors import UserError
from distilflax.evaluate.model import Model, on_device
from distilflax.evaluate.vectors import sentence_vectors

_WARM_UP = 3

# Whose seconds are counted: the processor's are the steadier where others use the machine too.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Timing(NamedTuple):
    """Seconds a call: the median, and the span of its middle 80%."""

    median: float
    p10: float
    p90: float
    rounds: int
    batch: int
    length: int


def measure(
    compared: Sequence[Model],
    compute: settings.Compute,
    *,
    batch: int,
    length: int,
    rounds: int,
    pooling: str = "mean",
) -> list[Timing]:
    """Seconds that each model takes for `batch` full sequences of `length` tokens.

    Compiled beforehand, weights as arguments, from ids on the device to vectors on the device.
    The models take turns, each round beginning with another one, so that whatever else the
    machine does meets all of them alike. Models of one architecture run the same program and
    share one measurement.

    Raises:
      UserError: sequences longer than a model's positions.
    """
    for model in compared:
        if length > model.encoder.max_positions:
            raise UserError(
                f"evaluation.latency_length is {length} but {model.name!r} has "
                f"{model.encoder.max_positions} positions; shorten it."
            )
    distinct: dict[settings.Encoder, Model] = {}
    for model in compared:
        distinct.setdefault(_computed(model.encoder), model)
    calls = [_compiled(model, compute, batch, length, pooling) for model in distinct.values()]
    for call in calls * _WARM_UP:
        call()
    seconds = take_turns(calls, rounds, clock=time.perf_counter)
    of_architecture = {
        encoder: _summary(seconds[:, j], batch, length) for j, encoder in enumerate(distinct)
    }
    return [of_architecture[_computed(model.encoder)] for model in compared]


def take_turns(
    calls: Sequence[Callable[[], Any]],
    rounds: int,
    *,
    clock: Callable[[], float],
    pause: float = 0.0,
    warm: bool = False,
) -> Float[np.ndarray, "rounds calls"]:
    """Seconds by `clock` of every call in every round; each round begins with another call.

    `pause` seconds pass before each call, and are not counted. Nor, with `warm`, is a call before
    each that is: the others have put its weights out of the caches and its threads to sleep.
    """
    seconds = np.zeros((rounds, len(calls)))
    for i in range(rounds):
        for j in range(len(calls)):
            turn = (i + j) % len(calls)
            time.sleep(pause)
            if warm:
                calls[turn]()
            start = clock()
            calls[turn]()
            seconds[i, turn] = clock() - start
    return seconds


def ratio(
    seconds: Float[np.ndarray, " rounds"], reference: Float[np.ndarray, " rounds"]
) -> dict[str, float]:
    """Median of the quotients of equal rounds, and where their middle 80% begins and ends."""
    low, middle, high = np.quantile(seconds / reference, [0.1, 0.5, 0.9])
    return {"value": float(middle), "low": float(low), "high": float(high)}


def _computed(encoder: settings.Encoder) -> settings.Encoder:
    """The settings without what this measurement does not run: equal ones are the same program."""
    return replace(encoder, pooler=False, dropout=0.0, attention_dropout=0.0, int8_range="none")


def _compiled(
    model: Model, compute: settings.Compute, batch: int, length: int, pooling: str
) -> Callable[[], None]:
    params = on_device(model)["encoder"]
    # Which ids they are changes nothing; different ones keep the embedding table out of the cache
    # as text does.
    ids = jax.random.randint(jax.random.key(0), (batch, length), 0, model.encoder.vocab_size)
    real = jnp.ones((batch, length), jnp.int32)
    arguments = (params, ids, real)
    encoder = replace(model.encoder, int8_range="none")  # what it was trained for is not its speed
    program = sentence_vectors.lower(encoder, compute, pooling, True, *arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def _summary(seconds: Float[np.ndarray, " rounds"], batch: int, length: int) -> Timing:
    p10, median, p90 = (float(q) for q in np.quantile(seconds, [0.1, 0.5, 0.9]))
    return Timing(median, p10, p90, len(seconds), batch, length)
