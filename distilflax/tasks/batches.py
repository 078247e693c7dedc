"""Rows of features to batches of one of few shapes: little padding, few compilations."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Int

from distilflax.batches import plan
from distilflax.batches.plan import Batch
from distilflax.tasks.task import NOTHING, Features

# Closer where most sentences are, for each length is compiled once: without 12 the intents of
# CLINC150, 11 tokens on average, would be padded to half as many again.
LADDER = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# An accelerator has room for the padding, and takes longer to compile: on an H200 with 16 cores not
# one evaluation of `configs/cranfield.py`, minutes on two cores of a CPU, had begun after 70 s.
COARSE = (32, 64, 128, 256, 512)

# Tokens that a CPU computes at once where no gradient asks for more: what lies between two products
# then stays in its caches. 2,200 texts of up to 128 tokens through 3 layers of 384, two cores of an
# AMD EPYC: 245 GFLOP/s in batches of 32, 317 in those of 16 or 8, 296 in those of 4.
CPU_TOKENS = 2048

# Room for the real tokens of a batch of texts of all lengths is made in steps of a sixteenth of its
# padded tokens, and of so many at least, since each size of it is a program; where there is more
# than this share of them, padding stays.
_ROOMS, _LEAST_ROOM, _WORTH = 16, 512, 0.9

# Indices of rows and the length they are padded to.
BatchAt = Callable[[int], Batch]


def buckets(max_length: int, given: Sequence[int] = ()) -> tuple[int, ...]:
    """The lengths that rows are padded to, rising; the last is `max_length`.

    Which rows make up a batch does not depend on them (`batches/plan.py`), so that runs on unlike
    devices see the same.
    """
    steps = sorted(set(given)) or (LADDER if jax.default_backend() == "cpu" else COARSE)
    return (*(length for length in steps if length < max_length), max_length)


def rows_at(length: int, most: int, shards: int = 1) -> int:
    """How many rows of a length are computed at once, where they may be any number up to `most`:
    that, or on a CPU the half of it, a quarter, ..., what `CPU_TOKENS` has room for. It can be
    divided among `shards` where `most` can."""
    if jax.default_backend() != "cpu":
        return most
    rows = most
    while rows * length > CPU_TOKENS and rows % (2 * shards) == 0:
        rows //= 2
    return rows


def turns(rows: int, length: int, tokens: int, many: int) -> int:
    """In how many parts, one after the other, a step computes rows of `tokens` tokens in all: one,
    but on a CPU those of `rows_at` where they are `many` or more."""
    return rows // rows_at(length, rows) if tokens >= many else 1


def training(
    lengths: Int[np.ndarray, "n"],
    *,
    batch_size: int,
    seed: int,
    buckets: tuple[int, ...],
    contrasts: bool = False,
    texts: Int[np.ndarray, "n G"] | None = None,
) -> tuple[BatchAt, float]:
    """(the function from a step to its batch, `epoch_steps`); see `batches.plan.train_plan`.

    Fewer rows than a batch are one batch, the same at every step: low-data runs are that small.

    For a loss that holds the rows of a batch against each other, which `contrasts`, they are drawn
    without a look at their lengths, so that a query is told from texts of all lengths, as in a
    search. Where `texts` numbers what stands in each row, no text is in a batch twice, as far as
    that can be.
    """
    of_epoch = epoch_steps(len(lengths), batch_size)
    if len(lengths) < batch_size:
        whole = plan.validation_plan(lengths, batch_size=batch_size, buckets=buckets)[0]
        return lambda step: whole, of_epoch
    steps = len(lengths) // batch_size
    if not contrasts:
        given = {"batch_size": batch_size, "seed": seed, "buckets": buckets}
        return plan.train_plan(lengths, **given), of_epoch

    @functools.lru_cache(maxsize=1)
    def drawn(epoch: int) -> list[Int[np.ndarray, "batch"]]:
        order = plan.order_of(len(lengths), seed, epoch)
        if texts is None:
            return [*order[: steps * batch_size].reshape(steps, batch_size)]
        return _apart(order, texts, batch_size)

    def batch_at(step: int) -> Batch:
        indices = drawn(step // steps)[step % steps]
        return Batch(indices, plan.bucket(lengths[indices], buckets))

    return batch_at, of_epoch


def epoch_steps(rows: int, batch_size: int) -> float:
    """Steps of an epoch, not rounded: three epochs of 63 rows in batches of 32 are 6 steps, and
    not 3. The last rows of an epoch, which fill no batch, wait for the next one's order."""
    return max(1.0, rows / batch_size)


# So many times the rows of a batch may be passed over for it.
_PASSED = 8


def _apart(
    order: Int[np.ndarray, "n"], texts: Int[np.ndarray, "n G"], size: int
) -> list[Int[np.ndarray, "batch"]]:
    """The rows in their order as full batches, but that one waits for the next batch while a text
    of its own is in this one; where too many would have to wait, the first of them stay."""
    coming, waiting, found = iter(order.tolist()), [], []
    for _ in range(len(order) // size):
        chosen, seen, passed = [], set(), []
        waited = iter(waiting)
        for row in itertools.chain(waited, coming):
            its = {text for text in texts[row].tolist() if text >= 0}
            if seen & its:
                passed.append(row)
            else:
                chosen.append(row)
                seen |= its
            if len(chosen) == size or len(passed) == _PASSED * size:
                break
        missing = size - len(chosen)
        waiting = [*passed[missing:], *waited]
        found.append(np.array([*chosen, *passed[:missing]]))
    return found


def collate(
    features: Features,
    indices: Int[np.ndarray, "n"],
    rows: int,
    length: int,
    *,
    with_types: bool,
    teacher: Sequence[np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """The rows at `indices` padded to [rows, length]; what is beyond them has mask 0 and no target.

    `input_ids`, `attention_mask`, the targets by their names, `token_type_ids` where the encoder
    has some, and the `teacher`'s logits where there are any.
    """
    batch = {
        "input_ids": np.zeros((rows, length), np.int32),
        "attention_mask": np.zeros((rows, length), np.int32),
    }
    for row, index in enumerate(indices):
        ids = features.ids[index]
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
    if with_types:
        batch["token_type_ids"] = _padded([features.types[i] for i in indices], rows, length, 0)
    for name, values in features.targets.items():
        batch[name] = _targets(values, indices, rows, length)
    if teacher is not None:
        chosen = [teacher[i] for i in indices]
        if chosen[0].ndim == 1:
            batch["teacher"] = np.zeros((rows, len(chosen[0])), np.float32)
            batch["teacher"][: len(chosen)] = chosen
        else:
            batch["teacher"] = _padded(chosen, rows, length, 0.0)
    return batch


def collate_groups(
    features: Features,
    groups: Int[np.ndarray, "n G"],
    number: int,
    length: int,
    *,
    buckets: tuple[int, ...],
    with_types: bool,
    teacher: Sequence[np.ndarray | None] | None = None,
    many: int | None = None,
) -> dict[str, np.ndarray]:
    """`number` groups of G rows; targets and the teacher's logits are [number, G, ...].

    Groups of one row are rows: `collate`. Of others the first row of each group (a query, mostly
    short) is padded by itself, to [number, one of `buckets` but at most `length`], and named
    `first_input_ids` and so on; the others are [number (G - 1), length].

    With `many`, the tokens that a step takes in turn, both parts are `without_padding`.
    """
    size = groups.shape[1]
    if size == 1:
        only = groups[:, 0]
        return collate(features, only, number, length, with_types=with_types, teacher=teacher)
    bare = Features(features.ids, features.types, features.owner)
    short = min(length, plan.bucket(features.lengths[groups[:, 0]], buckets))
    first = collate(bare, groups[:, 0], number, short, with_types=with_types)
    rest = groups[:, 1:].ravel()
    batch = collate(bare, rest, number * (size - 1), length, with_types=with_types)
    if many is not None:
        first, batch = (without_padding(part, many) for part in (first, batch))
    batch |= {f"first_{name}": values for name, values in first.items()}
    for name, values in features.targets.items():
        rows = _targets(values, groups.ravel(), number * size, length)
        batch[name] = rows.reshape(number, size, *rows.shape[1:])
    if teacher is not None:
        known = np.stack([teacher[i] for i in groups.ravel()])
        batch["teacher"] = np.zeros((number, size, known.shape[1]), np.float32)
        batch["teacher"][: len(groups)] = known.reshape(*groups.shape, -1)
    return batch


def without_padding(batch: dict[str, np.ndarray], many: int) -> dict[str, np.ndarray]:
    """A batch with its `real_places`; where it is computed in turns, its rows are dealt to them so
    that the turns have nearly as many tokens, and `order` says where each row is now."""
    mask = batch["attention_mask"]
    whole = real_places(mask, 1)
    parts = turns(*mask.shape, whole["real_places"].size, many) if whole else 1
    if parts == 1:
        return batch | whole
    # As at cards, but each round in the other direction: the longest rows, the next ones, ...
    rounds = np.argsort(-mask.sum(axis=1), kind="stable").reshape(-1, parts)
    rounds[1::2] = rounds[1::2, ::-1]
    dealt = rounds.T.ravel()
    batch = {name: rows[dealt] for name, rows in batch.items()}
    return batch | real_places(batch["attention_mask"], parts) | {"order": np.argsort(dealt)}


def real_places(
    attention_mask: Int[np.ndarray, "B L"], parts: int
) -> dict[str, Int[np.ndarray, "parts T"]]:
    """`real_places` of rows in so many equal parts, as of `models.TransformerEncoder`, with some
    room; nothing where room for the real tokens is nearly that for all."""
    padded = attention_mask.size // parts
    real = [np.flatnonzero(part) for part in attention_mask.reshape(parts, padded)]
    step = max(attention_mask.size // _ROOMS, _LEAST_ROOM) // parts
    room = max(1, -(-max(map(len, real)) // step)) * step
    if room > _WORTH * padded:
        return {}
    filled = [np.pad(part, (0, room - len(part)), constant_values=padded) for part in real]
    return {"real_places": np.array(filled, np.int32)}


def _targets(values, indices: Int[np.ndarray, "n"], rows: int, length: int) -> np.ndarray:
    if isinstance(values, list):
        fill = NOTHING if np.issubdtype(values[0].dtype, np.integer) else np.nan
        return _padded([values[i] for i in indices], rows, length, fill)
    fill = NOTHING if np.issubdtype(values.dtype, np.integer) else np.nan
    out = np.full((rows, *values.shape[1:]), fill, values.dtype)
    out[: len(indices)] = values[indices]
    return out


def _padded(parts: Sequence[np.ndarray], rows: int, length: int, fill: int | float) -> np.ndarray:
    out = np.full((rows, length, *parts[0].shape[1:]), fill, parts[0].dtype)
    for row, part in enumerate(parts):
        out[row, : len(part)] = part
    return out
