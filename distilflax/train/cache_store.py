"""Arrays of many steps on disk, memory-mapped: how a teacher's outputs are kept.

    FOLDER/
      key.json                 what the outputs were made from
      lock                     held by whoever writes
      COLUMN/
        00000000-00000064/     a shard: steps 0 to 63, there whole or not at all
          counts.npy           [steps, B] how many units (tokens, or masked slots) each row has
          checksums.npy        [steps] CRC-32 of the ids that each batch had before masking
          VALUE.npy            [units of all steps, ...] one step, and one row, after the other

Padding is not stored. A shard is written beside its place, synced and renamed: whoever is killed
while writing loses that shard at most, and goes on behind the last whole one.
"""

import bisect
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from distilflax import json_file
from distilflax.text.on_disk import sync

KEY = "key.json"

# A shard is finished once it has so many bytes: what a killed run computes again at most.
SHARD_BYTES = 64 << 20

_COUNTS, _CHECKSUMS, _PART = "counts", "checksums", ".part"
# What else lies in a column's folder (a file manager's records, somebody's notes) is left alone.
_SHARD_NAME = re.compile(r"(\d+)-(\d+)(\.part)?", re.ASCII)
# What numpy raises of files that are not as they were written.
_DAMAGED = (OSError, ValueError, EOFError, TypeError, OverflowError, TokenError)


class Record(NamedTuple):
    """One step of a column: units of each row [B], the batch's checksum, values [units, ...]."""

    counts: Int[np.ndarray, " B"]
    checksum: int
    values: dict[str, np.ndarray]


class _Folder(NamedTuple):
    """Where a shard is, or was begun: steps `first` to `end` - 1."""

    path: Path
    first: int
    end: int
    whole: bool


class _Shard:
    """The arrays of one shard, mapped into memory."""

    def __init__(self, folder: Path, first: int, end: int, values: Collection[str]):
        """Raises one of `_DAMAGED` where the files are not as they were written."""
        self.first, self.end = first, end
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in (_COUNTS, _CHECKSUMS, *values)
        }
        self.counts = np.asarray(arrays.pop(_COUNTS))
        self.checksums = np.asarray(arrays.pop(_CHECKSUMS))
        self.values = arrays
        self.offsets = np.concatenate([[0], np.cumsum(self.counts.sum(axis=1), dtype=np.int64)])
        steps = self.end - self.first
        if len(self.counts) != steps or len(self.checksums) != steps:
            raise ValueError(f"{folder} has other steps than its name says")
        if any(len(array) != self.offsets[-1] for array in arrays.values()):
            raise ValueError(f"{folder} has values of other lengths than it counts")


class Column:
    """The steps of one column that are on disk, from 0 on without a gap; read at random.

    `values` are the names of what each step has.
    """

    def __init__(self, folder: Path, values: Collection[str]):
        self._shards: list[_Shard] = []
        for path, first, end, _ in sorted(one for one in _folders(folder) if one.whole):
            try:
                shard = _Shard(path, first, end, values)
            except _DAMAGED:
                break  # Damaged: as good as not there, and so is what follows.
            if shard.first != self.steps:
                break
            self._shards.append(shard)

    @property
    def steps(self) -> int:
        return self._shards[-1].end if self._shards else 0

    @property
    def units(self) -> int:
        """Tokens, or masked slots, of all steps."""
        return sum(int(shard.offsets[-1]) for shard in self._shards)

    @property
    def unit_bytes(self) -> int:
        """Bytes on disk for each unit."""
        shards = self._shards[:1]
        return sum(array[:0].itemsize * _size(array) for s in shards for array in s.values.values())

    def at(self, step: int) -> Record:
        """The record of a step below `steps`."""
        shard = self._shards[bisect.bisect_right(self._shards, step, key=lambda s: s.first) - 1]
        i = step - shard.first
        units = slice(int(shard.offsets[i]), int(shard.offsets[i + 1]))
        values = {name: array[units] for name, array in shard.values.items()}
        return Record(shard.counts[i], int(shard.checksums[i]), values)


class ColumnWriter:
    """Appends steps to a column. Whoever makes one holds the folder's lock."""

    def __init__(self, folder: Path, start: int):
        """Clears away what is not a whole shard below step `start`."""
        self._folder, self._start = folder, start
        self._pending: list[Record] = []
        self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        for found in list(_folders(folder)):
            if not found.whole or found.end > start:
                shutil.rmtree(found.path)

    def add(self, record: Record) -> None:
        """One more step; on disk when its shard is full, or at `flush`."""
        self._pending.append(record)
        self._bytes += sum(array.nbytes for array in record.values.values())
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the pending steps as a shard.

        Raises:
          OSError: as writing a file does; then nothing of the shard is left.
        """
        if not self._pending:
            return
        end = self._start + len(self._pending)
        name = f"{self._start:08d}-{end:08d}"
        part = self._folder / (name + _PART)
        arrays = {
            _COUNTS: np.stack([record.counts for record in self._pending]).astype(np.int32),
            _CHECKSUMS: np.array([record.checksum for record in self._pending], np.uint32),
        }
        arrays |= {
            value: np.concatenate([record.values[value] for record in self._pending])
            for value in self._pending[0].values
        }
        try:
            part.mkdir()
            for value, array in arrays.items():
                np.save(part / f"{value}.npy", array, allow_pickle=False)
                sync(part / f"{value}.npy")
            part.rename(self._folder / name)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync(self._folder)
        self._start, self._pending, self._bytes = end, [], 0


def read_key(folder: Path) -> dict[str, Any] | None:
    """What the outputs in a folder were made from; None if there are none.

    Raises:
      ValueError: the file is not what was written.
    """
    try:
        key = json_file.parse((folder / KEY).read_bytes(), KEY)
    except FileNotFoundError:
        return None
    if not isinstance(key, dict):
        raise ValueError(f"{folder / KEY} is not a key")
    return key


def write_key(folder: Path, key: Mapping[str, Any]) -> None:
    """Says what the outputs are made from, before the first of them is written."""
    part = folder / (KEY + _PART)
    part.write_text(json.dumps(key, indent=1), encoding="utf-8")
    sync(part)
    part.rename(folder / KEY)


def _folders(folder: Path) -> Iterator[_Folder]:
    """The shards of a column's folder, whole ones and others."""
    for path in folder.iterdir() if folder.is_dir() else ():
        named = _SHARD_NAME.fullmatch(path.name)
        if named and path.is_dir():
            yield _Folder(path, int(named[1]), int(named[2]), whole=not named[3])


def _size(array: np.ndarray) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64))
