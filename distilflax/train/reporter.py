"""Everything that a run says about itself, behind the few calls that the loop makes."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from distilflax.train.gradients import Accounts
from distilflax.train.metrics import Average, Late, StepMetrics
from distilflax.train.progress import ProgressLine, describe
from distilflax.train.records import JsonLines, TensorBoard
from distilflax.train.throughput import Peak, Throughput
from distilflax.train.workdir import Workdir


class Reporter:
    """Terminal, JSON lines and TensorBoard of one run, with the check that the loss is finite.

        with Reporter(...) as report:
            for step in ...:
                state, metrics = train_step(...)
                report.step(step, metrics, flops)
            report.flush()

    On several hosts every process checks, and the first one writes.
    """

    def __init__(
        self,
        workdir: Workdir,
        *,
        log_every: int,
        tensorboard: bool,
        total_steps: int,
        start_step: int,
        schedule: Callable[[Any], Any],
        peak: Peak,
        console: Console | None = None,
        name: str = "",
    ):
        """
        Args:
          log_every: steps from one line on the screen to the next.
          tensorboard: whether all of them are shown there too.
          start_step: the step of the restored checkpoint; 0 for a new run.
          name: what its lines begin with, if other runs say theirs at the same time.
          schedule: updates done to the learning rate of the next, as `make_optimizer` returns.

        Raises:
          UserError: TensorBoard is asked for but not installed, or a file cannot be written.
        """
        self._every = log_every
        self._total = total_steps
        # All rates at once and now: asked for one by one they would queue on the device behind the
        # step that is running, and wait for it.
        self._rates = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total_steps)))
        self.tokens = 0  # real tokens of the steps reported so far, by this start of the run
        self._late = Late()
        self._flops: deque[int | float] = deque()
        self._average = Average()
        self._throughput = Throughput(log_every, peak)
        self._records: list[JsonLines | TensorBoard] = []
        self._line: ProgressLine | None = None
        if jax.process_index() == 0:
            self._records.append(JsonLines(workdir.metrics, start_step))
            if tensorboard:
                self._records.append(TensorBoard(workdir.tensorboard, start_step))
            self._line = ProgressLine(total_steps, start_step, console, name)

    def step(self, step: int, metrics: Mapping[str, Any], flops: int | float) -> None:
        """Step `step` (counted from 1) was started; report the one before it.

        Args:
          metrics: what the jitted step returned, still on the device.
          flops: operations that this step needs.

        Raises:
          Diverged: a loss or the gradient of the step before is not finite.
        """
        self._flops.append(flops)
        self._report(self._late.push(step, metrics))

    def flush(self) -> None:
        """Wait for the last step and report it; raises as `step`."""
        self._report(self._late.flush())

    def evaluation(self, step: int, values: Mapping[str, int | float]) -> None:
        """Report what was measured on held-out data after `step`."""
        for record in self._records:
            record.write("evaluation", step, values)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"evaluation after step {step}: {shown}")

    def gradients(self, step: int, accounts: Accounts) -> None:
        """Report how hard each term pulls after `step`, and which pull together."""
        for record in self._records:
            record.write("gradients", step, accounts.record())
        norms = ", ".join(f"{name} {norm:.3g}" for name, norm in accounts.norms().items())
        pairs = ", ".join(f"{a}·{b} {cos:+.2f}" for (a, b), cos in accounts.cosines().items())
        self.say(f"gradients after step {step}: {norms}" + (f"; cosines {pairs}" if pairs else ""))

    def say(self, text: str) -> None:
        """A sentence for the person who watches."""
        if self._line is not None:
            self._line.say(text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time does not count as training: evaluation, saving.

        Flushes first, since a checkpoint saved before the last step was looked at could hold
        parameters that are NaN.
        """
        self.flush()
        self._throughput.pause()
        try:
            yield
        finally:
            self._throughput.resume()

    def close(self) -> None:
        for record in self._records:
            record.close()
        if self._line is not None:
            self._line.close()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _report(self, metrics: StepMetrics | None) -> None:
        if metrics is None:
            return
        speed = self._throughput
        speed.done(metrics.tokens, self._flops.popleft())
        self.tokens += metrics.tokens
        values = {
            "loss": metrics.loss,
            **{f"loss/{name}": value for name, value in metrics.term_means().items()},
            "grad_norm": metrics.grad_norm,
            "learning_rate": float(self._rates[metrics.step - 1]),
            "tokens": metrics.tokens,
            "tokens_per_second": speed.tokens_per_second,
            "mfu": speed.mfu,
        }
        for record in self._records:
            record.write("train", metrics.step, values)
        metrics.check_finite()  # After writing: the line of the step that failed is worth having.
        self._average.add(metrics)
        if self._line is None:
            return
        self._line.advance(metrics.step)
        if metrics.step % self._every == 0 or metrics.step == self._total:
            each, left = speed.seconds_per_step, self._total - metrics.step
            self._line.show(
                metrics.step,
                describe(
                    *self._average.take(),
                    speed.tokens_per_second,
                    speed.mfu,
                    None if each is None else each * left,
                ),
            )
