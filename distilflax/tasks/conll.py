"""Lines of CoNLL files: their cells, and what they look like where they are read wrongly, comments
or numbers or tags as words. That is no fault, for words may look so too; it is noted.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from distilflax.errors import UserError
from distilflax.tasks import bio
from distilflax.tasks.tables import lines

# A sentence of more words may be a file without columns.
_MANY = 20


def cells(line: str) -> list[str]:
    """Those between tabs, or between spaces where a line has no tabs."""
    if "\t" in line:
        return line.rstrip("\t\r ").split("\t")
    return [cell for cell in line.split(" ") if cell]


def remedy(usual: str, hashed: bool, flags: str) -> str:
    """`usual`, after what helps where a line that begins with `#` is a comment; `flags` is what
    stands before the names of options where a user gives them."""
    comment = (
        "if that line is a comment, give what comments begin with, and words do not, as "
        f"{flags}comment; otherwise "
    )
    return comment + usual if hashed else usual


def check_columns(path: Path, comments: tuple[str, ...], column: int, flags: str) -> None:
    """Of a file with tags, those in `column`, and without the lines that begin with `comments`.

    Raises:
      UserError: it would be one sentence of many words, and has no columns: many lines have another
        number of cells than the others, or most have spaces in their tags. Of such a file each line
        is likely a sentence.
    """
    kept = (line for _, line in lines(path) if not line.startswith(comments))
    parted = itertools.groupby(kept, lambda line: bool(line.strip(" \t\r")))
    blocks = (map(cells, block) for is_full, block in parted if is_full)
    rows = list(next(blocks, ()))
    if len(rows) <= _MANY or next(blocks, None) is not None:
        return
    alike = Counter(map(len, rows)).most_common(1)[0][1]
    tags = (row[column] for row in rows if -len(row) <= column < len(row))
    lacks = "lines of different numbers of columns" if 4 * alike < 3 * len(rows) else ""
    if 2 * sum(" " in tag for tag in tags) > len(rows):
        lacks = "tags with spaces"
    if lacks:
        raise UserError(
            f"{path} would be one sentence of {len(rows):,} words, with {lacks}; if a line of it "
            f"is a sentence, with a tab between words and tags, set {flags}delimiter=tab and "
            f"{flags}header=tokens,tags; otherwise give a word and its tag a line, and blank lines "
            "between sentences."
        )


class Looks:
    """What the sentences of one file look like, counted one by one; `flags` as `remedy` has it."""

    def __init__(self, flags: str):
        self._flags = flags
        self._blocks = self._commented = self._sentences = self._alike = 0
        self._first_comment = ""
        self._mark: str | None = None
        self._tags: set[str] | None = set()

    def block(self, first: str, last: str) -> None:
        """The first and the last line of a block, faulty or not."""
        self._blocks += 1
        if first.startswith("#") and _is_no_row(first, last):
            self._commented += 1
            self._first_comment = self._first_comment or first

    def sentence(self, words: Sequence[str]) -> None:
        """A sentence that was read."""
        self._sentences += 1
        self._alike += _is_no_text(words)
        mark = _mark(words)
        self._mark = mark if self._mark in (None, mark) else ""
        if self._tags is not None:
            self._tags = {*self._tags, *words} if all(map(bio.is_tag, words)) else None

    def notes(self, path: Path, word: int, *, labelled: bool) -> Iterator[str]:
        """What is to be said of the file, whose words are in column `word`; of the tags' nothing
        where none are asked for."""
        if self._blocks > 1 and 2 * self._commented > self._blocks:
            yield (
                f"Most sentences of {path} begin with a line like {self._first_comment!r:.60}; if "
                "those are comments, give what they begin with, and words do not, as "
                f"{self._flags}comment"
            )
        if self._tags and bio.scheme_of(sorted(self._tags)) != "plain":
            others = f" and the tags' as {self._flags}column" if labelled else ""
            example = "1 and 0" if labelled else "1"
            yield (
                f"In column {word} of {path} all words are tags; name the words' column as "
                f"{self._flags}word_column{others} (of two columns with the tag first: {example})"
            )
        elif 2 * self._alike > self._sentences:
            yield (
                f"In column {word} of {path} most sentences have numbers, or one word over and "
                f"over; if the words stand in another, name it as {self._flags}word_column"
            )
        elif self._mark and self._sentences > 1:
            yield (
                f"Every word of {path} begins with {self._mark!r}; if that is none of the words, "
                f"cut it off, for example with `sed 's/^{self._mark}//'`"
            )


def _is_no_row(line: str, row: str) -> bool:
    """Whether a line has not the columns of a row. The words `#` and `#this` stand in as many as
    others; a comment seldom does, or else its first has spaces."""
    own, others = cells(line), cells(row)
    return ("\t" in line) != ("\t" in row) or len(own) != len(others) or " " in own[0]


def _is_no_text(words: Sequence[str]) -> bool:
    """Whether they are the words' numbers, or the document's name for each of them."""
    counted = ([str(i) for i in range(first, len(words) + first)] for first in (0, 1))
    return len(words) > 2 and (list(words) in counted or len(set(words)) == 1)


def _mark(words: Sequence[str]) -> str:
    """What stands before a colon in every word, as the language does in WikiANN's own files."""
    marks = {word.partition(":")[0] + ":" if ":" in word[1:] else "" for word in words}
    return marks.pop() if len(marks) == 1 else ""
