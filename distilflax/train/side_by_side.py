"""Arms in turn, or several at the same time in one process.

Some part of every step runs on one core only: reductions, copies, the ends of loops that do not
divide evenly. Two arms side by side fill each other's gaps, and the one makes its student or
compiles while the other trains. Each has its own thread, workdir and program, so it computes what
it would compute alone.
"""

import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import jax

from distilflax import losses
from distilflax.errors import UserError
from distilflax.settings import Experiment
from distilflax.train.loop import Beside, Outcome, train
from distilflax.train.setup import Materials
from distilflax.train.signals import stop_on_signal
from distilflax.train.throughput import peak_flops


def train_arms(
    arms: Mapping[str, Experiment],
    materials: Materials,
    folder: Path,
    *,
    at_once: int,
    say: Callable[[str], None],
    keep: Callable[[str, Outcome], None],
) -> tuple[dict[str, Outcome], int]:
    """Every arm's run, in `folder`/NAME, `at_once` of them at any time; and the exit code.

    `keep` is called with the name and the outcome of each arm that came to its end, as soon as it
    did. A signal, or an arm that fails, stops the others after the step that they are in; they save
    what they have. Then the code is not 0, and arms that had not begun have no outcome.

    Raises:
      UserError: as `train` does; or several at once were asked for on several hosts.
    """
    if at_once == 1:
        return _in_turn(arms, materials, folder, say, keep)
    if jax.process_count() > 1:
        raise UserError(
            f"config.training.arms_at_once is {at_once}, but hosts that start their programs in "
            "different orders wait for each other for ever; set it to 1."
        )
    peak = peak_flops()  # While nothing else is running.
    with (
        stop_on_signal(say) as stop,
        ThreadPoolExecutor(at_once, thread_name_prefix="arm") as pool,
    ):

        def run(name: str) -> Outcome | None:
            if stop.exit_code:
                return None
            say(_title(name, arms[name]))
            outcome = train(arms[name], materials, folder / name, Beside(name, stop, peak))
            if not outcome.exit_code:
                keep(name, outcome)
            return outcome

        running = {name: pool.submit(run, name) for name in arms}
        try:
            wait(running.values(), return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            # The second Ctrl-C. Threads cannot be interrupted, and leaving Python waits for them.
            os._exit(128 + signal.SIGINT)
        if any(one.done() and one.exception() for one in running.values()):
            stop.signal = stop.signal or signal.SIGTERM
        outcomes = {name: one.result() for name, one in running.items()}
    return {name: one for name, one in outcomes.items() if one is not None}, stop.exit_code


def _in_turn(arms, materials, folder, say, keep) -> tuple[dict[str, Outcome], int]:
    outcomes: dict[str, Outcome] = {}
    for name, arm in arms.items():
        say(_title(name, arm))
        outcomes[name] = train(arm, materials, folder / name)
        if outcomes[name].exit_code:
            return outcomes, outcomes[name].exit_code
        keep(name, outcomes[name])
    return outcomes, 0


def _title(name: str, arm: Experiment) -> str:
    return f"{name}: {losses.formula(arm.losses)}"
