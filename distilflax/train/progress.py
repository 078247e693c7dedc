"""The one line that a person watches: step, loss by term, tokens/s, MFU, time left; and what is
said beside it."""

import functools
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column


def say_on(console: Console) -> Callable[[str], None]:
    """Prints sentences there, whose paths stay whole and as they are, brackets and all."""
    as_it_is = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
    return functools.partial(console.print, **as_it_is)


class ProgressLine:
    """A bar that stays on one line of a terminal; elsewhere a line of text at each `show`.

    With a `name` there are others at the same time, whose bars would paint over each other: then
    it is lines of text that begin with the name.
    """

    def __init__(
        self, total_steps: int, start_step: int, console: Console | None = None, name: str = ""
    ):
        self._total, self._name = total_steps, name
        self._console = console or Console(stderr=True)
        self._bar = None
        if self._console.is_terminal and not name:
            # Without these columns a narrow terminal would break the line, and so the display.
            one_line = Column(no_wrap=True, overflow="ellipsis")
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=20),
                TextColumn("{task.description}", table_column=one_line, markup=False),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("compiling", total=total_steps, completed=start_step)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Step `step` has ended."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, text: str) -> None:
        """Say how it stands after `step`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        else:
            self.say(f"step {step}/{self._total}  {text}")

    def say(self, text: str) -> None:
        """A sentence of its own, above the bar."""
        text = f"{self._name}: {text}" if self._name else text
        say_on(self._console)(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(
    loss: float,
    terms: Mapping[str, float],
    tokens_per_second: float | None,
    mfu: float | None,
    seconds_left: float | None,
) -> str:
    """`loss 6.123 (kl 0.81, mlm 2.93)  12.3k tokens/s  MFU 41%  3:20 left`."""
    parts = [f"loss {loss:.4g}"]
    if terms:
        parts[0] += f" ({', '.join(f'{name} {value:.4g}' for name, value in terms.items())})"
    if tokens_per_second is not None:
        parts.append(f"{_thousands(tokens_per_second)} tokens/s")
    if mfu is not None:
        parts.append(f"MFU {mfu:.0%}")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """3:20, 1:03:20, or 2d 4:03:20."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days}d {clock}" if days else clock


def _thousands(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
