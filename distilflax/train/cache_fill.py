"""Running the teacher once: the cache of a run is opened, and what it lacks is computed."""

import dataclasses
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jax.sharding import Mesh
from rich.console import Console

from distilflax import losses, weights
from distilflax.batches import masking
from distilflax.batches.masking import Masked, MaskTable, at_positions
from distilflax.batches.pipeline import HostBatch, batch_at
from distilflax.batches.placement import to_global
from distilflax.errors import UserError
from distilflax.losses import View, words
from distilflax.losses.vocabulary import Decoder
from distilflax.settings import Encoder, Experiment
from distilflax.text.on_disk import exclusive, writing_to
from distilflax.train import cache_store, cached, micro_batches
from distilflax.train.cache_store import ColumnWriter, Record
from distilflax.train.cached import Column, Kept
from distilflax.train.progress import say_on
from distilflax.train.setup import Materials
from distilflax.train.state import MASKING, WORDS, purpose_key
from distilflax.train.teachers import Pair
from distilflax.train.views import masked_at, view_of

# Raise this when the same key would stand for other outputs than before.
_FORMAT = 1

# Rows of logits at once while words are chosen.
_CHUNK_ROWS = 256

# How the parts of a key are called where two of them differ.
_NAMES = {
    "format": "version of this project",
    "teacher": "teacher",
    "text": "text or tokenizer",
    "seed": "config.seed, which draws masks and order",
    "masking": "config.masking",
    "batch_size": "config.training.batch_size",
    "data": "layout or length of sequences in config.data",
    "dtype": "config.compute.dtype",
}


class Cache:
    """The columns of a run, on disk."""

    def __init__(self, folder: Path, columns: Iterable[Column], mask_rate: float):
        self.folder, self._mask_rate = folder, mask_rate
        self.stored = {
            column: cache_store.Column(folder / column.folder, column.values) for column in columns
        }

    @property
    def steps(self) -> int:
        """How many steps all columns hold."""
        return min(stored.steps for stored in self.stored.values())

    def beside(self, step: int, batch: HostBatch) -> dict[str, np.ndarray]:
        """What batch `step` carries of its teacher [B, L, ...]; padding and unused slots are zeros.

        All of it is zeros beyond the last step: batches are made ahead of the loop.

        Raises:
          UserError: the cache is of another batch.
        """
        arrays = {}
        real = batch["attention_mask"] > 0
        for column, stored in self.stored.items():
            record = stored.at(min(step, stored.steps - 1))
            if step < stored.steps and record.checksum != _checksum(batch):
                raise UserError(
                    f"{self.folder} has other text at step {step} than this run; delete that "
                    "folder, and the teacher is run again."
                )
            units = real
            if column.slots:
                slots = masking.budget(real.shape[1], self._mask_rate)
                units = np.arange(slots) < record.counts[:, None]
            for name, values in record.values.items():
                array = np.zeros((*units.shape, *values.shape[1:]), values.dtype)
                if step < stored.steps:
                    array[units] = values
                arrays[column.name_in_batch(name)] = array
        return arrays

    def describe(self) -> str:
        """`575 steps, 0.24 GB (768 + 64 bytes a position) in FOLDER`."""
        sizes = [stored.unit_bytes for stored in self.stored.values()]
        total = sum(stored.unit_bytes * stored.units for stored in self.stored.values())
        return (
            f"{self.steps:,} steps, {total / 1e9:.2f} GB "
            f"({' + '.join(map(str, sizes))} bytes a position) in {self.folder}"
        )


def ready(
    experiment: Experiment,
    materials: Materials,
    pair: Pair,
    mesh: Mesh,
    teacher_params: dict,
    steps: int,
) -> Cache | None:
    """The cache that holds the first `steps` steps; None where none is asked for or needed.

    Steps that are not there are computed now, by the teacher, one shard after the other: a process
    that is stopped meanwhile goes on from there, and one that finds another at it waits.

    Raises:
      UserError: a folder that another teacher, text or masking made, one that cannot be read or
        written, or more to write than the disk has room for.
    """
    if not experiment.teacher_cache.enabled or not losses.needs_teacher(experiment.losses):
        return None
    if jax.process_count() > 1:
        raise UserError(
            "config.teacher_cache is for runs of one process; set teacher_cache.enabled=False."
        )
    key = key_of(experiment, materials)
    folder = _folder(experiment, key)
    columns = cached.columns(experiment, pair.student, pair.teacher)
    rate = experiment.masking.rate

    def opened() -> Cache:
        _check_key(folder, key)
        return Cache(folder, columns, rate)

    if (cache := opened()).steps >= steps:
        return cache
    kept = "What was computed so far is kept, and the same command goes on behind it."
    with (
        writing_to(folder, "config.teacher_cache.folder", kept),
        exclusive(folder / "lock", "running the teacher for this cache"),
    ):
        if (cache := opened()).steps >= steps:  # Somebody else was faster.
            return cache
        if cache_store.read_key(folder) is None:
            cache_store.write_key(folder, key)
        _fill(experiment, materials, pair, mesh, teacher_params, cache, steps)
    cache = opened()
    say_on(Console(stderr=True))(f"teacher cache: {cache.describe()}")
    return cache


def key_of(experiment: Experiment, materials: Materials) -> dict[str, Any]:
    """What determines the teacher's outputs at a step, beside what a column's name says."""
    teacher, data = materials.teacher, experiment.data
    key = {
        "format": _FORMAT,
        "teacher": weights.fingerprint(teacher.encoder, teacher.params),
        "text": materials.corpus.fingerprint,
        "seed": experiment.seed,
        "masking": dataclasses.asdict(experiment.masking),
        "batch_size": experiment.training.batch_size,
        "data": [data.layout, data.max_length, data.buckets],
        "dtype": experiment.compute.dtype,
    }
    return json.loads(json.dumps(key))  # As a file gives it back: lists and no tuples.


def _folder(experiment: Experiment, key: dict[str, Any]) -> Path:
    named = experiment.teacher_cache.folder
    if named:
        return Path(named).expanduser()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return Path(experiment.data.cache).expanduser() / "teacher" / name


def _check_key(folder: Path, key: dict[str, Any]) -> None:
    try:
        theirs = cache_store.read_key(folder)
    except NotADirectoryError:
        raise UserError(
            f"config.teacher_cache.folder {folder} is a file, or lies below one; give a folder."
        ) from None
    except (OSError, ValueError):
        raise UserError(
            f"{folder / cache_store.KEY} cannot be read any more; delete {folder}, and the teacher "
            "is run again."
        ) from None
    if theirs is None:
        return
    for part in key:
        there, here = theirs.get(part), key[part]
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            apart = [name for name in here if there.get(name) != here[name]]
            there, here = ({name: one.get(name) for name in apart} for one in (there, here))
        raise UserError(
            f"config.teacher_cache.folder {folder} was made with another {_NAMES[part]} "
            f"({_shown(there)} there, {_shown(here)} here); give another folder, or none."
        )


def _shown(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _fill(
    experiment: Experiment,
    materials: Materials,
    pair: Pair,
    mesh: Mesh,
    teacher_params: dict,
    cache: Cache,
    steps: int,
) -> None:
    """Runs the teacher on the steps that a column lacks, and writes what it lacks."""
    host_batch = batch_at(
        materials.corpus.train,
        batch_size=experiment.training.batch_size,
        seed=experiment.seed,
        data=experiment.data,
    )
    run = make_teacher(experiment, pair.teacher, tuple(cache.stored))
    done = {column: min(stored.steps, steps) for column, stored in cache.stored.items()}
    writers = {
        column: ColumnWriter(cache.folder / column.folder, done[column])
        for column in done
        if done[column] < steps
    }
    first = min(done.values())
    for step in _progress(range(first, steps)):
        batch = host_batch(step)
        found = jax.device_get(
            run(teacher_params, materials.table, to_global(batch, mesh), jnp.int32(step))
        )
        records = {
            column: _record(column, values, units > 0, batch)
            for column, (values, units) in found.items()
            if column in writers and step >= done[column]
        }
        if step == first:
            _check_room(cache.folder, records.values(), steps - first)
        for column, record in records.items():
            writers[column].add(record)
    for writer in writers.values():
        writer.flush()


def make_teacher(
    experiment: Experiment, encoder: Encoder, columns: tuple[Column, ...]
) -> Callable[[dict, MaskTable, dict, jax.Array], dict]:
    """The jitted (teacher params, mask table, batch, step) to (values, units) of each column.

    values: {name: [B, L or K, ...]}; units [B, L or K]: which of them are there at all. The teacher
    reads the step's micro-batches; what is found does not depend on how many there are.
    """
    masking_key, words_key = (purpose_key(experiment.seed, p) for p in (MASKING, WORDS))

    def run(params: dict, table: MaskTable, batch: dict, step: jax.Array) -> dict:
        def of_part(batch: dict, masked: Masked, numbers: jax.Array) -> dict:
            view = view_of(experiment, encoder, params, batch, masked, None)
            found = {}
            for column in columns:
                if column.place == cached.WORDS:
                    hidden = rows_of_words(experiment, view, masked)
                    how = cached.kept(experiment, encoder.vocab_size)
                    key = jax.random.fold_in(words_key, step)
                    values = chosen_words(view, hidden, how, key, numbers)
                else:
                    states = column.of(view.outputs)
                    values = {"states": states.astype(experiment.teacher_cache.dtype)}
                units = masked.weights if column.slots else batch["attention_mask"]
                found[column] = (values, units)
            return found

        masked = masked_at(experiment, table, batch, masking_key, step)
        numbers = jnp.arange(len(batch["input_ids"]))
        parts = experiment.training.accumulate
        return micro_batches.joined(of_part, (dict(batch), masked, numbers), parts)

    return jax.jit(run)


def rows_of_words(experiment: Experiment, view: View, masked: Masked) -> jax.Array:
    """The states [B, P, D] whose distributions the terms over words compare: those of the masked
    slots where no term covers more, or of all positions."""
    hidden = view.outputs["last_hidden_state"]
    if losses.only_masked(experiment.losses):
        return at_positions(hidden, masked.positions)
    return hidden


def chosen_words(
    view: View, hidden: jax.Array, how: Kept, key: jax.Array, numbers: jax.Array
) -> dict[str, jax.Array]:
    """What is kept of the distributions at the rows `hidden` [B, P, D], by name, [B, P, ...];
    `numbers` [B] are the sequences' in the batch, by which rows draw their words."""
    rows = view.transform(hidden).reshape(-1, hidden.shape[-1])
    vocab_size, slots = len(view.matrix), hidden.shape[1]
    row_numbers = (numbers[:, None] * slots + jnp.arange(slots)).reshape(-1)

    def choose(row_and_number):
        row, number = row_and_number
        logits = Decoder(row[None], view.matrix, view.bias).logits()[0] / how.temperature
        if how.choice == "top_k":
            ids, p, rest = words.likeliest(logits, how.number)
            return {"ids": ids, "weights": p.astype(jnp.float16), "rest": rest}
        own = jax.random.fold_in(key, number)
        ids, constant = words.sampled(own, logits, how.number, how.choice == "systematic")
        return {"ids": ids, "constant": constant}

    found = jax.lax.map(choose, (rows, row_numbers), batch_size=_CHUNK_ROWS)
    found["ids"] = found["ids"].astype(cached.id_dtype(vocab_size))
    return {name: x.reshape(*hidden.shape[:2], *x.shape[1:]) for name, x in found.items()}


def _record(
    column: Column, values: dict[str, np.ndarray], units: np.ndarray, batch: HostBatch
) -> Record:
    """The units of a step that are there; padding is left out."""
    there = {name: array[units] for name, array in values.items()}
    for array in there.values():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise UserError(
                f"the teacher's {column.place} has numbers that {array.dtype} does not hold; set "
                "config.teacher_cache.dtype='float32'."
            )
    return Record(units.sum(axis=1), _checksum(batch), there)


def _checksum(batch: HostBatch) -> int:
    return zlib.crc32(np.ascontiguousarray(batch["input_ids"]).data)


def _check_room(folder: Path, records: Iterable[Record], steps: int) -> None:
    """Says before anything is written that it will not fit, judging by the first step."""
    a_step = sum(array.nbytes for record in records for array in record.values.values())
    free = shutil.disk_usage(folder).free
    if a_step * steps > free:
        raise UserError(
            f"config.teacher_cache: {steps:,} steps take {a_step * steps / 1e9:.1f} GB and "
            f"{folder} has {free / 1e9:.1f} GB left; give a folder on another disk, fewer steps, "
            "or fewer terms on hidden states."
        )


def _progress(steps: range) -> Iterable[int]:
    """Passes steps on, and shows on a terminal how far the teacher is."""
    console = Console(stderr=True)
    columns = (
        "Running the teacher once:",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        yield from progress.track(steps)
