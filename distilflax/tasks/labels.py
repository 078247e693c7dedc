"""Labels out of records: a name, several of them, or a number, however the file writes them."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from distilflax.errors import UserError
from distilflax.tasks import records, written_lists
from distilflax.tasks.records import FaultyRecordError, Record
from distilflax.text import lines as text_lines

# Of so many rows a label that only one has is odd.
_ENOUGH = 20
_TOLD = {"0": False, "false": False, "1": True, "true": True}


class Labels(NamedTuple):
    """Where labels stand, and how: the options of the task `classification` of these names.

    Of many labels `column` may be a list in one cell (`separator` between, a JSON list, one that
    is written as text, or the labels of a line of fastText's), or names with commas between, of a
    column of 0 and 1 for each. `names` are the classes of files that have their numbers, from
    `numbered_from` on, or a 0 or 1 for each class.
    """

    problem: str
    column: str
    names: tuple[str, ...]
    separator: str
    numbered_from: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of many labels, where each has its own."""
        return self._parts() if self.problem == "multi" and "," in self.column else ()

    def _parts(self) -> tuple[str, ...]:
        return tuple(map(str.strip, self.column.split(",")))

    def check_names(self) -> None:
        """
        Raises:
          UserError: a name that is the number of another: `1` in a file would be either.
        """
        for number, name in enumerate(self.names, self.numbered_from):
            if _is_number(name) and int(name) != number:
                raise UserError(
                    f"config.options.label_names has {name!r}, which is a number, in the place of "
                    f"number {number}; if the first name is of number 1, set "
                    "config.options.numbered_from=1; if files have these names themselves, give "
                    "them as config.options.labels."
                )

    def of(self, record: Record) -> Any:
        """A name, a tuple of names, or a number.

        Raises:
          FaultyRecordError: what is there is no label; also as `records.column` does.
        """
        if self.columns:
            return tuple(name for name in self.columns if self._is_set(record, name))
        if "," in self.column and self.column not in record.values:
            columns = self._parts()
            if {*columns} <= {*record.values}:
                raise UserError(
                    f"config.options.label names {len(columns)} columns of {record.place}; set "
                    "config.options.problem=multi."
                )
        value = records.column(record, self.column, "label")
        if isinstance(value, tuple) and self.problem != "multi":
            value = self._only(record, value)
        if self.problem == "regression":
            return self._number(record, value)
        if value is None:
            raise FaultyRecordError(f"{record.place}: {self.column!r} is null; give it a label.")
        if self.problem == "multi":
            if isinstance(value, dict) or value != value:
                raise FaultyRecordError(
                    f"{record.place}: {self.column!r} is {value!r:.40}, not labels."
                )
            value = self._listed(record, value)
            parts = value if isinstance(value, list | tuple) else str(value).split(self.separator)
            either = isinstance(value, list) and sorted(map(str, value)) == ["0", "1"]
            if either and len(self.names) == 2:
                raise FaultyRecordError(
                    f"{record.place}: {self.column!r} is {value!r:.40}, which may be the numbers "
                    "of both labels, or a 0 and a 1 for them; write names, or a column for each."
                )
            if (each := _one_each(parts)) is not None:
                return self._of_one_each(record, each)
            return tuple(name for part in parts if (name := self._name(record, part)))
        name = self._name(record, value)
        if not name:
            raise FaultyRecordError(f"{record.place}: {self.column!r} is empty; give it a label.")
        return name

    def declared(self, record: Record) -> tuple[str, ...]:
        """All classes there are in their order, where the options or the file say so."""
        return self.names or tuple(record.classes.get(self.column, ()))

    def _only(self, record: Record, labels: tuple[str, ...]) -> str:
        """Of a line of fastText's."""
        if len(labels) != 1:
            raise FaultyRecordError(
                f"{record.place} has {len(labels)} labels ({', '.join(labels):.80}); give it one, "
                "or set config.options.problem=multi."
            )
        return labels[0]

    def _listed(self, record: Record, value: Any) -> Any:
        if not isinstance(value, str) or not written_lists.is_written(value.strip()):
            return value
        otherwise = f"write labels with {self.separator!r} between"
        try:
            return written_lists.read(value.strip(), f"{record.place}: {self.column!r}", otherwise)
        except FaultyRecordError:
            # Names may have brackets of their own: `[urgent],[spam]`, `[neutral]`.
            inner = value.strip()[1:-1]
            if "]" in inner or not any(mark in inner for mark in (self.separator, "'", '"')):
                return value
            raise

    def _number(self, record: Record, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise FaultyRecordError(
                f"{record.place}: {self.column!r} is {value!r:.40}, not a number; mend it."
            )
        return number

    def _is_set(self, record: Record, name: str) -> bool:
        value = records.column(record, name, "label")
        told = _TOLD.get(_written(value).lower().removesuffix(".0"))
        if told is None:
            raise FaultyRecordError(f"{record.place}: {name!r} is {value!r:.40}, not 0 or 1.")
        return told

    def _of_one_each(self, record: Record, each: list[bool]) -> tuple[str, ...]:
        if len(each) != len(self.names):
            raise FaultyRecordError(
                f"{record.place}: {self.column!r} has a 0 or 1 for each of {len(each)} labels, "
                f"and config.options.label_names names {len(self.names)}; name each of them."
            )
        return tuple(name for name, has in zip(self.names, each, strict=True) if has)

    def _name(self, record: Record, value: Any) -> str | None:
        place = f"{record.place}: {self.column!r}"
        if value is None or isinstance(value, list | dict) or value != value:
            raise FaultyRecordError(f"{place} is {value!r:.40}, not a label.")
        name = _written(value)
        if not name or not self.names:
            return name
        # A table with gaps writes all numbers so, if that is not how the classes are called.
        written = name if name in self.names else name.removesuffix(".0")
        number = int(written) if _is_number(written) else name
        first, option = self.numbered_from, "config.options.label_names"
        if number == len(self.names) and not first:
            # One record cannot tell, and a part of the data may lack its first or last class.
            raise FaultyRecordError(
                f"{place} is {number}, and {option} names {number} classes, from 0 on; if they are "
                "numbered from 1, set config.options.numbered_from=1."
            )
        return records.by_name(number, place, self.names, option, first)


def by_number(name: str) -> tuple[int, float, str]:
    """What labels are sorted by: numbers by value, before names by letter: 2 before 10."""
    value = text_lines.number(name)
    return (1, 0.0, name) if value is None else (0, value, name)


def is_first_alone(labels: Sequence[str]) -> bool:
    """Whether the label of a file's first row is that of no other, and none but it is: that row may
    hold the names of the columns."""
    counts = Counter(labels)
    alone = [name for name, count in counts.items() if count == 1]
    return len(labels) >= _ENOUGH and alone == [labels[0]]


def _is_number(written: str) -> bool:
    return written.removeprefix("-").isdecimal() and len(written) < 10


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return text_lines.whole(str(value)).strip()


def _one_each(parts: Sequence) -> list[bool] | None:
    """What a list says of each label, if that is a 0 or 1, as numbers or as text; None if these are
    labels: numbers of labels would be whole, and none of them there twice."""
    written = [str(int(p)) if isinstance(p, bool) else _written(p) for p in parts]
    if not written or not {*written} <= {"0", "1", "0.0", "1.0"}:
        return None
    are_no_numbers = any(isinstance(part, bool) for part in parts) or "." in "".join(written)
    if not are_no_numbers and len({*written}) == len(written):
        return None
    return [one.startswith("1") for one in written]
