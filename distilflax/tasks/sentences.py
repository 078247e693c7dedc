"""Tagged sentences out of CoNLL files, JSON lines and Parquet, and untagged ones out of text."""

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distilflax.errors import UserError
from distilflax.tasks import conll, records
from distilflax.tasks.records import Faults, FaultyRecordError
from distilflax.text.lines import whole

_UPOS = 3  # of CoNLL-U, from 0
_DOCUMENT = "-DOCSTART-"
_SUFFIXES = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes")
# So many tell whether a file has columns.
_FIRST_LINES = 500
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class Sentence(NamedTuple):
    """Words and their tags (None if unknown); `offsets` where the words came out of a text;
    `classes` are all tags there are, where the file or the options say so; `hashed` are the numbers
    of the words whose lines begin with `#`, as comments do."""

    place: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    classes: tuple[str, ...] = ()
    hashed: tuple[int, ...] = ()


def read(
    path: Path,
    faults: Faults,
    *,
    words: str,
    tags: str,
    column: int,
    word_column: int = 0,
    comment: str = "",
    tag_names: Sequence[str] = (),
    labelled: bool,
    in_columns: bool | None = None,
    flags: str = "config.options.",
) -> Iterator[Sentence]:
    """The sentences of one file: JSON lines or Parquet with two lists, or else CoNLL columns; or,
    without tags, plain text, a sentence a line, where the file is not `in_columns` (None: where it
    does not look so).

    `words` and `tags` name the lists of a record, and `tag_names` the tags where those are numbers,
    as in JSON that `datasets` wrote; `column` is the tag's in CoNLL, from 0 or from -1 backwards,
    and `word_column` the word's. In CoNLL-U (`.conllu`) the word is the second, the tag is UPOS
    where `column` is -1, and what is no syntactic word (2-3, 8.1) is left out. Lines that begin
    with `comment` are none, nor are in CoNLL-U those that begin with `#`. `flags` is what stands
    before the names of these where a user gives them.

    Raises:
      UserError: an unreadable file, or a sentence that is not what it should be (which `faults`
        may count instead).
    """
    empty = True
    if records.suffix(path) in records.KEYED:
        found = _json(path, faults, words, tags, tag_names, labelled)
    elif in_columns or (in_columns is None and (labelled or is_in_columns(path, comment))):
        found = _conll(path, faults, column, word_column, comment, labelled, flags)
    else:
        faults.note(f"{path} is read as text, a sentence a line: it does not look like columns")
        found = (of_text(line, place) for place, line in records.lines(path) if line.strip())
        found = (sentence for sentence in found if sentence.words)
    for sentence in found:
        empty = False
        yield sentence
    if empty and not faults.count:
        raise UserError(f"{path} has no sentence; give a file with at least one.")


def _json(
    path: Path,
    faults: Faults,
    words: str,
    tags: str,
    tag_names: Sequence[str],
    labelled: bool,
) -> Iterator[Sentence]:
    for record in records.read(path, faults):
        try:
            tokens = records.column(record, words, "words")
            given = records.column(record, tags, "tags") if labelled else None
            if _is_numbers(given) and not tag_names:
                raise UserError(
                    f"{record.place}: {tags!r} holds numbers; name the tags, in the order of their "
                    "numbers from 0, as config.options.tag_names."
                )
            if isinstance(given, list) and tag_names and tags not in record.classes:
                given = by_number(given, f"{record.place}: {tags!r}", tag_names)
        except FaultyRecordError as fault:
            faults.add(str(fault))
            continue
        if not _is_texts(tokens) or (labelled and not _is_texts(given)):
            faults.add(f"{record.place}: {words!r} and {tags!r} should be lists of texts; mend it.")
        elif given is not None and len(given) != len(tokens):
            faults.add(
                f"{record.place} has {len(given)} tags for {len(tokens)} words; give one for each."
            )
        elif not tokens:
            faults.add(f"{record.place} has no words; leave the record out.")
        else:
            texts = tuple(map(whole, tokens))
            own = None if given is None else tuple(map(whole, given))
            sentence = Sentence(record.place, texts, own)
            yield sentence._replace(classes=tuple(record.classes.get(tags, tag_names)))


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def by_number(tags: Sequence, where: str, names: Sequence[str]) -> tuple[str, ...]:
    """The tags by their numbers, perhaps in digits, of those that config.options.tag_names names.

    Raises:
      FaultyRecordError: another number, no name, or a list, which may hold lists without end.
    """
    if any(isinstance(tag, list) for tag in tags):
        raise FaultyRecordError(f"{where} has a list in the list; give one tag for each word.")
    numbers = [int(tag) if _is_digits(tag) else tag for tag in tags]
    return tuple(records.by_name(numbers, where, names, "config.options.tag_names"))


def _is_digits(tag: object) -> bool:
    return isinstance(tag, str) and tag.isdecimal() and len(tag) < 10


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def is_in_columns(path: Path, comment: str = "") -> bool:
    """Whether a file has a word a line, as CoNLL's have, and not a text: by its name, or as most
    of its lines have tabs, or all have as many words and stand in blocks with blank lines between.

    Raises:
      UserError: an unreadable file.
    """
    if records.suffix(path) in _SUFFIXES:
        return True
    some = [line for _, line in itertools.islice(records.lines(path), _FIRST_LINES)]
    some = [line for line in some if not (comment and line.startswith(comment))]
    filled = [line for line in some if line.strip() and not line.startswith(_DOCUMENT)]
    if 2 * sum("\t" in line for line in filled) > len(filled):
        return True
    groups = itertools.groupby(some, lambda line: bool(line.strip()))
    blocks = [len(list(block)) for is_full, block in groups if is_full]
    widths = {len(line.split()) for line in filled}
    return len(widths) == 1 and len(blocks) > 1 and max(blocks) > 1


def _conll(
    path: Path, faults: Faults, column: int, word: int, comment: str, labelled: bool, flags: str
) -> Iterator[Sentence]:
    """Blank lines end sentences. Columns have tabs between where a line has any, else spaces:
    words themselves may hold other white space. `-DOCSTART-` lines end them too."""
    universal = ".conllu" in path.suffixes
    comments = tuple(filter(None, (comment, "#" if universal else "")))
    word = word or int(universal)
    column = _UPOS if universal and column == -1 else column
    if labelled:
        conll.check_columns(path, comments, column, flags)
    looks = conll.Looks(flags)
    start, words, tags, hashed, first, fault = "", [], [], [], "", ""
    for place, line in itertools.chain(records.lines(path), [("", "")]):
        if line.startswith(comments):
            continue
        # A sentence ends where nothing stands, and where a document begins.
        cells = conll.cells(line) if line.strip(" \t\r") else [_DOCUMENT]
        if cells[0] != _DOCUMENT:
            if universal and not cells[0].isdigit():
                continue
            start, first, last = start or place, first or line, line
            is_hashed = line.startswith("#")
            width = max(column, word) + 1 if column >= 0 else max(-column, word + 2)
            if len(cells) <= word or (labelled and len(cells) < width):
                lacks = "so the word has no tag"
                usual = f"give every word a tag ({flags}column says where it stands)"
                if len(cells) <= word:
                    lacks = f"so there is no word in column {word}, from 0"
                    usual = f"give every line one ({flags}word_column says where it stands)"
                fault = fault or (
                    f"{place} has {len(cells)} columns ({line!r:.60}), {lacks}; "
                    f"{conll.remedy(usual, is_hashed, flags)}."
                )
                continue
            if not cells[word] or (labelled and not cells[column]):
                usual = conll.remedy("mend it", is_hashed, flags)
                fault = fault or f"{place} has an empty word or tag ({line!r:.60}); {usual}."
                continue
            hashed += [len(words)] if is_hashed else []
            words.append(whole(cells[word]))
            tags.append(cells[column] if labelled else "")
            continue
        if start:
            looks.block(first, last)
        if fault:
            faults.add(fault)
        elif words:
            looks.sentence(words)
            given = tuple(tags) if labelled else None
            yield Sentence(start, tuple(words), given, hashed=tuple(hashed))
        start, words, tags, hashed, first, fault = "", [], [], [], "", ""
    for note in looks.notes(path, word, labelled=labelled):
        faults.note(note)


def of_text(text: str, place: str = "text") -> Sentence:
    """The words of a text: what white space parts, with punctuation at either end and `'s` apart,
    as in most tagged corpora, and each Chinese character, as in BERT. `#` and `@` stay with what
    follows them."""
    offsets = []
    for start, end in _chunks(text):
        first, last = start, end
        while first < last and _apart(text[first]) and not _marks(text, first, last):
            first += 1
        while last > first and _apart(text[last - 1]):
            last -= 1
        own = last - 2 if last - first > 2 and text[last - 2 : last] in ("'s", "’s") else last
        offsets += [(i, i + 1) for i in range(start, first)]
        offsets += _parts(text, first, own)
        offsets += [(own, last)] if last > own else []
        offsets += [(i, i + 1) for i in range(last, end)]
    words = tuple(text[start:end] for start, end in offsets)
    return Sentence(place, words, None, text, tuple(offsets))


def _parts(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """text[first:last] with every Chinese character apart."""
    start = first
    for i in range(first, last):
        if _is_chinese(text[i]):
            yield from [(start, i), (i, i + 1)] if start < i else [(i, i + 1)]
            start = i + 1
    if start < last:
        yield start, last


def _is_chinese(character: str) -> bool:
    """The blocks of Chinese characters, as BERT's tokenizer counts them."""
    code = ord(character)
    return any(least <= code <= most for least, most in _CHINESE)


def _chunks(text: str) -> Iterator[tuple[int, int]]:
    start = None
    for i, character in enumerate(text):
        if character.isspace():
            if start is not None:
                yield start, i
            start = None
        elif start is None:
            start = i
    if start is not None:
        yield start, len(text)


def _apart(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def _marks(text: str, first: int, last: int) -> bool:
    return text[first] in "#@" and last - first > 1 and not _apart(text[first + 1])
