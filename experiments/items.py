"""What `experiments.predict` is given, one by one, and what was odd about it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from distilflax.tasks.faults import Faults
from experiments import pipe


class Item(NamedTuple):
    """One input with its place: what the call is given, what identifies the answer, or an error."""

    place: str
    given: dict[str, Any]
    shown: dict[str, Any]
    error: str = ""


class Told(Faults):
    """What readers of files find wrong, kept for answers where faulty records are to have one."""

    def __init__(self, skip: bool):
        super().__init__(skip=skip)
        self._sentences: list[str] = []

    def add(self, sentence: str, number: int = 1) -> None:
        super().add(sentence, number)
        self._sentences.append(sentence)

    def between(self, found: Iterator) -> Iterator:
        """What a reader finds, with an item for each fault where it was met."""
        for one in found:
            yield from self._items()
            yield one
        yield from self._items()

    def _items(self) -> Iterator[Item]:
        told, self._sentences = self._sentences, []
        yield from (Item(sentence, {}, {}, sentence) for sentence in told)


class Passed:
    """What is told at the end: of lines that were odd, and what the readers of files tell."""

    def __init__(self, skip: bool):
        self.lines, self.faults = pipe.Odd(), Told(skip)
