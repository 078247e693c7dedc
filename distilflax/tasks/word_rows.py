"""Tagged sentences out of tables with a word a row, as Kaggle's copy of the Groningen Meaning Bank:
a column tells one sentence from the next, or blank lines do.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from distilflax.tasks import named_files, records
from distilflax.tasks.records import Faults, FaultyRecordError, Record, Table
from distilflax.tasks.sentences import Sentence, by_number

# So many rows tell whether a table has a word in each.
_FIRST_ROWS = 500
# One in so many of them may have a word with a space.
_HARDLY = 10


def are_in(path: Path, table: Table, words: str, tags: str) -> bool:
    """Whether a table has a word a row and blank lines between sentences, by its first rows: they
    stand in blocks, and none has more tags than one in the column `tags`, or, where there are none,
    hardly any has more words than one in the column `words`: words may have spaces (`New York`),
    and tags have none. Of files side by side none is taken so.

    Raises:
      UserError: as `records.read` does.
    """
    if named_files.are_beside(path):
        return False
    some = records.read(path, Faults(skip=True), table._replace(blank=True))
    some = list(itertools.islice(some, _FIRST_ROWS))
    given, tokens = _filled(some, tags), _filled(some, words)
    parted = sum(" " in cell for cell in given or tokens)
    if parted > (0 if given else len(tokens) // _HARDLY):
        return False
    blocks = _blocks(some)
    return len(blocks) > 1 and max(blocks) > 1


def _filled(rows: Sequence[Record], column: str) -> list[str]:
    cells = (str(row.values.get(column, "")).strip(" ") for row in rows)
    return [cell for cell in cells if cell]


def are_parted(path: Path, table: Table) -> bool:
    """Whether blank lines stand between rows of a table.

    Raises:
      UserError: as `records.read` does.
    """
    return len(_blocks(records.read(path, Faults(skip=True), table._replace(blank=True)))) > 1


def _blocks(rows: Iterable[Record]) -> list[int]:
    """How many rows stand in each block that blank lines part from the next."""
    found = itertools.groupby(rows, _is_blank)
    return [sum(1 for _ in block) for is_blank, block in found if not is_blank]


def read(
    path: Path,
    faults: Faults,
    table: Table,
    *,
    words: str,
    tags: str,
    sentence: str = "",
    tag_names: Sequence[str] = (),
    labelled: bool,
) -> Iterator[Sentence]:
    """The sentences of a table. Blank lines part them, and so does a new value in the column
    `sentence`, if that is named; where it is empty the sentence goes on. `tag_names` where tags are
    numbers. That `sentence` parts every word from the next is noted.

    Raises:
      UserError: as `records.read` does, or an empty word or tag (which `faults` may count instead;
        it costs the sentence).
    """
    number = longest = 0
    for rows in _sentences(path, faults, table._replace(blank=True), sentence):
        try:
            tokens = tuple(_cell(row, words, "words") for row in rows)
            given = tuple(_cell(row, tags, "tags") for row in rows) if labelled else None
            if given and tag_names:
                given = by_number(given, f"{rows[0].place}: {tags!r}", tag_names)
        except FaultyRecordError as fault:
            faults.add(str(fault))
            continue
        number, longest = number + 1, max(longest, len(tokens))
        yield Sentence(rows[0].place, tokens, given, classes=tuple(tag_names))
    if sentence and number > 1 and longest == 1:
        # As those of a short file may be; but a wrong column parts all words, too.
        faults.note(
            f"Every sentence of {path} is of one word; if its rows are words, name another column "
            f"than {sentence!r} as config.options.sentence_column"
        )


def _sentences(path: Path, faults: Faults, table: Table, column: str) -> Iterator[list[Record]]:
    """The rows of each sentence. What a faulty row belonged to is not known: a sentence with one is
    left out, and so is one that a new value in `column` begins right after it."""
    rows, last, is_whole, left_out, count = [], "", True, 0, faults.count
    for record in itertools.chain(records.read(path, faults, table), [None]):
        is_sound = faults.count == count
        is_whole = is_whole and is_sound
        is_end = record is None or _is_blank(record)
        mark = (
            "" if is_end or not column else records.text(record, column, "sentence_column").strip()
        )
        if is_end or mark not in ("", last):
            if rows and is_whole:
                yield rows
            left_out += bool(rows) and not is_whole
            rows, is_whole = [], is_end or is_sound
        rows += [] if is_end else [record]
        last, count = mark or last, faults.count
    if left_out:
        faults.note(
            f"At least {left_out:,} sentences of {path} were left out, with a faulty row in or "
            "right before them"
        )


def _is_blank(record: Record) -> bool:
    return not any(str(value).strip() for value in record.values.values())


def _cell(row: Record, column: str, option: str) -> str:
    found = records.text(row, column, option).strip(" ")
    if not found:
        raise FaultyRecordError(f"{row.place} has nothing in {column!r}; mend it.")
    return found


def of_one_word(path: Path, are_parted: bool) -> str:
    """What may be wrong with a table of which all sentences are of one word. Whether a block that
    no blank lines part is one sentence or many, those lines do not tell."""
    otherwise = ", or part sentences by blank lines" if are_parted else ""
    return (
        f"Every sentence of {path} is of one word; if its rows are words, name the column "
        "that is filled where a sentence begins, or has a new value there, as "
        f"config.options.sentence_column{otherwise}"
    )
