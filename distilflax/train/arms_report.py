"""What a group of arms says about itself while it trains: one line to watch, a log for each arm."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilflax import losses
from distilflax.train.arms import Group
from distilflax.train.metrics import Diverged, Late, StepMetrics
from distilflax.train.optimizer import make_schedule
from distilflax.train.progress import ProgressLine, describe
from distilflax.train.records import JsonLines
from distilflax.train.throughput import Peak, Throughput


class ArmsReport:
    """`FOLDER/ARM/metrics.jsonl` for each arm, as its own run would write it, and a progress line.

    An arm that diverges stops nothing: the others know nothing of it. Its step is in `diverged`.
    """

    def __init__(
        self, folder: Path, group: Group, total_steps: int, start: int, diverged: Mapping[str, int]
    ):
        """
        Args:
          diverged: what is known already, of a run that goes on at `start`.

        Raises:
          UserError: a log cannot be written.
        """
        program = group.program
        self.tokens = 0  # real tokens of the steps reported so far, by this start of the run
        self.diverged = dict(diverged)
        self._arms, self._total = group.arms, total_steps
        self._every = program.training.log_every

        def rates(peak):
            schedule = make_schedule(program.optimizer, total_steps, peak)
            return jax.vmap(schedule)(jnp.arange(total_steps))

        self._rates = np.asarray(jax.jit(jax.vmap(rates))(group.dials().learning_rate))
        self._late = Late(self._of_arms)
        self._speed = Throughput(self._every, Peak(1.0, "not used"))
        self._records: dict[str, JsonLines] = {}
        self._line: ProgressLine | None = None
        if jax.process_index() == 0:
            for name in group.arms:
                (folder / name).mkdir(parents=True, exist_ok=True)
                self._records[name] = JsonLines(folder / name / "metrics.jsonl", start)
            self._line = ProgressLine(total_steps, start)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Step `step` (counted from 1) was started; report the one before it."""
        self._report(self._late.push(step, metrics))

    def flush(self) -> None:
        """Wait for the last step and report it."""
        self._report(self._late.flush())

    def say(self, text: str) -> None:
        """A sentence for the person who watches."""
        if self._line is not None:
            self._line.say(text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time does not count as training; the step that still runs does."""
        self.flush()
        self._speed.pause()
        try:
            yield
        finally:
            self._speed.resume()

    def __enter__(self) -> "ArmsReport":
        return self

    def __exit__(self, *error: object) -> None:
        for record in self._records.values():
            record.close()
        if self._line is not None:
            self._line.close()

    def _of_arms(self, step: int, host: Mapping[str, Any]) -> dict[str, StepMetrics]:
        """Each arm's own share of the metrics: of its own terms alone."""
        found = {}
        for i, (name, arm) in enumerate(self._arms.items()):
            terms = losses.active(arm.losses)
            own = {
                "loss": host["loss"][i],
                "terms": {term: (s[i], n[i]) for term, (s, n) in host["terms"].items()},
                "grad_norm": host["grad_norm"][i],
                "tokens": host["tokens"],
            }
            own["terms"] = {term: own["terms"][term] for term in terms}
            found[name] = StepMetrics.of(step, own)
        return found

    def _report(self, ready: dict[str, StepMetrics] | None) -> None:
        if ready is None:
            return
        first = next(iter(ready.values()))
        step = first.step
        self.tokens += first.tokens
        self._speed.done(first.tokens * len(ready), 0)
        for i, (name, metrics) in enumerate(ready.items()):
            if name in self._records:
                self._records[name].write(
                    "train",
                    step,
                    {
                        "loss": metrics.loss,
                        **{f"loss/{term}": mean for term, mean in metrics.term_means().items()},
                        "grad_norm": metrics.grad_norm,
                        "learning_rate": float(self._rates[i, step - 1]),
                        "tokens": metrics.tokens,
                    },
                )
            self._check(name, metrics)
        if self._line is None:
            return
        self._line.advance(step)
        if step % self._every == 0 or step == self._total:
            each = self._speed.seconds_per_step
            left = None if each is None else each * (self._total - step)
            shown = {name: metrics.loss for name, metrics in ready.items()}
            speed = self._speed.tokens_per_second
            self._line.show(step, describe(first.loss, shown, speed, None, left))

    def _check(self, name: str, metrics: StepMetrics) -> None:
        if name in self.diverged:
            return
        try:
            metrics.check_finite()
        except Diverged as trouble:
            self.diverged[name] = metrics.step
            self.say(f"arm {name}: {trouble}")
