"""Is a quantised export faster than float32? Measured on this machine before it takes its place.

Whether int8 pays is up to the processor: without instructions for it, or at short lengths where
the conversions weigh more than the products, a smaller file may well be the slower one.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distilflax.errors import UserError
from distilflax.evaluate.speed import take_turns
from distilflax.export.parity import Run
from distilflax.export.samples import Batch

# Batch x length: one short text, one long one, several.
SHAPES = ((1, 16), (1, 128), (8, 128))
# Less is a tie: what two measurements of one file differ by.
TIE = 1.05
_ROUNDS = 11
_WARM_UP = 2


def measure(
    ours: Run,
    theirs: Run,
    *,
    words: int,
    positions: int,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> dict[str, dict[str, float]]:
    """For each shape, "1x16": `ratio`, the median over rounds of our time / theirs in the same
    round, and the median `milliseconds` and `float32_milliseconds`.

    Both take turns. Ids are drawn among `words`; shapes longer than `positions` are cut.
    """
    found = {}
    for batch, length in dict.fromkeys((b, min(n, positions)) for b, n in shapes):
        ids = np.random.default_rng(0).integers(0, words, (batch, length))
        given = Batch(ids, np.ones_like(ids), np.zeros_like(ids))
        calls = [lambda run=run, given=given: run(given) for run in (ours, theirs)]
        for call in calls * _WARM_UP:
            call()
        seconds = take_turns(calls, _ROUNDS, clock=time.perf_counter)
        median = 1e3 * np.median(seconds, axis=0)
        found[f"{batch}x{length}"] = {
            "ratio": float(np.median(seconds[:, 0] / seconds[:, 1])),
            "milliseconds": float(median[0]),
            "float32_milliseconds": float(median[1]),
        }
    return found


def check(figures: Mapping[str, Mapping[str, Any]], what: str, against: str) -> None:
    """Refuse an export that takes longer than `against` at any shape, beyond a tie.

    Raises:
      UserError: with every such shape.
    """
    slower = [f"{shape}: {f['ratio']:.2f}" for shape, f in figures.items() if f["ratio"] > TIE]
    if slower:
        raise UserError(
            f"The {what} export is slower than {against} on this machine (batch x length and the "
            f"ratio of times: {', '.join(slower)}); no file was left. Export {against}, or ask for "
            "this one all the same with --allow_slower."
        )
