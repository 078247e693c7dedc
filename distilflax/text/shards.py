"""Rows on disk as memory-mapped Arrow streams: sequences of ids, and documents of text.

Each shard is an Arrow stream that `datasets.Dataset.from_file` opens too. Here it is read through
numpy views of its buffers instead, because a row of a `Dataset` takes fifty microseconds and a
slice of a view takes one. Nothing is copied until asked for, so a corpus may exceed memory.
"""

import bisect
import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

_SHARD_BATCHES = 128  # record batches in a file


class Sequences(Sequence):
    """Sequences of ids in shards on disk; `sequences[i]` is [CLS] ... [SEP] as int32.

    Pickles as the paths of its shards, so it travels to worker processes for nothing.
    """

    def __init__(self, shards: Sequence[Path], cls_id: int):
        self._shards = tuple(shards)
        self._cls_id = cls_id
        self._ids: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        first = [0]
        for batch in _batches(self._shards):
            column = batch.column("ids")
            self._ids.append(column.values.to_numpy(zero_copy_only=True))
            self._offsets.append(column.offsets.to_numpy(zero_copy_only=True))
            first.append(first[-1] + len(column))
        self._first = first

    def __reduce__(self):
        return Sequences, (self._shards, self._cls_id)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> Int[np.ndarray, " length"]:
        index = _checked(index, len(self))
        batch = bisect.bisect_right(self._first, index) - 1
        start, end = self._offsets[batch][index - self._first[batch] :][:2]
        return self._ids[batch][start:end].astype(np.int32)

    def segments(self, index: int) -> Int[np.ndarray, " length"]:
        """The passage that each id of a sequence belongs to, counted from 1.

        [CLS] opens a passage and stands nowhere else, so nothing has to be stored for this.
        """
        return np.cumsum(self[index] == self._cls_id, dtype=np.int32)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " sequences"]:
        """The number of ids in each sequence, [CLS] and [SEP] included."""
        return np.concatenate(
            [np.zeros(0, np.int32), *(np.diff(offsets) for offsets in self._offsets)]
        ).astype(np.int32)

    def gather(self, indices: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " tokens"]:
        """The ids of many sequences, one sequence after the other in the order of `indices`."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"indices from 0 to {len(self) - 1} only")
        counts = self.lengths[indices].astype(np.int64)
        tokens = np.empty(counts.sum(), np.int32)
        ends = np.cumsum(counts)
        batches = np.searchsorted(self._first, indices, side="right") - 1
        for batch in np.unique(batches):
            here = np.flatnonzero(batches == batch)
            count = counts[here]
            # For each token: how far into its own sequence it is.
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            start = self._offsets[batch][indices[here] - self._first[batch]]
            found = self._ids[batch][np.repeat(start, count) + within]
            tokens[np.repeat(ends[here] - count, count) + within] = found
        return tokens

    def gather_segments(self, indices: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " tokens"]:
        """As `gather`, with the number of the passage that each id belongs to (`segments`)."""
        opened = np.cumsum(self.gather(indices) == self._cls_id)
        counts = self.lengths[indices]
        # Every sequence begins with [CLS]: what was opened before it is not its own.
        before = opened[np.cumsum(counts) - counts] - 1
        return (opened - np.repeat(before, counts)).astype(np.int32)


class Documents(Sequence):
    """Texts in shards on disk, decoded when asked for."""

    def __init__(self, shards: Sequence[Path]):
        self._shards = tuple(shards)
        self._texts: list[pa.Array] = []
        first = [0]
        for batch in _batches(self._shards):
            self._texts.append(batch.column("text"))
            first.append(first[-1] + batch.num_rows)
        self._first = first

    def __reduce__(self):
        return Documents, (self._shards,)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> str:
        index = _checked(index, len(self))
        batch = bisect.bisect_right(self._first, index) - 1
        return self._texts[batch][index - self._first[batch]].as_py()


class _ShardWriter:
    """Writes one column into `folder/name-00000.arrow`, ..., a bounded number of rows in memory.

    A context that closes its file whatever happens; the rows are on disk after `close`.
    """

    _batch: int  # how large `_pending` may become before it is written

    def __init__(self, folder: Path, name: str, schema: pa.Schema):
        self._folder, self._name, self._schema = folder, name, schema
        self._names: list[str] = []
        self._file = None
        self._pending: list = []
        self._size = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._file is not None:
            # What could not be written will not be on closing either.
            with contextlib.suppress(OSError):
                self._file.close()

    def write(self, rows: Iterable) -> None:
        """Takes rows; they go to disk in batches."""
        for row in rows:
            self._pending.append(row)
            self._size += len(row)
            if self._size >= self._batch:
                self._flush()

    def close(self) -> list[str]:
        """Finishes the last shard; returns the names of all."""
        self._flush()
        self._finish()
        return self._names

    def _column(self, rows: list) -> pa.Array:
        raise NotImplementedError

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._file is None:
            self._names.append(f"{self._name}-{len(self._names):05d}.arrow")
            self._file = (self._folder / self._names[-1]).open("wb")
            self._stream = pa.ipc.new_stream(self._file, self._schema)
            self._batches = 0
        column = self._column(self._pending)
        self._stream.write_batch(pa.record_batch([column], schema=self._schema))
        self._pending, self._size = [], 0
        self._batches += 1
        if self._batches == _SHARD_BATCHES:
            self._finish()

    def _finish(self) -> None:
        if self._file is not None:
            self._stream.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class SequenceWriter(_ShardWriter):
    """Writes sequences of ids, and counts them.

    Attributes:
      counts: how often each id was written.
      sequences: how many sequences were.
    """

    _batch = 1 << 20  # ids

    def __init__(self, folder: Path, name: str, vocab_size: int):
        # Half the disk, and half the page cache, for every vocabulary of up to 65,536 words.
        self._dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
        kind = pa.from_numpy_dtype(self._dtype)
        super().__init__(folder, name, pa.schema({"ids": pa.list_(kind)}))
        self.counts = np.zeros(vocab_size, np.int64)
        self.sequences = 0
        self._digest = hashlib.sha256()

    def digest(self) -> str:
        """Of every sequence that went to disk, in order."""
        return self._digest.hexdigest()

    def _column(self, rows: list[list[int]]) -> pa.Array:
        flat = np.fromiter(itertools.chain.from_iterable(rows), self._dtype, self._size)
        offsets = np.zeros(len(rows) + 1, np.int32)
        np.cumsum([len(ids) for ids in rows], out=offsets[1:])
        self.counts += np.bincount(flat, minlength=len(self.counts))
        self.sequences += len(rows)
        self._digest.update(flat.tobytes() + offsets.tobytes())
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


class DocumentWriter(_ShardWriter):
    """Writes texts."""

    _batch = 1 << 22  # characters

    def __init__(self, folder: Path, name: str):
        super().__init__(folder, name, pa.schema({"text": pa.large_string()}))

    def _column(self, rows: list[str]) -> pa.Array:
        return pa.array(rows, pa.large_string())


def _batches(shards: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    for shard in shards:
        # The batches keep the map alive for as long as they are used.
        yield from pa.ipc.open_stream(pa.memory_map(str(shard)))


def _checked(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"index {index} of {length}")
    return int(index) % length
