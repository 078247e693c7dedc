"""The loop of several students at once: one group of arms, under one seed after the other.

It is `loop.py` with an axis of arms. Each arm gets the batches, masks and dropout that its own run
under that seed would get, hence its own run's result up to rounding, and all arms of a seed see the
same ones, so that their differences are paired.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from distilflax import weights
from distilflax.batches.pipeline import batch_at, longest_step
from distilflax.batches.placement import to_global
from distilflax.settings import Encoder, Experiment
from distilflax.train import cache_fill, memory, sharding, state, teachers
from distilflax.train.arms import Group
from distilflax.train.arms_report import ArmsReport
from distilflax.train.checkpoint import Checkpoints
from distilflax.train.frozen import trained
from distilflax.train.loop import Clock, batch_options, batches_of, steps_of
from distilflax.train.optimizer import optimizer_of
from distilflax.train.setup import Materials, new_student, with_projections, without_projections
from distilflax.train.signals import stop_on_signal
from distilflax.train.step import keys_of, make_arms_step
from distilflax.train.views import Batch
from distilflax.train.workdir import Members, Workdir, check_sources


@dataclass(frozen=True, eq=False)
class Trained:
    """What a group's training under one seed leaves in memory.

    Attributes:
      encoder, params: the students, by arm; float32 arrays on the host.
      steps, tokens, seconds: updates, real tokens and time of training, common to all arms.
      diverged: of each arm whose loss or gradient stopped being a number, the step.
      sources: what they were trained from, as `sources_of` has it.
      exit_code: 0, or 128 + the signal that stopped it.
    """

    encoder: Encoder
    params: dict[str, dict]
    steps: int
    tokens: int
    seconds: float
    diverged: dict[str, int]
    sources: dict[str, str]
    exit_code: int = 0


def members_of(group: Group, seed: int) -> Members:
    """Whose the workdir of a group's run under `seed` is."""
    return Members({name: replace(arm, seed=seed) for name, arm in group.arms.items()})


def sources_of(group: Group, materials: Materials) -> dict[str, str]:
    """Fingerprints of what the group's arms name and their settings do not hold."""
    student = group.program.student
    origin = {"student.path": materials.origin(student).fingerprint} if student.path else {}
    return materials.fingerprints | origin


class Together:
    """A group of arms on the devices: its program, compiled once for all seeds."""

    def __init__(self, group: Group, materials: Materials, say: Callable[[str], None]):
        """
        Raises:
          UserError: a mesh or batch that does not divide, or terms that do not fit the models.
        """
        program = group.program
        self.group, self.materials, self.say = group, materials, say
        training = program.training
        self.mesh = sharding.make_mesh(program.mesh, training.batch_size // training.accumulate)
        self.total_steps = steps_of(program, materials)
        origin = materials.origin(program.student)
        encoder = weights.surgery.student_encoder(origin.encoder, program.student)
        self.pair = teachers.pair_of(program, materials, encoder)
        self.teacher = teachers.placed(program, materials, self.mesh)
        self.table, self.dials = self._everywhere((materials.table, group.dials()))
        self.optimizer, _ = optimizer_of(program, self.total_steps)
        self.compiled: dict[int, Any] = {}  # by the length of the batch

    def train(self, seed: int, workdir: Workdir) -> Trained:
        """Train all arms under `seed` in their workdir; run again, it goes on from the checkpoint.

        Raises:
          UserError: more memory than there is, a full disk, a checkpoint of other text or another
            teacher, or a cache of the teacher that does not belong to this run.
        """
        members = {name: self.group.begins_as(name, seed) for name in self.group.arms}
        taught = self.group.taught_as(seed)
        with jax.set_mesh(self.mesh):
            cache = cache_fill.ready(
                taught, self.materials, self.pair, self.mesh, self.teacher, self.total_steps
            )
        with (
            jax.set_mesh(self.mesh),
            Checkpoints(workdir.checkpoints, keep=1) as checkpoints,
            contextlib.closing(batches_of(taught, self.materials, self.mesh, cache)) as batches,
        ):
            return self._go_on(members, taught, cache, workdir, checkpoints, batches)

    def _go_on(self, members, taught, cache, workdir, checkpoints, batches) -> Trained:
        every = self.group.program.training.checkpoint_every
        students = self._students(members)
        where = state.shardings_of_arms(
            self.mesh, students[0], self.optimizer, self.group.program.student
        )
        keys = self._everywhere(keys_of(taught.seed))
        # Compiled, and its memory checked, for shapes alone: before anything is allocated.
        shapes = self._shapes(where, students[0])
        self._program(shapes, self._longest_batch(taught, cache), keys, where)

        current = state.create_arms(where, students, self.optimizer, self.group.program.student)
        del students
        restored, sources = checkpoints.restore(current), sources_of(self.group, self.materials)
        record = {"seconds": 0.0, "tokens": 0, "diverged": {}}
        if restored is not None:
            check_sources(workdir.folder, restored.record, sources)
            batches.set_state(restored.iterator)
            current, record = restored.arrays, restored.record
        start, clock = int(current.step), Clock(record["seconds"])
        with (
            ArmsReport(
                workdir.folder, self.group, self.total_steps, start, record["diverged"]
            ) as report,
            stop_on_signal(report.say) as stop,
        ):
            clock.start()
            for done in range(start + 1, self.total_steps + 1):
                batch = to_global(next(batches), self.mesh)
                step = self._step_for(batch, current, keys, where, report, clock)
                current, metrics = step(current, self.teacher, self.table, batch, keys, self.dials)
                report.step(done, metrics)
                stopping = stop.requested(done)
                # Not after the last step: what the students are then is measured at once.
                if stopping or (done % every == 0 and done < self.total_steps):
                    with report.paused(), clock.stopped():
                        so_far = {
                            "seconds": clock.seconds,
                            "tokens": record["tokens"] + report.tokens,
                            "diverged": dict(report.diverged),
                            **sources,
                        }
                        checkpoints.save(done, current, record=so_far, iterator=batches.get_state())
                if stopping:
                    break
            report.flush()
            clock.stop()
        whole = sharding.on_host(self.mesh, current.params)
        return Trained(
            self.pair.student,
            {
                name: without_projections(jax.tree.map(lambda leaf, i=i: leaf[i], whole))
                for i, name in enumerate(members)
            },
            int(current.step),
            record["tokens"] + report.tokens,
            clock.seconds,
            report.diverged,
            sources,
            stop.exit_code,
        )

    def _students(self, members) -> list[dict]:
        """The parameters of each arm before its first step, projections among them."""
        students = []
        for arm in members.values():
            encoder, params = new_student(arm, self.materials)
            students.append(with_projections(arm, self.materials, encoder, params))
        self.materials.students.clear()  # Of other seeds: each would stay in memory.
        return students

    def _shapes(self, where: state.State, one: dict) -> state.State:
        """The state's shapes and shardings, of arms that are like `one`."""
        arms = len(self.group.arms)

        def stacked(leaf):
            return jax.ShapeDtypeStruct((arms, *leaf.shape), leaf.dtype)

        own = self.group.program.student
        params = jax.tree.map(stacked, one)
        opt_state = jax.eval_shape(jax.vmap(self.optimizer.init), trained(own, params))
        shapes = state.State(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state)
        return jax.tree.map(
            lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where
        )

    def _longest_batch(self, taught: Experiment, cache: cache_fill.Cache | None) -> Batch:
        """Of the run's batches one that is padded to the most, which takes the most memory."""
        sequences, seed = self.materials.corpus.train, taught.seed
        step = longest_step(
            sequences,
            steps=self.total_steps,
            batch_size=taught.training.batch_size,
            seed=seed,
            data=taught.data,
        )
        batch = batch_at(sequences, seed=seed, **batch_options(taught, self.mesh))(step)
        return to_global(batch if cache is None else batch | cache.beside(step, batch), self.mesh)

    def _step_for(
        self,
        batch: Batch,
        current: state.State,
        keys: Any,
        where: state.State,
        report: ArmsReport,
        clock: Clock,
    ) -> Any:
        """The step for a batch of this length; compiled off the clock when first met."""
        if batch["input_ids"].shape[1] not in self.compiled:
            with report.paused(), clock.stopped():
                return self._program(current, batch, keys, where)
        return self._program(current, batch, keys, where)

    def _program(self, current: state.State, batch: Batch, keys: Any, where: state.State) -> Any:
        """The step for batches of this length, compiled when first met.

        Raises:
          UserError: it would take more memory than there is.
        """
        length = batch["input_ids"].shape[1]
        if length not in self.compiled:
            arms = len(self.group.arms)
            self.say(f"compiling one program for {arms} arms, sequences of {length}")
            step = make_arms_step(self.group.program, self.pair, self.total_steps, arms, where)
            lowered = step.lower(current, self.teacher, self.table, batch, keys, self.dials)
            compiled = lowered.compile()
            # The longest of a seed comes first, and the others take less.
            if length > max(self.compiled, default=0):
                memory.check_arms(compiled, arms, self.teacher)
            self.compiled[length] = compiled
        return self.compiled[length]

    def _everywhere(self, tree: Any) -> Any:
        return jax.device_put(tree, sharding.replicated(self.mesh))
