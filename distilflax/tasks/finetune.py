"""Fine-tuning one model on one task with one seed: the loop, early stopping, and what it leaves.

In the run's folder, beside what `train/workdir.py` lists:

    result.json   figures on development and test data, the best step, seconds
    model/        the HF folder of the best state
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from distilflax import models, weights
from distilflax.batches.placement import to_global
from distilflax.batches.plan import Batch
from distilflax.settings import Training as Reported
from distilflax.tasks import batches
from distilflax.tasks.data import Materials, Part, training_rows
from distilflax.tasks.runner import Runner
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.step import make_step
from distilflax.tasks.task import Task
from distilflax.train import sharding, state
from distilflax.train.checkpoint import Best, Checkpoints
from distilflax.train.optimizer import make_optimizer
from distilflax.train.reporter import Reporter
from distilflax.train.signals import stop_on_signal
from distilflax.train.state import DROPOUT, INIT, State, purpose_key
from distilflax.train.throughput import peak_flops
from distilflax.train.workdir import Workdir, open_workdir

RESULT, MODEL = "result.json", "model"


@dataclass(frozen=True)
class Outcome:
    """`result` is what result.json holds; None where a signal stopped the run, whose exit code is
    then not 0."""

    result: dict | None
    exit_code: int = 0


def finetune(
    run: FineTuning,
    materials: Materials,
    folder: str | Path,
    teacher: list[np.ndarray] | None = None,
) -> Outcome:
    """Fine-tune in `folder`; run again, it goes on from the newest evaluation, or, if it had ended,
    gives its result once more.

    Raises:
      UserError: a folder of another config or in use, a mesh or batch that does not divide, a full
        disk, or `train.metrics.Diverged`.
    """
    mesh = sharding.make_mesh(run.mesh, run.training.batch_size)
    peak = peak_flops()
    with open_workdir(folder, run) as workdir, jax.set_mesh(mesh):
        if (workdir.folder / RESULT).is_file():
            return Outcome(json.loads((workdir.folder / RESULT).read_text()))
        best = Best("score", lower_is_better=False)
        with Checkpoints(workdir.checkpoints, keep=1, best=best) as checkpoints:
            one = _Run(run, materials, teacher, workdir, mesh)
            record, exit_code = one.train(checkpoints, peak)
            if exit_code:
                return Outcome(None, exit_code)
            found = checkpoints.restore(one.like, step=checkpoints.best_step)
        result = one.finish(found.arrays.params, found.step, record)
        # The model is saved; the states of the optimizer are several times its size.
        shutil.rmtree(workdir.checkpoints, ignore_errors=True)
        return Outcome(result)


class _Run:
    """One start of a run: what does not change from step to step, and the loop over steps."""

    def __init__(
        self,
        run: FineTuning,
        materials: Materials,
        teacher: list[np.ndarray] | None,
        workdir: Workdir,
        mesh: Mesh,
    ):
        self.run, self.materials, self.teacher = run, materials, teacher
        self.workdir, self.mesh = workdir, mesh
        self.encoder, self.head, params = starting_model(run, materials)
        buckets = batches.buckets(run.data.max_length, run.data.buckets)

        part = materials.train
        self.rows = training_rows(
            materials.task, part, materials.labelled, run.data.fraction, run.seed
        )
        # Rows that a step must see together are drawn together; most tasks have one a group.
        self.groups = self.rows.reshape(-1, materials.task.together)
        self.buckets = buckets
        self.batch_at, self.epoch_steps = batches.training(
            part.features.lengths[self.groups].max(axis=1),
            batch_size=run.training.batch_size,
            seed=run.seed,
            buckets=buckets,
        )
        self.total_steps = max(1, round(run.training.epochs * self.epoch_steps))
        self.every = max(1, round(run.training.evaluate_epochs * self.epoch_steps))
        self.optimizer, self.schedule = make_optimizer(run.optimizer, self.total_steps)
        self.step = make_step(run, materials.task, self.encoder, self.head, self.optimizer)
        self.runner = Runner(
            partial(models.task_logits, self.encoder, run.compute, self.head),
            with_types=self.encoder.type_vocab_size > 1,
            batch_sizes=(run.training.batch_size,),
            buckets=buckets,
            place=lambda batch: to_global(batch, mesh),
        )
        self.fresh = state.create(mesh, params, self.optimizer)
        self.like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            self.fresh,
        )
        self.key = jax.device_put(purpose_key(run.seed, DROPOUT), sharding.replicated(mesh))
        self.compiled: dict = {}

    def train(self, checkpoints: Checkpoints, peak) -> tuple[dict, int]:
        """From the newest checkpoint, if there is one, to the end; (record, exit code).

        The record holds the history of evaluations, seconds of training and rows seen.
        """
        current, record = self.fresh, {"history": [], "seconds": 0.0, "rows": 0}
        if (restored := checkpoints.restore(self.like)) is not None:
            current, record = restored.arrays, restored.record
        start = int(current.step)
        training = self.run.training
        shown = Reported(log_every=training.log_every, tensorboard=training.tensorboard)
        with (
            Reporter(
                self.workdir,
                shown,
                total_steps=self.total_steps,
                start_step=start,
                schedule=self.schedule,
                peak=peak,
            ) as report,
            stop_on_signal(report.say) as stop,
        ):
            for done in range(start + 1, self.total_steps + 1):
                if self._is_over(record["history"]):
                    break
                part = self.batch_at(done - 1)
                batch = self._batch(part)
                program = self._program(current, batch, report)
                with _timed(record):
                    current, metrics = program(current, batch, self.key)
                    report.step(done, metrics, 3 * self._flops(batch))
                record["rows"] += self.groups[part.indices].size
                stopping = stop.requested(done)
                measuring = done % self.every == 0 or done == self.total_steps
                if measuring or stopping:
                    with _timed(record):
                        report.flush()
                if measuring:
                    with report.paused():
                        _, found = self._figures(current.params, self.materials.dev, tuned=True)
                        score = found[self.materials.task.metric]
                        record["history"].append({"step": done, "score": score, **found})
                        report.evaluation(done, found)
                if measuring or stopping:
                    score = {"score": record["history"][-1]["score"]} if measuring else None
                    # A copy: it is written while the next steps change it.
                    so_far = record | {"history": list(record["history"])}
                    with report.paused():
                        checkpoints.save(done, current, record=so_far, iterator={}, metrics=score)
                if stopping:
                    return record, stop.exit_code
            report.flush()
        return record, 0

    def _is_over(self, history: list[dict]) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        patience = self.run.training.patience
        scores = [entry["score"] for entry in history]
        return (
            bool(patience)
            and len(scores) > patience
            and (max(scores[-patience:]) <= max(scores[:-patience]))
        )

    def _batch(self, part: Batch) -> dict:
        groups, size = self.groups[part.indices], self.run.training.batch_size
        options = {"with_types": self.encoder.type_vocab_size > 1, "teacher": self.teacher}
        features = self.materials.train.features
        if groups.shape[1] == 1:
            host = batches.collate(features, groups[:, 0], size, part.length, **options)
        else:
            options["buckets"] = self.buckets
            host = batches.collate_together(features, groups, size, part.length, **options)
        return to_global(host, self.mesh)

    def _program(self, current: State, batch: dict, report: Reporter):
        shapes = _shapes(batch)
        if shapes not in self.compiled:
            with report.paused():
                self.compiled[shapes] = self.step.lower(current, batch, self.key).compile()
        return self.compiled[shapes]

    def _flops(self, batch: dict) -> int:
        return sum(
            models.encoder_flops(self.encoder, rows * length, length)
            for rows, length in _shapes(batch)
        )

    def _figures(self, params: dict, part: Part, *, tuned: bool) -> tuple[Task, dict]:
        """The task, with its thresholds chosen on `part` if they are to be, and its figures."""
        return figures(self.materials.task, self.runner(params, part.features), part, tuned=tuned)

    def finish(self, params: dict, step: int, record: dict) -> dict:
        """Measure and save the best state; returns the result."""
        task, dev = self._figures(params, self.materials.dev, tuned=True)
        result = {
            "seed": self.run.seed,
            "metric": task.metric,
            "best_step": step,
            "steps": record["history"][-1]["step"],
            "seconds": record["seconds"],
            "rows_per_second": record["rows"] / max(record["seconds"], 1e-9),
            "training_rows": len(self.rows),
            "dev": dev,
            "history": record["history"],
        }
        if self.materials.test is not None:
            logits = self.runner(params, self.materials.test.features)
            _, result["test"] = figures(task, logits, self.materials.test, tuned=False)
        sentence = task.sentence(self.run.data.max_length)
        weights.save(
            self.workdir.folder / MODEL,
            self.encoder,
            sharding.on_host(self.mesh, params),
            tokenizer_folder=self.materials.checkpoint.folder,
            sentence=sentence,
            head=None if sentence else self.head,
            own=task.own() | {"max_length": self.run.data.max_length},
        )
        write_json(self.workdir.folder / RESULT, result)
        return result


def starting_model(run: FineTuning, materials: Materials):
    """(encoder, head, parameters) before the first step: a new head, or that of the folder."""
    checkpoint, key = materials.checkpoint, purpose_key(run.seed, INIT)
    head = materials.task.head(checkpoint.encoder)
    encoder, params = weights.task_head.prepare(
        checkpoint.encoder, checkpoint.params, head.kind, jax.random.fold_in(key, 0)
    )
    if not models.head_shapes(head, encoder):
        return encoder, head, params
    kept = checkpoint.head
    if kept is not None and (kept.kind, kept.labels) == (head.kind, head.labels):
        return encoder, head, params | {"task_head": checkpoint.params["task_head"]}
    drawn = models.init_head(head, encoder, jax.random.fold_in(key, 1))
    return encoder, head, params | {"task_head": jax.device_get(drawn)}


def figures(task: Task, logits: list, part: Part, *, tuned: bool) -> tuple[Task, dict[str, float]]:
    """The task (with its thresholds chosen on `part`, if they are to be) and its figures there."""
    task = task.tune(logits, part.features, part.examples) if tuned else task
    predictions = task.decode(logits, part.features, part.examples)
    return task, task.metrics(predictions, part.examples)


def _shapes(batch: dict) -> tuple[tuple[int, int], ...]:
    """(rows, length) of every part of a batch."""
    return tuple(batch[name].shape for name in sorted(batch) if name.endswith("input_ids"))


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all: a result that is there says that the run has ended."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


@contextmanager
def _timed(record: dict) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        record["seconds"] += time.perf_counter() - start
