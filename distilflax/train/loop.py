"""The loop: the one place where time passes. Everything it calls is pure, or writes a file."""

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from distilflax import losses
from distilflax.batches.pipeline import (
    steps_per_epoch,
    train_batches,
    validation_batches,
)
from distilflax.batches.placement import process_slice, to_global
from distilflax.settings import Encoder, Experiment
from distilflax.train import sharding, state
from distilflax.train.checkpoint import Best, Checkpoints
from distilflax.train.optimizer import make_optimizer
from distilflax.train.reporter import Reporter
from distilflax.train.setup import Materials, new_student
from distilflax.train.signals import stop_on_signal
from distilflax.train.step import Pair, flops_per_step, make_held_out_step, make_step
from distilflax.train.throughput import peak_flops
from distilflax.train.workdir import Workdir, open_workdir

# Steps traced when `training.profile` is on: after the first ones, which compile.
_PROFILED = range(5, 10)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run leaves in memory.

    Attributes:
      encoder, params: the student; float32 arrays on the host.
      steps: updates made; fewer than planned if the run was asked to stop.
      tokens: real tokens seen, over all starts of this run.
      seconds: spent on training, over all starts; compiling, evaluating and saving left out.
      exit_code: 0, or 128 + the signal that stopped it.
    """

    encoder: Encoder
    params: dict
    steps: int
    tokens: int
    seconds: float
    exit_code: int = 0


def train(experiment: Experiment, materials: Materials, folder: str | Path) -> Outcome:
    """Distil one student in `folder`; run again, it goes on from the newest checkpoint.

    On the same devices a run that was stopped and taken up again ends with the same bits as one
    that was not.

    Raises:
      UserError: a folder of another config or in use, a mesh or batch that does not divide, a
        full disk, or `Diverged` naming the step and the term.
    """
    micro_batch = experiment.training.batch_size // experiment.training.accumulate
    mesh = sharding.make_mesh(experiment.mesh, micro_batch)
    with open_workdir(folder, experiment) as workdir, jax.set_mesh(mesh):
        return _Run(experiment, materials, workdir, mesh).to_the_end()


class _Run:
    """One start of a run: what does not change from step to step."""

    def __init__(self, experiment: Experiment, materials: Materials, workdir: Workdir, mesh: Mesh):
        training = experiment.training
        self.experiment, self.materials = experiment, materials
        self.workdir, self.mesh = workdir, mesh
        self.process_index, self.process_count = process_slice(mesh)
        self.total_steps = training.steps or round(
            training.epochs * steps_per_epoch(materials.corpus.train, training.batch_size)
        )
        self.optimizer, self.schedule = make_optimizer(experiment.optimizer, self.total_steps)
        self.encoder, self.params = new_student(experiment, materials.teacher)
        self.pair = Pair(self.encoder, materials.teacher.encoder)
        self.step = make_step(experiment, self.pair, self.optimizer, self.total_steps)
        self.compiled = {}
        teacher = materials.teacher.params if losses.needs_teacher(experiment.losses) else {}
        self.teacher = sharding.place(teacher, sharding.param_shardings(mesh, teacher))
        self.table = jax.device_put(materials.table, sharding.replicated(mesh))

    def to_the_end(self) -> Outcome:
        training = self.experiment.training
        best = Best("loss") if training.evaluate_every else None
        with Checkpoints(
            self.workdir.checkpoints, keep=training.keep_checkpoints, best=best
        ) as checkpoints:
            current, batches, record = self._restored(checkpoints)
            start = int(current.step)
            reporter = Reporter(
                self.workdir,
                training,
                total_steps=self.total_steps,
                start_step=start,
                schedule=self.schedule,
                peak=peak_flops(),
            )
            with (
                reporter as report,
                stop_on_signal(report.say) as stop,
                contextlib.closing(batches),
                _profile(self.workdir.folder / "profile", training.profile) as profile,
            ):
                clock = _Clock(record)
                for done in range(start + 1, self.total_steps + 1):
                    batch = to_global(next(batches), self.mesh)
                    step = self._compiled_for(batch, current, report, clock)
                    current, metrics = step(current, self.teacher, self.table, batch)
                    length = batch["input_ids"].shape[1]
                    report.step(done, metrics, self._flops(length))
                    profile(done - start)

                    stopping = stop.requested(done) or done == self.total_steps
                    values = None
                    if training.evaluate_every and (
                        done % training.evaluate_every == 0 or done == self.total_steps
                    ):
                        with report.paused(), clock.stopped():
                            values = self._held_out(current.params)
                            report.evaluation(done, values)
                    if stopping or done % training.checkpoint_every == 0:
                        with report.paused(), clock.stopped():
                            checkpoints.save(
                                done,
                                current,
                                record={
                                    "seconds": clock.seconds,
                                    "tokens": record["tokens"] + report.tokens,
                                },
                                iterator=batches.get_state(),
                                metrics=values,
                            )
                    if stopping:
                        break
                tokens = record["tokens"] + report.tokens
        return Outcome(
            self.encoder,
            self._on_host(current.params),
            int(current.step),
            tokens,
            clock.seconds,
            stop.exit_code,
        )

    def _restored(self, checkpoints: Checkpoints):
        """The state to go on from, the iterator at its place, and the record of what was done."""
        batches = train_batches(
            self.materials.corpus.train,
            batch_size=self.experiment.training.batch_size,
            seed=self.experiment.seed,
            data=self.experiment.data,
            process_index=self.process_index,
            process_count=self.process_count,
        )
        fresh = state.create(self.mesh, self.params, self.optimizer)
        restored = checkpoints.restore(fresh)
        if restored is None:
            return fresh, batches, {"seconds": 0.0, "tokens": 0}
        batches.set_state(restored.iterator)
        return restored.arrays, batches, restored.record

    def _compiled_for(self, batch, current, report: Reporter, clock: "_Clock"):
        """The step for this batch's length; compiled off the clock the first time it is met."""
        length = batch["input_ids"].shape[1]
        if length not in self.compiled:
            with report.paused(), clock.stopped():
                lowered = self.step.lower(current, self.teacher, self.table, batch)
                self.compiled[length] = lowered.compile()
        return self.compiled[length]

    def _flops(self, length: int) -> int:
        batch_size = self.experiment.training.batch_size
        return flops_per_step(self.experiment, self.pair, batch_size, length)

    def _held_out(self, params: dict) -> dict[str, float]:
        """The mean of every term on the held-out batches, and their weighted total as `loss`."""
        if "held_out" not in self.compiled:
            self.compiled["held_out"] = make_held_out_step(self.experiment, self.pair)
            self.held_out_batches = list(self._held_out_batches())
        sums: Mapping[str, losses.Sum] | None = None
        for number, batch in enumerate(self.held_out_batches):
            own = self.compiled["held_out"](
                params, self.teacher, self.table, batch, jnp.int32(number)
            )
            sums = own if sums is None else jax.tree.map(jnp.add, sums, own)
        means = {
            name: float(total) / max(float(count), 1.0)
            for name, (total, count) in jax.device_get(sums).items()
        }
        weights = {name: term.weight for name, term in self.experiment.losses.items()}
        return means | {"loss": sum(weights[name] * mean for name, mean in means.items())}

    def _held_out_batches(self) -> Iterator[dict[str, Array]]:
        """A few batches of the validation split, the same ones each time, in shuffled order.

        A split smaller than a batch is taken whole: `validation_batches` fills the rest up.
        """
        sequences = self.materials.corpus.validation
        enough = len(sequences.lengths) >= self.experiment.training.batch_size
        options = dict(
            batch_size=self.experiment.training.batch_size,
            data=self.experiment.data,
            process_index=self.process_index,
            process_count=self.process_count,
        )
        if enough:
            number = min(
                self.experiment.training.evaluate_batches,
                steps_per_epoch(sequences, self.experiment.training.batch_size),
            )
            batches = itertools.islice(train_batches(sequences, seed=0, **options), number)
        else:
            batches = validation_batches(sequences, **options)
        for batch in batches:
            yield to_global(batch, self.mesh)

    def _on_host(self, params: dict) -> dict:
        """Whole numpy arrays on every process, wherever the parts are."""
        whole = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(self.mesh))(params)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), whole)


class _Clock:
    """Seconds of training, over all starts of a run."""

    def __init__(self, record: dict):
        self._before, self._since = record["seconds"], time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def stopped(self):
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin


@contextlib.contextmanager
def _profile(folder: Path, wanted: bool):
    """A function to call after every step: it traces a few of them into `folder`."""
    tracing = False

    def after(step: int) -> None:
        nonlocal tracing
        if wanted and step == _PROFILED.start:
            jax.profiler.start_trace(str(folder))
            tracing = True
        elif tracing and step == _PROFILED.stop:
            jax.profiler.stop_trace()
            tracing = False

    try:
        yield after
    finally:
        if tracing:
            jax.profiler.stop_trace()
