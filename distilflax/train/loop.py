"""The loop: the one place where time passes. Everything it calls is pure, or writes a file."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distilflax.batches.pipeline import (
    steps_per_epoch,
    train_batches,
    validation_batches,
)
from distilflax.batches.placement import process_slice, to_global
from distilflax.settings import Encoder, Experiment
from distilflax.train import cache_fill, sharding, state, teachers
from distilflax.train.checkpoint import Best, Checkpoints, Restored
from distilflax.train.gradients import make_accounting
from distilflax.train.optimizer import optimizer_of
from distilflax.train.reporter import Reporter
from distilflax.train.setup import Materials, new_student, with_projections, without_projections
from distilflax.train.signals import Stop, stop_on_signal
from distilflax.train.step import flops_per_step, make_held_out_step, make_step
from distilflax.train.throughput import Peak, peak_flops
from distilflax.train.views import Batch
from distilflax.train.workdir import Workdir, check_sources, open_workdir

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


@dataclass(frozen=True, eq=False)
class Beside:
    """What a run needs that is trained while others are, each in a thread of its own.

    Attributes:
      name: what its lines on the terminal begin with.
      stop: signals reach the main thread only, so it is the one to listen.
      peak: of the processor, measured while nothing else ran.
    """

    name: str
    stop: Stop
    peak: Peak


def train(
    experiment: Experiment,
    materials: Materials,
    folder: str | Path,
    beside: Beside | None = None,
) -> Outcome:
    """Distil one student in `folder`; run again, it goes on from the newest checkpoint.

    On the same devices a run that was stopped and taken up again ends with the same bits as one
    that was not.

    Raises:
      UserError: a folder of another config or in use, a mesh or batch that does not divide, a
        full disk, or `Diverged` naming the step and the term.
    """
    micro_batch = experiment.training.batch_size // experiment.training.accumulate
    mesh = sharding.make_mesh(experiment.mesh, micro_batch)
    # Measured on one device, so before all of them are in scope.
    peak = beside.peak if beside else peak_flops()
    with open_workdir(folder, experiment) as workdir, jax.set_mesh(mesh):
        run = _Run(experiment, materials, workdir, mesh, peak, beside)
        best = Best("loss") if experiment.training.evaluate_every else None
        keep = experiment.training.keep_checkpoints
        with Checkpoints(workdir.checkpoints, keep=keep, best=best) as checkpoints:
            restored = run.restored(checkpoints)
            with contextlib.closing(run.batches(restored)) as batches:
                return run.go_on(restored, checkpoints, batches)


class _Run:
    """One start of a run: what does not change from step to step, and the loop over steps."""

    def __init__(
        self,
        experiment: Experiment,
        materials: Materials,
        workdir: Workdir,
        mesh: Mesh,
        peak: Peak,
        beside: Beside | None,
    ):
        self.experiment, self.materials = experiment, materials
        self.workdir, self.mesh, self.peak, self.beside = workdir, mesh, peak, beside
        self.total_steps = steps_of(experiment, materials)
        self.optimizer, self.schedule = optimizer_of(experiment, self.total_steps)
        self.encoder, params = new_student(experiment, materials)
        self.params = with_projections(experiment, materials, self.encoder, params)
        self.pair = teachers.pair_of(experiment, materials, self.encoder)
        self.teacher = teachers.placed(experiment, materials, mesh)
        self.table = jax.device_put(materials.table, sharding.replicated(mesh))
        where = state.shardings_of(mesh, self.params, self.optimizer, experiment.student)
        self.step = make_step(experiment, self.pair, self.optimizer, self.total_steps, where)
        self.compiled = {}  # by the length of the batch
        self.held_out_step = make_held_out_step(experiment, self.pair)
        self.accounting = make_accounting(experiment, self.pair, self.total_steps)
        self.held_out_batches: list[Batch] = []

    def restored(self, checkpoints: Checkpoints) -> Restored:
        """What the newest checkpoint holds, or what a run begins with."""
        fresh = state.create(self.mesh, self.params, self.optimizer, self.experiment.student)
        found = checkpoints.restore(fresh)
        if found is None:
            return Restored(0, fresh, {"seconds": 0.0, "tokens": 0}, iterator={})
        check_sources(self.workdir.folder, found.record, self.materials.fingerprints)
        return found

    def batches(self, restored: Restored) -> grain.DatasetIterator:
        """The training batches of this process, from where the run goes on."""
        cache = None
        if restored.step < self.total_steps:  # A run that has ended asks its teacher nothing.
            cache = cache_fill.ready(
                self.experiment,
                self.materials,
                self.pair,
                self.mesh,
                self.teacher,
                self.total_steps,
            )
        batches = batches_of(self.experiment, self.materials, self.mesh, cache)
        if restored.step:
            batches.set_state(restored.iterator)
        return batches

    def go_on(
        self, restored: Restored, checkpoints: Checkpoints, batches: grain.DatasetIterator
    ) -> Outcome:
        """From there until the last step or a signal."""
        training = self.experiment.training
        current, record = restored.arrays, restored.record
        start = int(current.step)
        clock = Clock(record["seconds"])
        with (
            Reporter(
                self.workdir,
                log_every=training.log_every,
                tensorboard=training.tensorboard,
                total_steps=self.total_steps,
                start_step=start,
                schedule=self.schedule,
                peak=self.peak,
                name=self.beside.name if self.beside else "",
            ) as report,
            self._listen(report) as stop,
            _profile(self.workdir.folder / "profile", training.profile) as profile,
        ):
            clock.start()
            for done in range(start + 1, self.total_steps + 1):
                batch = to_global(next(batches), self.mesh)
                step = self._step_for(batch, current, report, clock)
                current, metrics = step(current, self.teacher, self.table, batch)
                report.step(done, metrics, self._flops(batch["input_ids"].shape[1]))
                profile(done - start)

                if _due(training.gradients_every, done, self.total_steps):
                    with report.paused(), clock.stopped():
                        # As the step just made saw them: its batch, its masks.
                        inputs = (self._teachers(current), self.table, batch, done - 1)
                        report.gradients(done, self.accounting(current.params, *inputs))
                measured = None
                if _due(training.evaluate_every, done, self.total_steps):
                    with report.paused(), clock.stopped():
                        measured = self._held_out(current)
                        report.evaluation(done, measured)
                stopping = stop.requested(done)
                if stopping or _due(training.checkpoint_every, done, self.total_steps):
                    with report.paused(), clock.stopped():
                        so_far = {
                            "seconds": clock.seconds,
                            "tokens": record["tokens"] + report.tokens,
                            **self.materials.fingerprints,
                        }
                        checkpoints.save(
                            done,
                            current,
                            record=so_far,
                            iterator=batches.get_state(),
                            metrics=measured,
                        )
                if stopping:
                    break
            clock.stop()
        student = without_projections(sharding.on_host(self.mesh, current.params))
        return Outcome(
            self.encoder,
            student,
            int(current.step),
            record["tokens"] + report.tokens,
            clock.seconds,
            stop.exit_code,
        )

    def _listen(self, report: Reporter) -> contextlib.AbstractContextManager[Stop]:
        if self.beside:
            return contextlib.nullcontext(self.beside.stop)
        return stop_on_signal(report.say)

    def _step_for(self, batch: Batch, current: state.State, report: Reporter, clock: "Clock"):
        """The step for a batch of this length; compiled off the clock when first met."""
        length = batch["input_ids"].shape[1]
        if length not in self.compiled:
            with report.paused(), clock.stopped():
                lowered = self.step.lower(current, self.teacher, self.table, batch)
                self.compiled[length] = lowered.compile()
        return self.compiled[length]

    def _flops(self, length: int) -> int:
        batch_size = self.experiment.training.batch_size
        return flops_per_step(self.experiment, self.pair, batch_size, length)

    def _teachers(self, current: state.State) -> dict:
        return teachers.with_average(self.experiment, self.teacher, current)

    def _held_out(self, current: state.State) -> dict[str, float]:
        """The mean of every term on the held-out batches, and their weighted total as `loss`."""
        taught_by = self._teachers(current)
        self.held_out_batches = self.held_out_batches or list(self._draw_held_out())
        sums = [
            self.held_out_step(current.params, taught_by, self.table, batch, jnp.int32(number))
            for number, batch in enumerate(self.held_out_batches)
        ]
        total = jax.device_get(jax.tree.map(lambda *parts: jnp.sum(jnp.stack(parts)), *sums))
        means = {name: float(s) / max(float(count), 1.0) for name, (s, count) in total.items()}
        terms = self.experiment.losses
        return means | {"loss": sum(terms[name].weight * mean for name, mean in means.items())}

    def _draw_held_out(self) -> Iterator[Batch]:
        """A few shuffled batches of the validation split, the same ones each time.

        No batch is larger than what a step has on the devices at once; a split smaller than that
        is taken whole, and `validation_batches` fills the rest up.
        """
        training, sequences = self.experiment.training, self.materials.corpus.validation
        size = training.batch_size // training.accumulate
        options = batch_options(self.experiment, self.mesh) | {"batch_size": size}
        if len(sequences.lengths) < size:
            batches = validation_batches(sequences, **options)
        else:
            number = steps_per_epoch(sequences, size)
            number = min(number, training.evaluate_batches * training.accumulate)
            batches = itertools.islice(train_batches(sequences, seed=0, **options), number)
        for batch in batches:
            yield to_global(batch, self.mesh)


def steps_of(experiment: Experiment, materials: Materials) -> int:
    """How many updates the run is to make."""
    training = experiment.training
    return training.steps or round(
        training.epochs * steps_per_epoch(materials.corpus.train, training.batch_size)
    )


def batches_of(
    experiment: Experiment,
    materials: Materials,
    mesh: Mesh,
    cache: cache_fill.Cache | None = None,
) -> grain.DatasetIterator:
    """The training batches of this process, from the first on, in the order of the seed; with a
    cache they carry what their teacher said."""
    options = batch_options(experiment, mesh)
    beside = None if cache is None else cache.beside
    return train_batches(materials.corpus.train, seed=experiment.seed, beside=beside, **options)


def batch_options(experiment: Experiment, mesh: Mesh) -> dict:
    """Which rows of a batch are this process's, and how large it is."""
    index, count = process_slice(mesh)
    return {
        "batch_size": experiment.training.batch_size,
        "data": experiment.data,
        "process_index": index,
        "process_count": count,
    }


def _due(every: int, done: int, total: int) -> bool:
    """Every so many steps, and after the last; never if `every` is 0."""
    return every > 0 and (done % every == 0 or done == total)


class Clock:
    """Seconds of training, over all starts of a run."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._since = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._since

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """A block that is no training: compiling, evaluating, saving."""
        self.stop()
        try:
            yield
        finally:
            self.start()


@contextlib.contextmanager
def _profile(folder: Path, wanted: bool) -> Iterator[Callable[[int], None]]:
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
