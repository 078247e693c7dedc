"""Fine-tuning one model on one task with one seed: its stages, and what it leaves.

In the run's folder, beside what `train/workdir.py` lists:

    sources.json    fingerprints of the model, its task teacher and the data
    result.json     figures on development and test data, the best step, seconds
    model/          the HF folder of the best state
    intermediate/   metrics.jsonl of the stage before, where the run has one
"""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from distilflax import models, weights
from distilflax.batches.placement import row_shards, to_global
from distilflax.errors import UserError
from distilflax.tasks import batches, intermediate, texts
from distilflax.tasks.data import (
    Materials,
    Part,
    augmented_for,
    compared_rows,
    fingerprint,
    training_rows,
)
from distilflax.tasks.intermediate import Model
from distilflax.tasks.runner import Runner
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.stage import Stage, train
from distilflax.tasks.step import make_step, tokens_kept
from distilflax.tasks.task import Task
from distilflax.tasks.teacher import Teaching
from distilflax.train import sharding, state
from distilflax.train.checkpoint import Best, Checkpoints, Restored
from distilflax.train.optimizer import make_optimizer
from distilflax.train.records import read_json, write_json
from distilflax.train.seal import broken_seal
from distilflax.train.state import DROPOUT, INIT, purpose_key
from distilflax.train.throughput import peak_flops
from distilflax.train.workdir import Workdir, check_sources, check_workdir, open_workdir

RESULT, MODEL, SOURCES = "result.json", "model", "sources.json"


@dataclass(frozen=True)
class Outcome:
    """`result` is what result.json holds; None where a signal stopped the run, whose exit code is
    then not 0."""

    result: dict | None
    exit_code: int = 0


def finetune(
    run: FineTuning, materials: Materials, folder: str | Path, teacher: Teaching
) -> Outcome:
    """Fine-tune in `folder`; run again, it goes on from the newest evaluation, or, if it had ended,
    gives its result once more. `teacher` is what `teacher.teaching_of` makes of the run.

    Raises:
      UserError: a folder of another config, model, teacher or data, or in use, or one that lost
        what a run left there or whose best state is damaged, a mesh or batch that does not divide,
        a full disk, or `train.metrics.Diverged`.
    """
    mesh = sharding.make_mesh(run.mesh, run.training.batch_size)
    peak = peak_flops()
    with open_workdir(folder, run) as workdir, jax.set_mesh(mesh):
        made = fingerprint(augmented_for(materials, run.data.fraction, run.seed))
        sources = {"teacher": teacher.fingerprint, "augmentation": made}
        _claim(workdir.folder, materials.fingerprints | sources)
        before, between = Workdir(workdir.folder / intermediate.FOLDER), {}
        if (workdir.folder / RESULT).is_file():
            found = _result(workdir.folder)
            _clear(workdir, before)  # The run may have been killed before it did so.
            return Outcome(found)
        model = starting_model(run, materials)
        rows = training_rows(materials, run.data.fraction, run.seed)
        if teacher.layers is not None:
            model, record, exit_code = intermediate.learn(
                run, materials, teacher.layers, model, rows, before, mesh, peak
            )
            if exit_code:
                return Outcome(None, exit_code)
            between = {intermediate.FOLDER: {name: record[name] for name in ("steps", "seconds")}}
        compared = compared_rows(materials, rows, taught=teacher.logits is not None)
        one = _Run(run, materials, teacher.logits, model, compared, mesh)
        best = Best("score", lower_is_better=False)
        with Checkpoints(workdir.checkpoints, keep=1, best=best) as checkpoints:
            _, record, exit_code = train(one.stage, workdir, checkpoints, peak)
            if exit_code:
                return Outcome(None, exit_code)
            found = _best(checkpoints, one.stage.like, workdir.folder)
        params = found.arrays.params
        task, result = one.result(params, found.step, record)
        one.save(task, params, workdir.folder / MODEL)
        result |= between
        write_json(workdir.folder / RESULT, result)
        _clear(workdir, before)
        return Outcome(result)


def _best(checkpoints: Checkpoints, like: state.State, folder: Path) -> Restored:
    """The best state of the run in `folder`, whose training is over."""
    step = checkpoints.best_step
    try:
        return checkpoints.restore(like, step=step)
    except UserError as error:
        best = checkpoints.folder / str(step)
        trouble = broken_seal(best) if best.is_dir() else None
        if trouble is None:
            raise
        # There is no step to go on from: the steps since the best one made nothing better.
        raise UserError(
            f"{best}, the run's best state, is damaged: {trouble}; delete {folder}, and the same "
            "command trains that run again."
        ) from error


def _clear(*stages: Workdir) -> None:
    """Removes the states of the optimizer, several times the size of the model that is saved."""
    for stage in stages:
        shutil.rmtree(stage.checkpoints, ignore_errors=True)


def ended(run: FineTuning, folder: str | Path, model: dict[str, str]) -> dict | None:
    """The result of a run that has ended in `folder`, without reading any data; None where none
    has. Others may read it at the same time. `model` is what `data.fingerprints_of_model` says of
    what is fine-tuned. Whether the data are what they were is not looked at: `sources_of` says what
    they were.

    Raises:
      UserError: the folder belongs to another config or model, or has lost what the run left.
    """
    if not (Path(folder) / RESULT).is_file():
        return None
    check_workdir(folder, run)
    check_sources(Path(folder), sources_of(Path(folder)), model)
    return _result(Path(folder))


def _result(folder: Path) -> dict:
    """What the run that ended in `folder` says of itself; its model has to be there still."""
    again = f"delete {folder / RESULT}, and the same command trains that run again"
    found = read_json(folder / RESULT, ("seed", "metric", "dev"), again)
    if not (folder / MODEL).is_dir():
        raise UserError(
            f"{folder / RESULT} says that the run has ended, but its {MODEL}/ is gone; {again}."
        )
    return found


def sources_of(folder: Path) -> dict[str, str]:
    """Fingerprints of what the run in `folder` is made of: those of `Materials`, and of its teacher
    and augmentation.

    Raises:
      UserError: they are not there, or damaged.
    """
    again = f"delete {folder}, and the same command trains that run again"
    return read_json(folder / SOURCES, ("model",), again)


def _claim(folder: Path, sources: dict[str, str]) -> None:
    """Notes what the run in `folder` is made of, or checks that it is the same."""
    if (folder / SOURCES).is_file():
        known = sources_of(folder)
        # What is gone counts too: a model that lost its pooling makes vectors in another way.
        check_sources(folder, known, dict.fromkeys(known) | sources)
    elif jax.process_index() == 0:
        write_json(folder / SOURCES, sources)


class _Run:
    """The stage on the labels: what does not change from step to step, and what it leaves."""

    def __init__(
        self,
        run: FineTuning,
        materials: Materials,
        teacher: list[np.ndarray | None] | None,
        model: Model,
        rows: Int[np.ndarray, "rows"],
        mesh: Mesh,
    ):
        self.run, self.materials, self.model, self.mesh = run, materials, model, mesh
        self.rows, self.task = rows, materials.task
        self.measured: dict[int, tuple[Task, dict]] = {}
        encoder, features = model.encoder, materials.train.features
        buckets = batches.buckets(run.data.max_length, run.data.buckets)
        # Each length of the first rows of groups is a program for every length of the others: on
        # `configs/cranfield.py` 5 programs instead of 7, for 1% more tokens.
        first = batches.buckets(run.data.max_length, run.data.buckets or batches.COARSE)
        with_types = texts.with_types(materials.words, encoder)
        first_only = model.head.first_only(encoder)
        # Rows that a step must see together are drawn together; most tasks have one a group.
        groups = rows.reshape(-1, self.task.together)
        contrasts = self.task.contrasts(taught=teacher is not None)
        batch_at, epoch_steps = batches.training(
            features.lengths[groups].max(axis=1),
            batch_size=run.training.batch_size,
            seed=run.seed,
            buckets=buckets,
            contrasts=contrasts,
            texts=features.targets["text"][groups] if self.task.texts_once else None,
        )
        # Two tokens in five are padding where texts of all lengths share a batch, as they do on
        # `configs/cranfield.py`. Tokens in one array are not divided by rows: one device alone.
        ragged = contrasts and jax.default_backend() == "cpu" and mesh.size == 1
        total_steps, every = run.training.steps(epoch_steps)
        optimizer, schedule = make_optimizer(run.optimizer, total_steps)
        self.runner = Runner(
            partial(models.task_logits, encoder, run.compute, model.head),
            with_types=with_types,
            batch_sizes=(run.training.batch_size,),
            buckets=buckets,
            place=lambda batch: to_global(batch, mesh),
            shards=row_shards(mesh),
        )

        def collate(part):
            host = batches.collate_groups(
                features,
                groups[part.indices],
                run.training.batch_size,
                part.length,
                buckets=first,
                with_types=with_types,
                teacher=teacher,
                many=tokens_kept(encoder) if ragged else None,
            )
            return to_global(host, mesh)

        fresh = state.create(mesh, model.params, optimizer)
        where = state.shardings_in(fresh)
        self.stage = Stage(
            run=run,
            fresh=fresh,
            step=make_step(run, self.task, encoder, model.head, optimizer, where),
            constants=(jax.device_put(purpose_key(run.seed, DROPOUT), sharding.replicated(mesh)),),
            batch_at=batch_at,
            collate=collate,
            flops=lambda tokens, long: (
                3 * models.encoder_flops(encoder, tokens, long, first_only=first_only)
            ),
            total_steps=total_steps,
            every=every,
            schedule=schedule,
            together=self.task.together,
            measure=self._measure,
            metric=self.task.metric,
        )

    def _measure(self, current: state.State) -> dict[str, float]:
        """Figures on development data, kept with the thresholds: one of these states is the best,
        and need not be measured again."""
        found = self._of_dev(current.params)
        self.measured[int(current.step)] = found
        return found[1]

    def _of_dev(self, params: dict) -> tuple[Task, dict]:
        """The task with its thresholds chosen on development data, and its figures there."""
        part = self.materials.dev
        return figures(self.task, self.runner(params, part.features), part, tuned=True)

    def result(self, params: dict, step: int, record: dict) -> tuple[Task, dict]:
        """The task with the best state's thresholds, which are those of the development data, and
        what result.json says of that state."""
        known = self.measured.get(step)  # None where it was measured before a restart.
        task, dev = known or self._of_dev(params)
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
            part = self.materials.test
            logits = self.runner(params, part.features)
            _, result["test"] = figures(task, logits, part, tuned=False)
        return task, result

    def save(self, task: Task, params: dict, folder: Path) -> None:
        """The HF folder, with the thresholds of `task`."""
        sentence = task.sentence(self.run.data.max_length)
        weights.save(
            folder,
            self.model.encoder,
            sharding.on_host(self.mesh, params),
            tokenizer_folder=self.materials.checkpoint.folder,
            sentence=sentence,
            head=None if sentence else self.model.head,
            own=task.own() | {"max_length": self.run.data.max_length},
        )


def on_labels(run: FineTuning, materials: Materials, mesh: Mesh) -> Stage:
    """The stage on the labels without a teacher, for who wants its steps alone."""
    rows = training_rows(materials, run.data.fraction, run.seed)
    compared = compared_rows(materials, rows, taught=False)
    return _Run(run, materials, None, starting_model(run, materials), compared, mesh).stage


def starting_model(run: FineTuning, materials: Materials) -> Model:
    """The model before the first step: with a new head, or that of the folder."""
    checkpoint, key = materials.checkpoint, purpose_key(run.seed, INIT)
    head = materials.task.head(checkpoint.encoder)
    rate = weights.task_head.dropout(checkpoint.folder, checkpoint.encoder, head.kind)
    head = replace(head, dropout=rate)
    encoder, params = weights.task_head.prepare(
        checkpoint.encoder, checkpoint.params, head.kind, jax.random.fold_in(key, 0)
    )
    encoder = replace(encoder, int8_range=run.model.int8_range)
    if run.model.keep_head:
        if checkpoint.head is None:
            raise UserError(
                f"config.model.keep_head is set, and {checkpoint.folder} has no head; leave it out."
            )
        # Of a reranker, whose head names none, the logit counts, whatever it goes through.
        ours, theirs = head.activation, checkpoint.head.activation
        if ours and (ours == "sigmoid") != (theirs == "sigmoid"):
            raise UserError(
                f"config.model.keep_head is set, and the number of {checkpoint.folder} goes "
                f"through {theirs or 'no activation'}; set config.options.activation={theirs!r}."
            )
        kept = weights.task_head.reordered(checkpoint.head, checkpoint.params["task_head"], head)
        if kept is None:
            raise UserError(
                f"config.model.keep_head is set, and the head of {checkpoint.folder} is not one of "
                f"the labels {', '.join(head.labels):.200}; leave it out to draw a new head."
            )
        return Model(encoder, head, params | {"task_head": kept})
    if not models.head_shapes(head, encoder):
        return Model(encoder, head, params)
    rows = training_rows(materials, run.data.fraction, run.seed)
    prior = materials.task.prior(materials.train.features, rows)
    drawn = models.init_head(head, encoder, jax.random.fold_in(key, 1), prior)
    return Model(encoder, head, params | {"task_head": jax.device_get(drawn)})


def figures(task: Task, logits: list, part: Part, *, tuned: bool) -> tuple[Task, dict[str, float]]:
    """The task (with its thresholds chosen on `part`, if they are to be) and its figures there."""
    task = task.tune(logits, part.features, part.examples) if tuned else task
    predictions = task.decode(logits, part.features, part.examples)
    return task, task.metrics(predictions, part.examples)
