"""Checkpoints: everything a run needs to go on, saved together while the next steps run.

One checkpoint is one folder, named by the number of steps done, that appears whole or not at all:
the arrays (any tree: parameters, optimizer state), a JSON record, and the state of each process's
data iterator. The only module that imports Orbax.
"""

import contextlib
import errno
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from distilflax.errors import UserError
from distilflax.train.seal import broken_seal, write_seal
from distilflax.train.sharding import path_name

# Orbax tells what it is saving by a counter of the process. Two runs that save at the same time
# would take each other's folders for made.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Best:
    """The metric whose best checkpoint, of equal ones the first, is kept beside the newest ones."""

    metric: str
    lower_is_better: bool = True


@dataclass(frozen=True)
class Restored:
    """What was saved: `arrays` in the shardings asked for, `record` and `iterator` as given."""

    step: int
    arrays: Any
    record: dict
    iterator: dict


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Saving copies the arrays to the host and returns; the files are written behind the next steps,
    and appear under the checkpoint's name when they are all there. Trouble while writing is
    raised by the next `save`, `wait` or `close`. Use as a context manager, or call `close`.
    A run outside the main thread has others beside it: it saves when none of them does, and waits.

    All processes of a run call every method at the same step. Two runs must not share a folder
    (`workdir.open_workdir` holds a lock): opening it removes what another was about to commit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        best: Best | None = None,
        say: Callable[[str], None] | None = None,
    ):
        """Open `folder`, which is created when missing.

        Args:
          keep: how many of the newest checkpoints to keep.
          best: keep also the checkpoint with the best value of a metric.
          say: called with one sentence about damaged checkpoints; default: to standard error.

        Raises:
          UserError: the folder cannot be made, or Orbax cannot read what it keeps beside a seal.
        """
        _quiet_orbax()
        self.folder = Path(folder).absolute()
        self._best = best
        self._say = say or (lambda text: print(text, file=sys.stderr))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the checkpoint folder {self.folder} cannot be made ({error.strerror}); "
                "choose another --workdir."
            ) from error
        self._set_aside(quick=True)
        try:
            with _ONE_AT_A_TIME:
                options = self._options(keep, best)
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        except (ValueError, RecursionError) as error:
            # That of a time and of handlers, written when the seal was: no run is restored from it.
            raise UserError(
                f"a _CHECKPOINT_METADATA in {self.folder} is damaged ({error!s:.100}); delete "
                "those files, and the same command goes on without them."
            ) from error

    def _options(self, keep: int, best: Best | None) -> ocp.CheckpointManagerOptions:
        preserve: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        tracked: dict[str, Any] = {}
        if best is not None:
            lower = best.lower_is_better
            tracked = {"best_fn": _metric(best), "best_mode": "min" if lower else "max"}
            preserve.append(
                policies.BestN(
                    get_metric_fn=_metric(best),
                    reverse=lower,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        return ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            **tracked,
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps there are checkpoints of, oldest first."""
        return tuple(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the best metric; None when nothing was measured."""
        return self._manager.best_step() if self._best else None

    def save(
        self,
        step: int,
        arrays: Any,
        *,
        record: dict,
        iterator: dict,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Begin to save the state after `step` steps; nothing happens if that is saved already.

        The arrays may be donated as soon as this returns.

        Args:
          arrays: tree of jax arrays.
          record: JSON values, the same on every process.
          iterator: JSON values, this process's own.
          metrics: may hold the metric of `best`.

        Raises:
          UserError: the disk is full or not writable, now or during the save before this one.
            Checkpoints that were complete stay as they are.
        """
        if step in self.steps:
            return
        record = {"record": record, "iterators": _gather(iterator)}
        json.dumps(record)  # A value that is not JSON is the caller's mistake: fail here.
        self._check_space(step, arrays)
        named = self._best.metric if self._best else None
        measured = None
        if metrics and named in metrics:
            measured = {named: float(metrics[named]), "step": step}
        with self._disk_trouble(), _ONE_AT_A_TIME:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
                ),
                metrics=measured,
                force=True,
            )
            if threading.current_thread() is not threading.main_thread():
                self._manager.wait_until_finished()

    def restore(self, like: Any, step: int | None = None) -> Restored | None:
        """The newest good checkpoint, or that of `step`; None when there is none.

        A damaged checkpoint is renamed to `damaged-STEP`, reported, and the one before it taken.

        Args:
          like: tree of `jax.ShapeDtypeStruct` with shardings (or of arrays): what must come out.
            The shardings need not be those of the run that saved.

        Raises:
          UserError: a save before this one failed, the checkpoint holds other arrays than `like`,
            or `step` is missing or damaged.
        """
        self.wait()
        if step is None:
            self._set_aside(quick=False)
            self._manager.reload()
            step = self._manager.latest_step()
            if step is None:
                return None
        elif step not in self.steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {self.folder}; "
                f"there are {', '.join(map(str, self.steps)) or 'none'}."
            )
        elif trouble := broken_seal(self.folder / str(step)):
            raise UserError(
                f"checkpoint {self.folder / str(step)} is damaged: {trouble}; choose another step."
            )
        self._check_structure(step, like)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
            ),
        )
        return Restored(
            step=step,
            arrays=restored.arrays,
            record=restored.record["record"],
            iterator=_own(restored.record["iterators"], self.folder / str(step)),
        )

    def wait(self) -> None:
        """Block until what was saved is on disk.

        Raises:
          UserError: it could not be written.
        """
        with self._disk_trouble():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and let go of the folder; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except UserError as trouble:
            if error is None:
                raise
            self._say(str(trouble))  # The first mistake is the one to raise.

    def _seal(self) -> None:
        """Called by Orbax in its writing thread, when all files are there but not yet committed."""
        for folder in self._unfinished():
            write_seal(folder)

    def _unfinished(self) -> Iterator[Path]:
        return self.folder.glob("*.orbax-checkpoint-tmp*")

    def _set_aside(self, *, quick: bool) -> None:
        """Rename damaged checkpoints: all of them if `quick`, else down to the first good one."""
        if jax.process_index() == 0:
            for folder in sorted(_step_folders(self.folder), key=lambda f: -int(f.name)):
                trouble = broken_seal(folder, quick=quick)
                if trouble is None and not quick:
                    break
                if trouble is not None:
                    aside = folder.with_name(f"damaged-{folder.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)
                    self._say(
                        f"checkpoint {folder} is damaged: {trouble}; going on without it "
                        f"(it is kept as {aside.name} and may be deleted)."
                    )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")

    def _check_structure(self, step: int, like: Any) -> None:
        """Compare names, shapes and types with what was saved, before anything is allocated."""
        saved = _described(ocp.StandardCheckpointHandler().metadata(self.folder / f"{step}/arrays"))
        wanted = _described(like)
        where = f"checkpoint {self.folder / str(step)}"
        remedy = "it is of another model or version; use another --workdir."
        for name in wanted:
            if name not in saved:
                raise UserError(f"{where} has no {name!r}: {remedy}")
            if saved[name] != wanted[name]:
                raise UserError(
                    f"{where}: {name!r} is {saved[name]} there and {wanted[name]} here: {remedy}"
                )
        for name in saved:
            if name not in wanted:
                raise UserError(f"{where} has {name!r}, which this run has not: {remedy}")

    def _check_space(self, step: int, arrays: Any) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"checkpoint {step} needs {needed / 1e6:,.0f} MB but the disk of {self.folder} has "
                f"{free / 1e6:,.0f} MB left; make room and run the same command again "
                f"({self._last_good()})."
            )

    def _last_good(self) -> str:
        steps = [int(folder.name) for folder in _step_folders(self.folder)]
        return f"the last good checkpoint is {max(steps)}" if steps else "no checkpoint yet"

    @contextlib.contextmanager
    def _disk_trouble(self) -> Iterator[None]:
        """Turn an error of the file system into one sentence, and remove what was half written."""
        try:
            yield
        except Exception as error:
            reason = _file_system_reason(error)
            if reason is None:
                raise
            for folder in self._unfinished():
                shutil.rmtree(folder, ignore_errors=True)
            raise UserError(
                f"a checkpoint could not be written to {self.folder} ({reason}); make room there "
                f"or choose another --workdir, and run the same command again "
                f"({self._last_good()})."
            ) from error


_REASONS = {
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file too large",
    errno.EROFS: "read-only file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EIO: "input/output error",
}


def _file_system_reason(error: BaseException | None) -> str | None:
    """The file system's complaint behind `error`: tensorstore passes it on only as text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            return _REASONS[error.errno]
        for reason in _REASONS.values():
            if reason in str(error).lower():
                return reason
        error = error.__cause__ or error.__context__
    return None


def _step_folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]


def _metric(best: Best) -> Callable[[dict], tuple[float, int]]:
    """What Orbax sorts by: of equal values the later step is the worse one."""
    later = 1 if best.lower_is_better else -1
    return lambda metrics: (metrics[best.metric], later * metrics["step"])


def _described(tree: Any) -> dict[str, str]:
    """Name of each leaf to its type and shape: {"params/kernel": "float32[3,4]"}."""
    return {
        path_name(path): f"{np.dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(tree, "tree", tree))
    }


def _gather(value: dict) -> list[dict]:
    """The JSON value of every process, on every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.pad(text, (0, int(lengths.max()) - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def _own(iterators: list[dict], where: Path) -> dict:
    """This process's state out of all. On another number of processes all must be the same."""
    if len(iterators) == jax.process_count():
        return iterators[jax.process_index()]
    if all(iterator == iterators[0] for iterator in iterators):
        return iterators[0]
    raise UserError(
        f"checkpoint {where} was saved by {len(iterators)} processes whose place in the data "
        f"cannot be divided among {jax.process_count()}; run it on {len(iterators)} processes."
    )


def _quiet_orbax() -> None:
    """Keep Orbax's log out of the terminal, unless debug logging (--verbosity=1) is on."""
    absl.logging.get_absl_logger().addFilter(_not_orbax)


def _not_orbax(line: logging.LogRecord) -> bool:
    return "/orbax/" not in line.pathname or absl.logging.level_debug()
