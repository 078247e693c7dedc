"""Stopping on request: finish the step, save, leave.

SIGTERM is how a scheduler takes a machine back and SIGINT is Ctrl-C; both give time for one
checkpoint. A run that was stopped exits with 128 + the signal's number, as a shell expects (143
and 130): a script must not go on as if training had ended, and the same command takes it up again.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Stop:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def requested(self, step: int) -> bool:
        """Ask once after every step, with its number.

        On several hosts the answer turns true after the same step on all of them: a signal that
        reached one is passed on by JAX's preemption service, which agrees on the step.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """0 if nobody asked."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[Stop]:
    """Catch SIGTERM and the first SIGINT within the block; a second Ctrl-C interrupts at once.

    On several hosts signals are left alone: JAX listens for SIGTERM itself (`Stop.requested`), and
    Ctrl-C on one host could only break the others. Outside the main thread, where Python allows no
    handlers, nothing is caught.
    """
    stop = Stop()
    in_main = threading.current_thread() is threading.main_thread()
    if jax.process_count() > 1 or not in_main:
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if number == signal.SIGINT and stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number)
        again = "; Ctrl-C again stops at once, without saving" if number == signal.SIGINT else ""
        say(f"{stop.signal.name}: saving after this step, then leaving{again}.")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
