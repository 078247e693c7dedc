"""Tagged sentences out of records that have them as text, not as lists: files of words and of tags
side by side."""

from collections.abc import Iterator
from pathlib import Path

from distilflax.tasks import records
from distilflax.tasks.records import Faults, FaultyRecordError, Table
from distilflax.tasks.sentences import Sentence


def read(
    path: Path, faults: Faults, table: Table, *, words: str, tags: str, labelled: bool
) -> Iterator[Sentence]:
    """Of the columns `words` and `tags`, in which spaces part one from the next.

    Raises:
      UserError: as `records.read` does, or another number of tags than of words (which `faults` may
        count instead).
    """
    for record in records.read(path, faults, table):
        try:
            tokens = _parted(records.text(record, words, "words"))
            given = _parted(records.text(record, tags, "tags")) if labelled else None
        except FaultyRecordError as fault:
            faults.add(str(fault))
            continue
        if not tokens:
            faults.add(f"{record.place} has no words; leave the line out of all files.")
        elif given is not None and len(given) != len(tokens):
            faults.add(
                f"{record.place} has {len(given)} tags for {len(tokens)} words; give one for each."
            )
        else:
            yield Sentence(record.place, tokens, given)


def _parted(text: str) -> tuple[str, ...]:
    """By spaces alone: words themselves may hold other white space."""
    return tuple(filter(None, text.split(" ")))
