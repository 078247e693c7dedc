"""Documents of ids to sequences: paragraphs into passages, passages into packed sequences.

Pure functions on lists of ids. A passage is what stands between one [CLS] and its [SEP]: as many
whole paragraphs of one document as fit.
"""

from collections.abc import Iterable, Iterator, Sequence

_OPEN_SEQUENCES = 256  # kept open while packing: enough to fill 99%, and few enough to be quick


def passages(
    paragraphs: Iterable[Sequence[int]], room: int, continues: Sequence[bool]
) -> Iterator[list[int]]:
    """The paragraphs of one document, put together while they fit into `room` ids.

    A paragraph is cut only where it is longer than `room` by itself, and then between words:
    `continues` says of each id whether it goes on with the word before it.
    """
    held: list[int] = []
    for paragraph in paragraphs:
        for piece in _pieces(paragraph, room, continues):
            if held and len(held) + len(piece) > room:
                yield held
                held = []
            held = [*held, *piece]
    if held:
        yield held


def _pieces(ids: Sequence[int], room: int, continues: Sequence[bool]) -> Iterator[Sequence[int]]:
    start = 0
    while len(ids) - start > room:
        cut = start + room
        # A word of more than half a sequence is no word.
        while continues[ids[cut]] and cut > start + room // 2:
            cut -= 1
        cut = cut if cut > start + room // 2 else start + room
        yield ids[start:cut]
        start = cut
    yield ids[start:]


def beginning(
    paragraphs: Sequence[Sequence[int]], keep: int, continues: Sequence[bool]
) -> list[Sequence[int]]:
    """The first `keep` ids of a document (0: all), the last paragraph cut between words."""
    if not keep:
        return list(paragraphs)
    kept: list[Sequence[int]] = []
    for paragraph in paragraphs:
        kept.append(next(_pieces(paragraph, keep, continues)))
        keep -= len(kept[-1])
        if keep <= 0 or len(kept[-1]) < len(paragraph):
            break
    return kept


def pack(passages: Iterable[Sequence[int]], length: int, shortest: int) -> Iterator[list[int]]:
    """Whole passages put into sequences of at most `length` ids, each where it leaves least room.

    Best fit over a bounded number of open sequences; one that has less than `shortest` left, which
    no passage would fit, is finished. Every passage comes out once and uncut.
    """
    by_room: list[list[list[int]]] = [[] for _ in range(length + 1)]
    held = 0
    for passage in passages:
        room = next((r for r in range(len(passage), length + 1) if by_room[r]), None)
        if room is None:
            sequence, held = list(passage), held + 1
        else:
            sequence = by_room[room].pop(0)
            sequence += passage
        left = length - len(sequence)
        if left < shortest:
            yield sequence
            held -= 1
            continue
        by_room[left].append(sequence)
        if held > _OPEN_SEQUENCES:
            yield next(sequences for sequences in by_room if sequences).pop(0)
            held -= 1
    for sequences in by_room:
        yield from sequences
