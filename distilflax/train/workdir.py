"""The folder of one run: whose it is, what ran in it, and that only one run is in it at a time.

workdir/
  config.json         the experiment that this folder belongs to
  environment.jsonl   one line a start: time, versions, devices
  metrics.jsonl       one line a step
  checkpoints/        see checkpoint.py
  tensorboard/        if asked for
  lock                held while a run is in here
"""

import contextlib
import fcntl
import fnmatch
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from distilflax import json_file, settings
from distilflax.errors import UserError
from distilflax.train import machine

# What may differ when a run is taken up again: what is printed, kept or measured beside the run,
# how it is computed up to rounding, and where. Everything else changes the result and is refused;
# `training.steps` and `training.epochs` too, since the learning rate depends on the length.
FREE_TO_CHANGE = (
    "ablation.save_students",
    "ablation.seeds",
    "arms.*",
    "augmentation.cache",
    "compute.attention",
    "compute.remat",
    "data.cache",
    "evaluation.*",
    "mesh.*",
    "reported",
    "teacher_cache.folder",
    "training.arms_at_once",
    "training.checkpoint_every",
    "training.compilation_cache",
    "training.evaluate_batches",
    "training.evaluate_every",
    "training.gradients_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.profile",
    "training.tensorboard",
)


@dataclass(frozen=True)
class Workdir:
    """Where things are in a workdir."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.jsonl"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"


@dataclass(frozen=True)
class Members:
    """Runs that share a folder because one program makes all of them, by name."""

    members: dict[str, settings.Experiment]


@contextlib.contextmanager
def open_workdir(path: str | Path, experiment: Any) -> Iterator[Workdir]:
    """Take the folder for `experiment`, making it if need be, and hold it until the block ends.

    `experiment` is any settings dataclass that decides what the run does.
    Of a run on several hosts only the first process checks and writes; the others wait for it.

    Raises:
      UserError: the folder cannot be used, another run is in it, or it belongs to another config.
    """
    workdir = Workdir(Path(path).expanduser().absolute())
    with _held(workdir, experiment) if jax.process_index() == 0 else contextlib.nullcontext():
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("workdir is taken")
        yield workdir


def check_workdir(path: str | Path, experiment: Any) -> None:
    """What of `open_workdir` can be asked before anything is done, without making the folder.

    Raises:
      UserError: the folder belongs to another config, or could not be made or written to.
    """
    workdir = Workdir(Path(path).expanduser().absolute())
    if not _is_owner(workdir, experiment):
        folder = next(one for one in (workdir.folder, *workdir.folder.parents) if one.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            why = "nothing can be written there" if folder.is_dir() else "that is a file"
            raise UserError(
                f"--workdir {workdir.folder} cannot be used ({folder}: {why}); choose another one."
            )


@contextlib.contextmanager
def _held(workdir: Workdir, experiment: Any) -> Iterator[None]:
    try:
        workdir.folder.mkdir(parents=True, exist_ok=True)
        lock = open(workdir.folder / "lock", "a+")  # noqa: SIM115 - closed below.
    except OSError as error:
        raise _unusable(workdir, error) from error
    with lock:
        try:
            _take(lock, workdir)
            _claim(workdir, experiment)
            with open(workdir.environment, "a") as out:
                out.write(json.dumps(machine.record()) + "\n")
        except OSError as error:
            raise _unusable(workdir, error) from error
        yield


def _unusable(workdir: Workdir, error: OSError) -> UserError:
    return UserError(
        f"--workdir {workdir.folder} cannot be used ({error.strerror}); make room there or choose "
        "another one."
    )


def enable_compilation_cache(workdir: Path) -> Path:
    """Keep compiled programs beside the workdir, so that the next run there starts at once.

    The folder is `.jax-cache/KEY` in the parent of `workdir`. A program for the CPU holds that
    machine's instructions, and JAX's own key does not say which those are: on a folder shared by
    unlike machines it would end in an illegal instruction. KEY therefore stands for the processor
    and the jaxlib. A cache that was chosen by `JAX_COMPILATION_CACHE_DIR` is left alone.
    """
    chosen = jax.config.jax_compilation_cache_dir
    if chosen:
        return Path(chosen)
    folder = Path(workdir).expanduser().absolute().parent / ".jax-cache" / machine.processor_key()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A full disk, say: then programs are compiled again, and what matters there says so itself.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    return folder


def _take(lock: Any, workdir: Workdir) -> None:
    """Lock the file until it is closed; the system lets go of it however the process ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise UserError(
            f"--workdir {workdir.folder} is in use by process {lock.read().strip() or 'unknown'}; "
            "wait until it has ended, or choose another one."
        ) from error
    except OSError:
        pass  # Some network file systems have no locks: there the user must take care.
    os.ftruncate(lock.fileno(), 0)
    # Past Python's buffer: on a full disk, what is left in that would be tried again at closing.
    os.write(lock.fileno(), str(os.getpid()).encode())


def _claim(workdir: Workdir, experiment: Any) -> None:
    """Write config.json, or compare with the one that is there."""
    if not _is_owner(workdir, experiment):
        part = workdir.config.with_suffix(".part")
        part.write_text(settings.to_json(experiment))
        part.replace(workdir.config)


def _is_owner(workdir: Workdir, experiment: Any) -> bool:
    """Whether the folder is this experiment's; False if it is nobody's yet.

    Raises:
      UserError: it is another one's.
    """
    mine = settings.to_json(experiment)
    if not workdir.config.exists():
        if workdir.checkpoints.exists():
            raise UserError(
                f"--workdir {workdir.folder} has checkpoints but no config.json to say whose they "
                "are; choose another one, or delete it."
            )
        return False
    try:
        theirs = flat(json_file.read(workdir.config))
    except UserError as error:
        raise UserError(
            f"{workdir.config} is not JSON any more; choose another --workdir, or delete this one."
        ) from error
    different = differences(theirs, flat(json.loads(mine)))
    if different:
        shown = "; ".join(f"{key} is {old} there and {new} here" for key, old, new in different[:3])
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(
            f"--workdir {workdir.folder} belongs to another config: {shown}{more}; choose another "
            "one, or delete it to start afresh."
        )
    return True


def check_sources(folder: Path, known: dict[str, Any], mine: dict[str, str | None]) -> None:
    """Compares fingerprints of what a config names and does not hold: data, models, teachers.

    Raises:
      UserError: something under the same name is not what the run in `folder` was begun with.
    """
    changed = [name for name, value in mine.items() if known.get(name) != value]
    if changed:
        raise UserError(
            f"{folder} was begun with another {' and '.join(changed)} under the same name; bring "
            "back what it was begun with, give a new folder, or delete this one."
        )


def differences(
    theirs: dict[str, Any], mine: dict[str, Any], free: Sequence[str] = FREE_TO_CHANGE
) -> list[tuple[str, str, str]]:
    """(key, theirs, mine) where two configs, as `flat` has them, differ in what decides the result:
    in what is not `free`."""
    return [
        (key, _shown(theirs, key), _shown(mine, key))
        for key in sorted(theirs.keys() | mine.keys())
        if _shown(theirs, key) != _shown(mine, key) and not _is_free(key, free)
    ]


def _is_free(key: str, free: Sequence[str]) -> bool:
    """Whether the setting may differ, of a run or of one of the `Members` of a group of runs."""
    return any(
        fnmatch.fnmatchcase(key, pattern) or fnmatch.fnmatchcase(key, f"members.*.{pattern}")
        for pattern in free
    )


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def flat(values: Any, place: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}: settings by their dotted names."""
    if not isinstance(values, dict):
        return {place: values}
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{place}.{key}" if place else key)
    return found
