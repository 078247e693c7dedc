"""What is wrong with single records: raised at once, or counted."""

from distilflax.errors import UserError


class FaultyRecordError(UserError):
    """One record is not what it should be; its readers give it to `Faults`."""


class Faults:
    """What was wrong with records: raised at once, or counted where `skip` says so."""

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.count = 0
        self.first = ""
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """Something that is no fault, and that one should know of."""
        self.notes.append(sentence)

    def add(self, sentence: str, number: int = 1) -> None:
        """What is wrong with one record, or with `number` of them that cannot be told apart.

        Raises:
          UserError: unless faulty records are to be skipped.
        """
        if not self.skip:
            raise UserError(sentence)
        self.count += number
        self.first = self.first or sentence

    def summary(self) -> str:
        """`3 faulty records were skipped; the first: ...`, or nothing."""
        if not self.count:
            return ""
        if self.count == 1:
            return f"1 faulty record was skipped: {self.first}"
        return f"{self.count:,} faulty records were skipped; the first: {self.first}"
