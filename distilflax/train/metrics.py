"""What a step measured, fetched one step late, and the check that it is finite.

Asking the device for a number waits until the number is there. A loop that asks for the loss of
the step it has just started leaves the device idle while the host prepares the next one; asked
one step late, the answer is already there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from distilflax.errors import UserError


class Diverged(UserError):
    """A loss or the gradient stopped being a number: `what` of step `step`."""

    def __init__(self, step: int, what: str, value: float):
        super().__init__(
            f"step {step}: {what} is {value}; lower config.optimizer.learning_rate, set "
            "config.optimizer.clip_norm or use config.compute.dtype=float32 (checkpoints are from "
            "before this step)."
        )
        self.step = step
        self.what = what


@dataclass(frozen=True)
class StepMetrics:
    """One step on the host. `terms` are (sum, count), so that steps can be averaged exactly.

    `step` counts updates, this one included; `grad_norm` is that before clipping; `tokens` are the
    real ones of the batch.
    """

    step: int
    loss: float
    terms: dict[str, tuple[float, float]]
    grad_norm: float
    tokens: int

    @classmethod
    def of(cls, step: int, host: Mapping[str, Any]) -> "StepMetrics":
        """From what the jitted step returned, fetched from the device."""
        return cls(
            step=step,
            loss=float(host["loss"]),
            terms={name: (float(s), float(n)) for name, (s, n) in host["terms"].items()},
            grad_norm=float(host["grad_norm"]),
            tokens=int(host["tokens"]),
        )

    def term_means(self) -> dict[str, float]:
        """Each term's sum / count; a term that nothing was counted for is left out."""
        return {name: total / count for name, (total, count) in self.terms.items() if count}

    def check_finite(self) -> None:
        """
        Raises:
          Diverged: naming the first culprit: a term, before the total that it spoils, before the
            gradient.
        """
        suspects = {f"the loss term {name!r}": total for name, (total, _) in self.terms.items()}
        suspects |= {"the total loss": self.loss, "the gradient norm": self.grad_norm}
        for what, value in suspects.items():
            if not math.isfinite(value):
                raise Diverged(self.step, what, value)


class Late:
    """Holds the device's metrics of the latest step and hands out those of the one before.

    late = Late()
    ready = late.push(1, metrics)   # None
    ready = late.push(2, metrics)   # step 1
    ready = late.flush()            # step 2: waits for the device

    `read` makes of a step and its metrics on the host what is handed out.
    """

    def __init__(self, read: Callable[[int, Any], Any] = StepMetrics.of) -> None:
        self._read = read
        self._waiting: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Mapping[str, Any]) -> Any:
        """Take the metrics of `step` as the jitted step returned them; give back the earlier ones.

        Args:
          metrics: device scalars `loss`, `grad_norm`, `tokens`, and `terms`: {name: (sum, count)}.
        """
        for leaf in jax.tree.leaves(metrics):
            leaf.copy_to_host_async()
        ready = self.flush()
        self._waiting = (step, metrics)
        return ready

    def flush(self) -> Any:
        """What is still held, if anything. Call before saving a checkpoint and at the end."""
        if self._waiting is None:
            return None
        step, metrics = self._waiting
        self._waiting = None
        return self._read(step, jax.device_get(metrics))


class Average:
    """Running averages over steps: terms by their counts, the total loss by steps."""

    def __init__(self) -> None:
        self._clear()

    def add(self, metrics: StepMetrics) -> None:
        self._steps += 1
        self._loss += metrics.loss
        for name, (total, count) in metrics.terms.items():
            before = self._terms.get(name, (0.0, 0.0))
            self._terms[name] = (before[0] + total, before[1] + count)

    def take(self) -> tuple[float, dict[str, float]]:
        """The averages since the last call, total loss and terms; then start again."""
        loss = self._loss / max(1, self._steps)
        terms = {name: total / count for name, (total, count) in self._terms.items() if count}
        self._clear()
        return loss, terms

    def _clear(self) -> None:
        self._steps = 0
        self._loss = 0.0
        self._terms: dict[str, tuple[float, float]] = {}
