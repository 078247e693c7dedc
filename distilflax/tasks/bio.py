"""Tags of spans: which may follow which, where the spans are, and decoding that keeps to it.

BIO    B-x begins a span of x, I-x goes on with it, O is outside (IOB2)
IOB1   the same, but a span begins with I-x unless it follows another of its own type
IO     the type alone, and words in a row of one type are one span
CoNLL  (x* begins a span of x, *) ends it, (x) is one of one word, * is anything else
BIOES  also E-x for the last word of a span and S-x for a span of one word

BILOU and BMES are BIOES in other letters. Where there is one type of span alone, tags may be bare:
B, I and O.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

OUTSIDE = "O"
_CONTINUES = ("I", "E")
_BRACKETS = re.compile(r"(?:\(([^()*]+))?\*?(\))?")  # a type that opens, what closes
_LETTERS = {letter: letter for letter in "BIES"} | {"L": "E", "U": "S", "M": "I"}


def parts(tag: str) -> tuple[str, str]:
    """(prefix, type), in the letters of BIOES: ("B", "person"); ("O", "") of what is in no span."""
    prefix, dash, kind = tag.partition("-")
    known = prefix in _LETTERS and bool(kind) == bool(dash)
    return (_LETTERS[prefix], kind) if known else (OUTSIDE, "")


def is_tag(tag: str) -> bool:
    """Whether it is O or stands in a span."""
    return tag == OUTSIDE or parts(tag)[0] != OUTSIDE


def in_bioes(tags: Sequence[str]) -> list[str]:
    """The tags in the letters of BIOES, which libraries know; what is in no span is O."""
    return ["-".join(filter(None, parts(tag))) for tag in tags]


def scheme_of(tags: Sequence[str]) -> str:
    """`bioes`, `bio`, or `plain` where the tags are no spans (parts of speech). One odd tag beside
    spans and O does not make them plain: it is a slip."""
    given = set(tags)
    inside = {tag for tag in given if tag != OUTSIDE and is_tag(tag)}
    typed = any("-" in tag for tag in inside)
    if not inside or not (given <= inside | {OUTSIDE} or (typed and OUTSIDE in given)):
        return "plain"
    if not typed and not (OUTSIDE in given and inside & {"B", "I"}):
        return "plain"  # single letters, which parts of speech may be too
    return "bioes" if {parts(tag)[0] for tag in inside} & {"E", "S"} else "bio"


def in_iob1(labels: Collection[str]) -> bool:
    """Whether a model with these labels speaks IOB1 (or IO): it can go on with a span of some type
    that it cannot begin with B-."""
    inside = [parts(tag) for tag in labels]
    begun = {kind for letter, kind in inside if letter == "B"}
    stray = any(letter == "I" and kind not in begun for letter, kind in inside)
    return stray and scheme_of(list(labels)) == "bio"


def begins(tag: str, labels: Collection[str]) -> bool:
    """Whether a tag begins spans that the labels go on with."""
    return tag.startswith("B") and f"I{tag[1:]}" in labels


def may_follow(before: str, tag: str, scheme: str) -> bool:
    """Whether `tag` may stand after `before`; the start of a sentence is as O."""
    prefix, kind = parts(tag)
    prefix_before, kind_before = parts(before)
    if scheme == "plain":
        return True
    open_before = prefix_before == "I" or prefix_before == "B"
    if prefix in _CONTINUES:
        return open_before and kind == kind_before
    # In BIOES a span must be closed by E or S before anything else comes.
    return scheme != "bioes" or not open_before


def may_end(tag: str, scheme: str) -> bool:
    """Whether a sentence may end with `tag`."""
    return scheme != "bioes" or parts(tag)[0] not in ("B", "I")


def first_error(tags: Sequence[str], scheme: str) -> int | None:
    """The position of the first tag that may not stand where it stands."""
    for i, tag in enumerate(tags):
        if not may_follow(tags[i - 1] if i else OUTSIDE, tag, scheme):
            return i
    return None if not tags or may_end(tags[-1], scheme) else len(tags) - 1


def from_iob1(tags: Sequence[str]) -> list[str]:
    """IOB1 as BIO: an I- that begins a span becomes B-."""
    found = []
    for i, tag in enumerate(tags):
        prefix, kind = parts(tag)
        before = parts(tags[i - 1]) if i else (OUTSIDE, "")
        starts = prefix == "I" and (before[0] == OUTSIDE or before[1] != kind)
        found.append("B" + tag[1:] if starts else tag)
    return found


def from_io(tags: Sequence[str]) -> list[str]:
    """IO as BIO: x x O y becomes B-x I-x O B-y."""
    before = (OUTSIDE, *tags)
    return [
        tag if tag == OUTSIDE else f"{'I' if tag == last else 'B'}-{tag}"
        for last, tag in zip(before, tags, strict=False)
    ]


def from_brackets(tags: Sequence[str]) -> list[str] | None:
    """The bracket columns of CoNLL-2012 as BIO: (x* *) * (y) becomes B-x I-x O B-y; None where a
    bracket is not closed before the next one, or is no such bracket."""
    found, inside = [], ""
    for tag in tags:
        match = _BRACKETS.fullmatch(tag)
        kind = inside or (match and match[1]) or ""
        if not tag or match is None or (inside and match[1]) or (match[2] and not kind):
            return None
        found.append(f"{'B' if match[1] else 'I'}-{kind}" if kind else OUTSIDE)
        inside = "" if match[2] else kind
    return None if inside else found


def are_brackets(tags: Collection[str]) -> bool:
    """Whether they are of CoNLL-2012's bracket columns."""
    return "*" in tags and all(tag and _BRACKETS.fullmatch(tag) for tag in tags)


def kinds_in_brackets(tags: Collection[str]) -> set[str]:
    """The types of span that open in tags of CoNLL-2012's bracket columns."""
    matches = filter(None, map(_BRACKETS.fullmatch, tags))
    return {match[1] for match in matches if match[1]}


def spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, one past the last, type) of every span; a stray I- or E- begins one, as for
    conlleval."""
    found, start, kind = [], None, ""
    for i, tag in enumerate([*tags, OUTSIDE]):
        prefix, this = parts(tag)
        goes_on = start is not None and prefix in _CONTINUES and this == kind
        if start is not None and not goes_on:
            found.append((start, i, kind))
            start = None
        if prefix != OUTSIDE and not goes_on:
            start, kind = i, this
        if start is not None and prefix in ("E", "S"):
            found.append((start, i + 1, kind))
            start = None
    return found


def legal_moves(labels: Sequence[str], scheme: str) -> Bool[np.ndarray, "before_and_start N"]:
    """[i, j]: whether label j may follow label i; the last row is the start of a sentence."""
    rows = [[may_follow(before, tag, scheme) for tag in labels] for before in (*labels, OUTSIDE)]
    return np.array(rows, bool)


def best_legal(
    log_p: Float[np.ndarray, "words N"],
    moves: Bool[np.ndarray, "before_and_start N"],
    ends: Bool[np.ndarray, "N"],
) -> Int[np.ndarray, "words"]:
    """The most probable sequence of labels among the legal ones (Viterbi).

    Words are independent given the text, so the score of a sequence is the sum of its words'.
    """
    cost = np.where(moves, 0.0, -np.inf)
    score = log_p[0] + cost[-1]
    back = np.zeros(log_p.shape, np.int64)
    for word in range(1, len(log_p)):
        through = score[:, None] + cost[:-1]
        back[word] = through.argmax(axis=0)
        score = through.max(axis=0) + log_p[word]
    path = [int(np.where(ends, score, -np.inf).argmax())]
    for word in range(len(log_p) - 1, 0, -1):
        path.append(int(back[word, path[-1]]))
    return np.array(path[::-1])
