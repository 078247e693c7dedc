"""What a teacher that is run once costs and saves: bytes, rounding, bias, and the time of a step.

    python -m experiments.teacher_cache --config=configs/demo.py --output=teacher_cache.json

On batches of the config's own text, with its own student before its first step, it prints

    what each cached output takes on disk;
    how far the gradient moves when the teacher's hidden states are rounded to float16 or bfloat16;
    for every way of keeping words (`config.teacher_cache.words`) the noise of one draw and how far
    the mean of --draws is from the gradient with the teacher's whole distribution, beside how far
    chance alone would take it (`train/cache_bias.py`);
    the time of a step with cached outputs, read from disk, over that of a step which runs the
    teacher. The steps take turns, --rounds times; on a machine that does other work than this it is
    the ratio that says something.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from distilflax import losses
from distilflax.batches.pipeline import batch_at
from distilflax.batches.placement import to_global
from distilflax.errors import UserError
from distilflax.evaluate import speed
from distilflax.losses import TERMS
from distilflax.settings import Experiment
from distilflax.teacher_cache import TeacherCache
from distilflax.train import cache_bias, cache_fill, cached, machine, sharding, state, teachers
from distilflax.train.loop import steps_of
from distilflax.train.optimizer import make_optimizer
from distilflax.train.setup import Materials, new_student, prepare, with_projections
from distilflax.train.step import make_step
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_DRAWS = flags.DEFINE_integer("draws", 100, "How often words are drawn.", 2)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each step.", 3)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for everything that was measured.")

WAYS = ("sampled", "systematic", "top_k")
PRECISIONS = ("float16", "bfloat16")
LIVE = "live"


class Bench:
    """The models, the text and the first batches of a run."""

    def __init__(self, experiment: Experiment, console: Console, folder: Path):
        self.experiment, self.folder = experiment, folder
        self.materials: Materials = prepare(experiment, [experiment], console.print)
        training = experiment.training
        self.mesh = sharding.make_mesh(experiment.mesh, training.batch_size // training.accumulate)
        encoder, self.params = new_student(experiment, self.materials)
        self.pair = teachers.pair_of(experiment, self.materials, encoder)
        with jax.set_mesh(self.mesh):
            self.teacher = teachers.placed(experiment, self.materials, self.mesh)
        self.host_batch = batch_at(
            self.materials.corpus.train,
            batch_size=training.batch_size,
            seed=experiment.seed,
            data=experiment.data,
        )

    def cached_as(self, **changes) -> Experiment:
        """The experiment with a cache of its own."""
        settings = dataclasses.asdict(self.experiment.teacher_cache)
        changes = {"enabled": True, "folder": str(self.folder)} | changes
        return dataclasses.replace(
            self.experiment, teacher_cache=TeacherCache(**(settings | changes))
        )

    def cache(self, which: Experiment, steps: int = 1) -> cache_fill.Cache:
        """Filled for the first steps."""
        with jax.set_mesh(self.mesh):
            found = cache_fill.ready(
                which, self.materials, self.pair, self.mesh, self.teacher, steps
            )
        if found is None:
            raise UserError("no active term of config.losses compares with a teacher; add one.")
        return found

    def subject(self, which: Experiment, batch: dict[str, np.ndarray]) -> cache_bias.Subject:
        """A run before its first step, on this batch."""
        params = with_projections(which, self.materials, self.pair.student, self.params)
        arrays = (params, self.teacher, self.materials.table, jax.tree.map(jnp.asarray, batch))
        return cache_bias.Subject(which, self.pair, arrays)


def run() -> None:
    experiment = command.settings_of(_CONFIG)
    experiment = dataclasses.replace(experiment, arms={})
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(experiment, Console(stderr=True), Path(folder))
        over_words = [
            name
            for name in losses.active(experiment.losses)
            if TERMS[name].over == "logits" and TERMS[name].needs_teacher
        ]
        ways = WAYS if over_words else ()
        record = {
            "command": " ".join(["python -m experiments.teacher_cache", *sys.argv[1:]]),
            "bytes": sizes(bench, ways),
            "rounding": rounding(bench),
            "bias": bias(bench, ways, _DRAWS.value),
            "step": step_times(bench, ways, _ROUNDS.value),
            "machine": machine.describe(),
        }
    for table in tables(record):
        console.print(table)
    if _OUTPUT.value:
        command.write_json(_OUTPUT.value, record)


def sizes(bench: Bench, ways: tuple[str, ...]) -> dict[str, int]:
    """Bytes a position of every column."""
    found = {}
    for way in (*ways, "states"):
        for column, stored in bench.cache(bench.cached_as(words=way)).stored.items():
            found[column.folder] = stored.unit_bytes
    return found


def rounding(bench: Bench) -> dict[str, dict[str, float]]:
    """The bias of keeping the teacher's hidden states in each precision."""
    which = bench.cached_as(words="states", dtype="float32")
    batch = bench.host_batch(0)
    subject = bench.subject(which, batch | bench.cache(which).beside(0, batch))
    found = cache_bias.of_rounding(subject, PRECISIONS)
    return {f"states, {dtype}": shown(one) for dtype, one in found.items()}


def bias(bench: Bench, ways: tuple[str, ...], draws: int) -> dict[str, dict[str, float]]:
    """The bias of each way of keeping words."""
    vocab_size = bench.pair.teacher.vocab_size
    kept = {way: cached.kept(bench.cached_as(words=way), vocab_size) for way in ways}
    subject = bench.subject(bench.experiment, bench.host_batch(0))
    found = cache_bias.of_words(subject, kept, draws) if kept else {}
    return {f"{way}, {kept[way].number} words": shown(one) for way, one in found.items()}


def shown(one: cache_bias.Bias) -> dict[str, float]:
    return {**one._asdict(), "bias": one.bias}


def step_times(bench: Bench, ways: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round: with the teacher (`live`), and with each cache."""
    which = {LIVE: bench.experiment}
    which |= {way: bench.cached_as(words=way) for way in (*ways, "states")}
    with jax.set_mesh(bench.mesh):
        calls = [a_step(bench, one, name == LIVE) for name, one in which.items()]
        seconds = speed.take_turns(calls, rounds, clock=time.perf_counter)
    return dict(zip(which, seconds.T.tolist(), strict=True))


def a_step(bench: Bench, which: Experiment, live: bool) -> Callable[[], None]:
    """One training step of a run of its own, from the host's batch to its metrics; warmed up."""
    steps = steps_of(which, bench.materials)
    optimizer, _ = make_optimizer(which.optimizer, steps)
    params = with_projections(which, bench.materials, bench.pair.student, bench.params)
    current = state.create(bench.mesh, params, optimizer, which.student)
    table = jax.device_put(bench.materials.table, sharding.replicated(bench.mesh))
    step = make_step(which, bench.pair, optimizer, steps)
    cache = None if live else bench.cache(which)
    host = bench.host_batch(0)

    def call() -> None:
        nonlocal current
        batch = host if cache is None else host | cache.beside(0, host)
        current, metrics = step(current, bench.teacher, table, to_global(batch, bench.mesh))
        jax.block_until_ready(metrics)

    for _ in range(2):
        call()
    return call


def tables(record: dict) -> list[Table]:
    """What a person reads of it."""
    size = Table("cached", "bytes a position", title="On disk")
    for name, number in record["bytes"].items():
        size.add_row(name, str(number))
    off = Table(
        "kept",
        "noise of one draw",
        "mean's distance",
        "of which chance",
        "bias",
        "loss",
        title="The gradient, relative to that with all the teacher says",
    )
    for name, one in (record["rounding"] | record["bias"]).items():
        figures = (one[key] for key in ("noise", "distance", "chance", "bias"))
        off.add_row(name, *(f"{figure:.2e}" for figure in figures), f"{one['loss']:+.2e}")
    times = Table("step", "time / live", title=f"{_ROUNDS.value} rounds: median (middle 80%)")
    seconds = {name: np.array(own) for name, own in record["step"].items()}
    for name, own in seconds.items():
        low, middle, high = np.quantile(own / seconds[LIVE], [0.1, 0.5, 0.9])
        times.add_row(name, f"{middle:.2f} [{low:.2f}, {high:.2f}]")
    return [size, off, times]


if __name__ == "__main__":
    command.main(run)
