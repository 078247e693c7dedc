"""The loop of one stage of fine-tuning: steps, evaluations, checkpoints, and going on where it was.

A stage says what a step is and what is measured; both of a run, the one on the layers and the one
on the labels, go through here.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import optax

from distilflax.batches.plan import Batch
from distilflax.tasks.settings import FineTuning
from distilflax.train.checkpoint import Checkpoints
from distilflax.train.reporter import Reporter
from distilflax.train.signals import stop_on_signal
from distilflax.train.state import State
from distilflax.train.throughput import Peak
from distilflax.train.workdir import Workdir

# Fewer steps teach less than there is to learn, as `docs/tasks.md` shows of parts of SST-2.
_FEW = 100


@dataclass(frozen=True, eq=False)
class Stage:
    """What a stage is made of.

    Attributes:
      fresh: the state before the first step; donated to it.
      step: jitted, (state, batch, *constants) to (state, metrics); the state is donated.
      batch_at: from a step, counted from 0, to its rows.
      collate: from those rows to the batch, on the mesh.
      flops: operations of a step on (tokens, length); a batch may have two such parts.
      together: rows for each index of a batch.
      every: an evaluation, and a checkpoint, after so many steps; see `is_due`.
      measure: a state to figures on development data; without it nothing is measured.
      metric: the figure that decides; greater is better.
    """

    run: FineTuning
    fresh: State
    step: Callable
    constants: tuple
    batch_at: Callable[[int], Batch]
    collate: Callable[[Batch], dict]
    flops: Callable[[int, int], int]
    total_steps: int
    every: float
    schedule: optax.Schedule
    together: int = 1
    measure: Callable[[State], dict[str, float]] | None = None
    metric: str = ""

    @property
    def like(self) -> State:
        """The shapes and places of the state's arrays."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            self.fresh,
        )


def train(
    stage: Stage, workdir: Workdir, checkpoints: Checkpoints, peak: Peak
) -> tuple[State, dict, int]:
    """From the newest checkpoint, if there is one, to the end; (state, record, exit code).

    The record holds the history of evaluations, seconds of training and rows seen. The exit code is
    not 0 where a signal stopped it; what was done until then is saved.
    """
    current, record = stage.fresh, {"history": [], "seconds": 0.0, "rows": 0}
    if (restored := checkpoints.restore(stage.like)) is not None:
        current, record = restored.arrays, restored.record
    start, training = int(current.step), stage.run.training
    compiled: dict[tuple, Any] = {}
    with (
        Reporter(
            workdir,
            log_every=training.log_every,
            tensorboard=training.tensorboard,
            total_steps=stage.total_steps,
            start_step=start,
            schedule=stage.schedule,
            peak=peak,
        ) as report,
        stop_on_signal(report.say) as stop,
    ):
        if stage.measure is not None and stage.total_steps < _FEW:
            report.say(
                f"{stage.total_steps} steps in all are few, however few the examples are; "
                "config.training.min_steps=300 makes more of them"
            )
        for done in range(start + 1, stage.total_steps + 1):
            if is_over([entry["score"] for entry in record["history"]], training.patience):
                break
            with _timed(record):
                part = stage.batch_at(done - 1)
                batch = stage.collate(part)
            program = program_of(batch)
            if program not in compiled:
                with report.paused():
                    lowered = stage.step.lower(current, batch, *stage.constants)
                    compiled[program] = lowered.compile()
            with _timed(record):
                current, metrics = compiled[program](current, batch, *stage.constants)
                report.step(done, metrics, sum(stage.flops(*part) for part in parts_of(batch)))
            record["rows"] += stage.together * len(part.indices)
            stopping = stop.requested(done)
            due = done == stage.total_steps or is_due(done, stage.every)
            if not (due or stopping):
                continue
            with _timed(record):
                report.flush()
            score = None
            if due and stage.measure is not None:
                with report.paused():
                    found = stage.measure(current)
                    score = {"score": found[stage.metric]}
                    record["history"].append({"step": done} | score | found)
                    report.evaluation(done, found)
            # A copy: it is written while the next steps change it.
            so_far = record | {"history": list(record["history"])}
            with report.paused():
                checkpoints.save(done, current, record=so_far, iterator={}, metrics=score)
            if stopping:
                return current, record, stop.exit_code
        report.flush()
    return current, record, 0


def is_due(step: int, every: float) -> bool:
    """Whether `step` is nearest to a multiple of `every`: an epoch is no whole number of steps."""
    return math.floor((step + 0.5) / every) > math.floor((step - 0.5) / every)


def is_over(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations brought nothing better; never if it is 0."""
    enough = bool(patience) and len(scores) > patience
    return enough and max(scores[-patience:]) <= max(scores[:-patience])


def program_of(batch: dict) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What tells the program of a batch from those of others: the shapes of its arrays."""
    return tuple(sorted((name, values.shape) for name, values in batch.items()))


def parts_of(batch: dict) -> tuple[tuple[int, int], ...]:
    """(tokens that are computed, length of the rows) of every part of a batch."""
    parts = []
    for name, ids in batch.items():
        if name.endswith("input_ids"):
            room = batch.get(name.replace("input_ids", "real_places"), ids)
            parts.append((room.size, ids.shape[1]))
    return tuple(parts)


@contextmanager
def _timed(record: dict) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        record["seconds"] += time.perf_counter() - start
