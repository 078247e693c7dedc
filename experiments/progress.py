"""How far a command is, for who waits at a terminal."""

import sys
import time

from rich.console import Console
from rich.progress import Progress

from distilflax.text.lines import local, name_below

# Who waits longer than this is shown how far it is.
LONG = 2.0


def total(given: str) -> int | None:
    """The lines of the input that a flag names, where that can be known beforehand."""
    path = local(given)
    if not given or given == "-" or not path.is_file():
        return None
    if name_below(path) != path or path.suffix in (".json", ".parquet", ".arrow"):
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


class Bar:
    """A bar on the terminal, once it takes long; none where standard error is no terminal, or where
    the answers scroll by on it."""

    def __init__(self, total: int | None):
        console = Console(stderr=True)
        # Redirecting, rich would take the answers from standard output and draw them by the bar.
        quiet = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}
        shown = console.is_terminal and not sys.stdout.isatty()
        self._bar = Progress(console=console, **quiet) if shown else None
        self._total, self._begin, self._done, self._task = total, time.monotonic(), 0, None

    def __enter__(self):
        return self

    def __call__(self, number: int) -> None:
        self._done += number
        if self._bar is None or time.monotonic() - self._begin < LONG:
            return
        if self._task is None:
            self._task = self._bar.add_task("lines", total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=self._done)

    def __exit__(self, *error: object) -> None:
        if self._task is not None:
            self._bar.stop()
