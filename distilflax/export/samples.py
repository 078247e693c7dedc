"""Real texts as rows of ids, for an export to be checked on."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from distilflax.errors import UserError
from distilflax.export.subject import Subject
from distilflax.tasks import texts
from distilflax.tasks.batches import collate
from distilflax.tasks.task import Features
from distilflax.text import sources, tokenizer

# Of unlike lengths, kinds and subjects: a check that is the same everywhere, with nothing to fetch.
TEXTS = (
    "Yes.",
    "What time does the last train leave?",
    "A young woman in a red coat is feeding the pigeons in front of the town hall.",
    "The film is slow to begin with, but its last half hour is as good as anything this year.",
    "Shares of the company fell by nearly four per cent after it had cut its forecast.",
    "I waited forty minutes for a cold meal, and nobody apologised; I shall not be coming back.",
    "To remove the cover, turn the two screws a quarter of a turn and pull it towards you.",
    "In 1905 Albert Einstein, then a clerk at the patent office in Bern, published four papers.",
    "The committee will meet again on Thursday to decide whether the bridge is to be rebuilt.",
    "Returns the index of the first element for which the predicate holds, or None.",
    "Heavy rain is expected along the coast, with winds of up to 90 kilometres an hour.",
    "She has played for Barcelona, Lyon and the national team of Norway.",
    "Could you book me a table for two at an Italian restaurant near the station at eight tonight?",
    "Patients who were given the drug had fewer side effects than those in the control group.",
    "Add the flour a little at a time, stirring all the while, until the dough comes away from "
    "the sides of the bowl, then cover it with a cloth and leave it in a warm place for an hour.",
    "The river rises in the hills north of the village, runs through three counties and two lakes, "
    "turns the wheels of a mill that was built in the seventeenth century and is still at work, "
    "and reaches the sea some hundred and twenty miles later beside the harbour, where the old "
    "customs house has been made into a museum of shipping that opens every day but Monday.",
)

_BATCH = 8
LONGEST = 256  # tokens; longer texts are cut, so that a check takes seconds
_MULTIPLE = 32  # tokens
# Text of a language that a vocabulary was not made for falls apart into pieces and unknown words.
_MOST_UNKNOWN = 0.1
# Of BERT's English vocabulary 3% (captions) to 15% (kernel documentation) of the tokens of English
# text go on with a word; 33% of French captions, 46% of German ones.
_MOST_PIECES = 0.28


class Batch(NamedTuple):
    """Rows as every format takes them: int64, `attention_mask` 1 for real tokens."""

    input_ids: Int[np.ndarray, "B L"]
    attention_mask: Int[np.ndarray, "B L"]
    token_type_ids: Int[np.ndarray, "B L"]


def documents(given: str, column: str = "text", flag: str = "--texts") -> Iterator[str]:
    """The texts of some sources (as `data.sources` of an experiment), which a command was given as
    `flag`, and their column as `--column`.

    Raises:
      UserError: as `sources.read` does, by the names of the flags and not of an experiment's
        settings, which these commands do not have.
    """
    try:
        yield from sources.read(given, column)
    except UserError as error:
        told = str(error).replace("data.sources", flag).replace("data.column", "--column")
        raise UserError(told) from None


def read(
    given: str,
    most: int,
    words: tokenizer.Tokenizer,
    flag: str = "--texts",
    column: str = "text",
) -> list[str]:
    """The first `most` texts of some sources, as `documents` reads them.

    Raises:
      UserError: no text, or text whose words the tokenizer does not know: it would say nothing
        about the text that the model is for.
    """
    found = [text for text in islice(documents(given, column, flag), most) if text.strip()]
    if not found:
        raise UserError(f"{flag}={given} holds no text; give a file with a text on each line.")
    share = unknown_share(words, found)
    if share > _MOST_UNKNOWN:
        raise UserError(
            f"{flag}={given}: {share:.0%} of its tokens are unknown to the model's tokenizer, so "
            "it is in another language or alphabet; give text of the kind the model is for."
        )
    return found


def read_calibration(
    given: str, most: int, words: tokenizer.Tokenizer, column: str = "text"
) -> list[str]:
    """As `read`, of text that int8 is fitted to: it must be in the model's own language.

    Raises:
      UserError: as `read` does, or words that fall into pieces as those of another language do.
    """
    found = read(given, most, words, "--calibration", column)
    share = pieces_share(words, found)
    if share > _MOST_PIECES:
        raise UserError(
            f"--calibration={given}: {share:.0%} of its tokens are pieces inside of words, as of a "
            f"language that the tokenizer was not made for (at most {_MOST_PIECES:.0%}); give text "
            "of the kind the model is for."
        )
    return found


def unknown_share(words: tokenizer.Tokenizer, given: Sequence[str]) -> float:
    """The share of tokens that are [UNK]."""
    ids = np.concatenate(texts.pieces(words, given))
    return float(np.mean(ids == words.unk_id)) if len(ids) else 1.0


def pieces_share(words: tokenizer.Tokenizer, given: Sequence[str]) -> float:
    """The share of tokens that go on with a word, "##ing"."""
    ids = np.concatenate(texts.pieces(words, given))
    inside = [t.startswith(tokenizer.PREFIX) for t in map(words.fast.id_to_token, ids.tolist())]
    return float(np.mean(inside)) if inside else 0.0


def batches(subject: Subject, given: Sequence[str], longest: int = LONGEST) -> Iterator[Batch]:
    """The texts in batches with padding, and each of the shortest and longest alone; cut to
    `longest` tokens."""
    rows, kinds = _rows(subject, given, longest)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    alone = [[order[0]], [order[-1]]]
    whole = [list(range(at, min(at + _BATCH, len(rows)))) for at in range(0, len(rows), _BATCH)]
    for indices in alone + whole:
        yield padded([rows[i] for i in indices], [kinds[i] for i in indices])


def unpadded(subject: Subject, given: Sequence[str]) -> Iterator[Batch]:
    """The texts in batches of one length each, so that there is nothing but real tokens."""
    rows, kinds = _rows(subject, given, LONGEST)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for _, same in groupby(order, key=lambda i: len(rows[i])):
        while indices := list(islice(same, _BATCH)):
            yield padded([rows[i] for i in indices], [kinds[i] for i in indices])


def token_count(subject: Subject, given: Sequence[str]) -> int:
    """How many tokens of the texts are read, each text once and alone."""
    rows, _ = _rows(subject, given, LONGEST)
    return sum(len(row) for row in rows[: len(given)])


def filling(subject: Subject, length: int) -> int:
    """How many places beyond `length` to fill up, so that not every length is compiled anew: to a
    multiple, but no further than the positions, of which those filled up with are the last."""
    return min(-length % _MULTIPLE, subject.encoder.max_positions - length)


def _rows(
    subject: Subject, given: Sequence[str], longest: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ids and token types of each text in their order, cut to `longest` tokens.

    Models that read pairs (questions and contexts; those with token types) are given pairs too,
    after the texts, unless their tokenizer has no layout for them.
    """
    longest = min(longest, LONGEST, subject.encoder.max_positions)
    pieces = texts.pieces(subject.words, given)
    rows = [texts.single(subject.words, part, longest) for part in pieces]
    kinds = [np.zeros(len(row), np.int32) for row in rows]
    reads_pairs = subject.with_types or subject.head == "answer"
    if reads_pairs and subject.words.pair is not None:
        for first, second in pairwise(pieces):
            row, kind = texts.pair(subject.words, first, second, longest)
            rows.append(row)
            kinds.append(kind if subject.with_types else np.zeros_like(kind))
    return rows, kinds


def padded(rows: Sequence[np.ndarray], kinds: Sequence[np.ndarray] = ()) -> Batch:
    """Rows of ids as one batch, as long as the longest; `kinds` are token types, 0 if none."""
    kinds = kinds or [np.zeros_like(row) for row in rows]
    features = Features(rows, kinds, np.arange(len(rows)))
    length = int(features.lengths.max())
    found = collate(features, np.arange(len(rows)), len(rows), length, with_types=True)
    return Batch(**{name: found[name].astype(np.int64) for name in Batch._fields})
