"""What the activations of a model range over, measured on a user's texts: for static int8.

Dynamic int8 measures each call anew; static int8 measures once, beforehand, and cuts off what is
beyond. That spares the measuring, and what a text gets does not depend on the texts beside it; but
text unlike that of the calibration is answered worse, and nothing says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distilflax.errors import UserError
from distilflax.export import numpy_model, samples
from distilflax.export.subject import Subject


class Range(NamedTuple):
    """From `low` <= 0 to `high` >= 0: zero must be one of the numbers, padding is made of it."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """For every product of a model, by the path of its kernel, what went into it on some texts."""

    ranges: Mapping[str, Range]
    texts: int
    percentile: float


def measure(subject: Subject, texts: Sequence[str], percentile: float = 100.0) -> Calibration:
    """The ranges of the activations on `texts`.

    With a `percentile` below 100 the rarest numbers are cut off, half of them at either end: a few
    that are far out take the digits of all others.

    Raises:
      UserError: no texts.
    """
    if not texts:
        raise UserError("There is no text to calibrate on; give some of the kind the model is for.")
    batches = list(samples.unpadded(subject, texts))
    tokens = sum(batch.input_ids.size for batch in batches)
    model = _Recorder(subject.settings(), subject.flat(), tokens, (100 - percentile) / 200)
    for batch in batches:
        model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    return Calibration(model.ranges(), len(texts), percentile)


class _Recorder(numpy_model.Model):
    """The model in numpy, which remembers the ends of what each product is given."""

    def __init__(self, settings, weights, tokens: int, share: float):
        super().__init__(settings, weights)
        self._tokens, self._share = tokens, share
        self._counts: dict[str, int] = {}
        self._lowest: dict[str, np.ndarray] = {}
        self._highest: dict[str, np.ndarray] = {}

    def dense(self, path: str, x) -> np.ndarray:
        self._see(path, x)
        return super().dense(path, x)

    def norm(self, path: str, x) -> np.ndarray:
        normed = super().norm(path, x)
        if path == "mlm_head/norm":  # what is multiplied with the table of words
            own = "mlm_head/decoder" in self.weights
            self._see("mlm_head/decoder" if own else "encoder/embeddings/word", normed)
        return normed

    def ranges(self) -> dict[str, Range]:
        found = {}
        for path, count in self._counts.items():
            at = int(self._share * count)
            low, high = np.sort(self._lowest[path])[at], np.sort(self._highest[path])[-1 - at]
            found[path] = Range(min(float(low), 0.0), max(float(high), 0.0))
        return found

    def _see(self, path: str, x) -> None:
        # As many from either end as can be cut off once all tokens were seen, and the one after.
        most = int(self._share * self._tokens * x.shape[-1]) + 1
        lowest = np.append(self._lowest.get(path, ()), x)
        highest = np.append(self._highest.get(path, ()), x)
        at = min(most, len(lowest)) - 1
        self._lowest[path] = np.partition(lowest, at)[: at + 1]
        at = min(most, len(highest)) - 1
        self._highest[path] = -np.partition(-highest, at)[: at + 1]
        self._counts[path] = self._counts.get(path, 0) + x.size
