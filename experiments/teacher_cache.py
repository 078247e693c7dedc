"""What a teacher that is run once costs and saves: bytes, the gradient, and the time of a step.

    python -m experiments.teacher_cache --config=configs/demo.py --workdir=runs/teacher_cache

Every way to keep what the teacher says (`config.teacher_cache`) is put to the config's own text,
losses and student, before its first step:

    exact        words=states in float32: as if the teacher ran
    states       words=states in float16
    sampled, systematic, top_k     a few words of each distribution, states in float16

and is held against the teacher that runs in every step: how far the gradient is off on average
(its bias) and by one draw of the words (its noise), over --draws draws on each of --batches
batches (`train/cache_bias.py`); and the time of a step, from the files on disk to its metrics. The
steps take turns, --rounds times: on a machine that does other work than this the ratio says
something, and no time by itself. --clock=cpu counts the processor's seconds in place of the
clock's. In the workdir:

    teacher_cache.md, teacher_cache.json   the tables; every batch and every round
    cache/                                 what was kept of the first steps; may be deleted
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax import losses
from distilflax.batches.pipeline import batch_at
from distilflax.batches.placement import to_global
from distilflax.errors import UserError, choose_from
from distilflax.evaluate import intervals, speed, tables
from distilflax.losses import TERMS
from distilflax.settings import Experiment
from distilflax.train import (
    cache_bias,
    cache_fill,
    cached,
    machine,
    records,
    sharding,
    state,
    teachers,
)
from distilflax.train.loop import steps_of
from distilflax.train.optimizer import optimizer_of
from distilflax.train.progress import say_on
from distilflax.train.setup import new_student, prepare, with_projections
from distilflax.train.step import make_step
from distilflax.train.workdir import enable_compilation_cache, open_workdir
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the result; made if it is missing.")
_ONLY = flags.DEFINE_multi_string("only", [], "Leave out all other ways; again for each more.")
_BATCHES = flags.DEFINE_integer("batches", 8, "On which gradients are compared.", 2)
_DRAWS = flags.DEFINE_integer("draws", 20, "How often words are drawn on each of them.", 2)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each step.", 3)
_CLOCK = flags.DEFINE_enum("clock", "wall", list(speed.CLOCKS), "Which seconds are counted.")

WAYS = {
    "exact": {"words": "states", "dtype": "float32"},
    "states": {"words": "states", "dtype": "float16"},
    "sampled": {"words": "sampled", "dtype": "float16"},
    "systematic": {"words": "systematic", "dtype": "float16"},
    "top_k": {"words": "top_k", "dtype": "float16"},
}
DRAWN = ("sampled", "systematic")
LIVE = "live"

_WARM_UP = 1  # rounds; programs are compiled before them
_MOST_TRIED = 100  # batches for each that is wanted, where few are masked


class Bench:
    """The models and the batches of a run, and what is kept of its first steps."""

    def __init__(self, experiment: Experiment, folder: Path, say: Callable[[str], None]):
        self.experiment, self.folder = experiment, folder
        self.materials = prepare(experiment, [experiment], say)
        training = experiment.training
        self.mesh = sharding.make_mesh(experiment.mesh, training.batch_size // training.accumulate)
        encoder, params = new_student(experiment, self.materials)
        self.params = with_projections(experiment, self.materials, encoder, params)
        self.pair = teachers.pair_of(experiment, self.materials, encoder)
        self.teacher = teachers.placed(experiment, self.materials, self.mesh)
        self.table = jax.device_put(self.materials.table, sharding.replicated(self.mesh))
        self.host_batch = batch_at(
            self.materials.corpus.train,
            batch_size=training.batch_size,
            seed=experiment.seed,
            data=experiment.data,
        )

    def kept_as(self, way: str) -> Experiment:
        """The experiment with its teacher kept in that way."""
        changes = {"enabled": True, "folder": str(self.folder), **WAYS[way]}
        cache = dataclasses.replace(self.experiment.teacher_cache, **changes)
        return dataclasses.replace(self.experiment, teacher_cache=cache)

    def fill(self, which: Experiment, steps: int) -> cache_fill.Cache:
        """What is kept of the first steps, computed where it is not there yet."""
        found = cache_fill.ready(which, self.materials, self.pair, self.mesh, self.teacher, steps)
        assert found is not None, "enabled, and a term has a teacher"
        return found

    def batch(self, step: int, cache: cache_fill.Cache | None = None) -> dict[str, jax.Array]:
        """The batch of a step on the devices, with what was kept of its teacher."""
        host = self.host_batch(step)
        return to_global(host if cache is None else host | cache.beside(step, host), self.mesh)


class Compared(NamedTuple):
    """What the gradients are taken of: which steps, and by name the terms over words and all."""

    steps: list[int]
    terms: dict[str, list[str]]


def run() -> None:
    experiment = dataclasses.replace(command.settings_of(_CONFIG), arms={})
    console = Console(stderr=True)
    say = say_on(console)
    ways = possible(experiment, _ONLY.value or list(WAYS), say)
    folder = command.required(_WORKDIR)
    if experiment.training.compilation_cache:
        enable_compilation_cache(folder / "run")
    with open_workdir(folder, experiment) as workdir:
        bench = Bench(experiment, workdir.folder / "cache", say)
        with jax.set_mesh(bench.mesh):
            compared = to_compare(bench, _BATCHES.value)
            steps = max(*compared.steps, _WARM_UP + _ROUNDS.value - 1) + 1
            caches = {way: bench.fill(bench.kept_as(way), steps) for way in ways}
            say(f"gradients on {_BATCHES.value} batches")
            gaps = gradients(bench, compared, caches, _DRAWS.value)
            say(f"{_ROUNDS.value} rounds of steps")
            seconds = step_times(bench, caches, _ROUNDS.value)
        record = {
            "command": command.typed("teacher_cache"),
            "terms": compared.terms,
            "batches": compared.steps,
            "draws": _DRAWS.value,
            "bytes": {way: sizes(bench, cache, steps) for way, cache in caches.items()},
            "gaps": gaps,
            "clock": _CLOCK.value,
            "seconds": seconds,
            "environment": machine.record(),
            "config": dataclasses.asdict(experiment),
        }
        shown = [on_disk(record), *off(record)]
        records.write_json(workdir.folder / "teacher_cache.json", records.plain(record))
        path = workdir.folder / "teacher_cache.md"
        records.write_text(path, to_markdown(record, shown))
    for table in shown:
        console.print(tables.terminal(table))
    say(f"report: {path}")


def possible(experiment: Experiment, asked: list[str], say: Callable[[str], None]) -> list[str]:
    """Those ways in which this experiment's teacher can be kept; says why the others cannot.

    Raises:
      UserError: a way that there is not, a config without a teacher, or none that can.
    """
    if not losses.needs_teacher(experiment.losses):
        raise UserError("no active term of config.losses compares with a teacher; add one.")
    found, reason = [], None
    for way in dict.fromkeys(asked):
        if way not in WAYS:
            raise UserError(f"--only={way} is no way to keep a teacher; {choose_from(way, WAYS)}")
        if WAYS[way]["words"] != "states" and not over_words(experiment):
            continue
        cache = dataclasses.replace(experiment.teacher_cache, enabled=True, **WAYS[way])
        try:
            cached.check(dataclasses.replace(experiment, teacher_cache=cache))
            found.append(way)
        except UserError as error:
            reason = reason or error
            say(f"without {way}: {error}")
    if not found:
        raise reason or UserError(
            "no term of config.losses is over words; ask --only=exact or --only=states."
        )
    return found


def over_words(experiment: Experiment) -> list[str]:
    """The active terms that compare distributions over words with a teacher's."""
    active = losses.active(experiment.losses)
    return [name for name in active if TERMS[name].over == "logits" and TERMS[name].needs_teacher]


def to_compare(bench: Bench, number: int) -> Compared:
    """The first batches on which the terms over words, if there are any, cover a position.

    Raises:
      UserError: too few of them are masked.
    """
    active, words = list(losses.active(bench.experiment.losses)), over_words(bench.experiment)
    covered = cache_bias.make_covered(bench.experiment, words or active)
    tried = range(number * _MOST_TRIED)
    found = (i for i in tried if covered(bench.table, jnp.int32(i), bench.batch(i)))
    steps = list(itertools.islice(found, number))
    if len(steps) < number:
        raise UserError(
            f"only {len(steps)} of {len(tried)} batches have a word that is masked; raise "
            "config.masking.sequences or lower --batches."
        )
    groups = {" + ".join(words): words, "all terms": active} if words else {"all terms": active}
    return Compared(steps, groups)


def gradients(
    bench: Bench, compared: Compared, caches: dict[str, cache_fill.Cache], draws: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """For each group of terms and each way the `cache_bias.Gap` of every batch."""
    gradient = cache_bias.make_gradient(bench.experiment, bench.pair)
    params = sharding.place(bench.params, sharding.param_shardings(bench.mesh, bench.params))
    draw = {way: drawing(bench, way, draws - 1) for way in caches if way in DRAWN}
    found = {terms: {way: [] for way in caches} for terms in compared.terms}
    for step in compared.steps:
        for terms, names in compared.terms.items():
            dials = cache_bias.dials_of(bench.experiment, names)
            graded = partial(gradient, dials, params, bench.teacher, bench.table, jnp.int32(step))
            dense = graded(bench.batch(step))
            for way, cache in caches.items():
                batches = [bench.batch(step, cache)]
                if way in draw:
                    batches += draw[way](step, batches[0])
                gap = cache_bias.gap(dense, map(graded, batches))
                found[terms][way].append(gap._asdict())
    return found


def drawing(
    bench: Bench, way: str, number: int
) -> Callable[[int, dict[str, jax.Array]], list[dict[str, jax.Array]]]:
    """(step, its batch) to that batch with words drawn anew, so many times."""
    kept = cached.kept(bench.kept_as(way), bench.pair.teacher.vocab_size)
    draw = cache_bias.make_draws(bench.experiment, bench.pair.teacher, kept, number)

    def drawn(step: int, batch: dict[str, jax.Array]) -> list[dict[str, jax.Array]]:
        words = draw(bench.teacher, bench.table, jnp.int32(step), batch)
        names = {f"{cached.PREFIX}{cached.WORDS}/{name}": array for name, array in words.items()}
        return [batch | {name: array[i] for name, array in names.items()} for i in range(number)]

    return drawn


def sizes(bench: Bench, cache: cache_fill.Cache, steps: int) -> dict[str, Any]:
    """Bytes a position of every column, and of all of them together a token of text."""
    tokens = sum(int(bench.host_batch(i)["attention_mask"].sum()) for i in range(steps))
    units = {
        column.folder: sum(int(stored.at(i).counts.sum()) for i in range(steps))
        for column, stored in cache.stored.items()
    }
    each = {column.folder: stored.unit_bytes for column, stored in cache.stored.items()}
    return {
        "a_position": each,
        "a_token": sum(each[name] * units[name] for name in each) / tokens,
    }


def step_times(
    bench: Bench, caches: dict[str, cache_fill.Cache], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every step in every round: with the teacher (`live`), and kept in each way."""
    calls = [stepper(bench, bench.experiment, None, rounds)]
    calls += [stepper(bench, bench.kept_as(way), caches[way], rounds) for way in caches]
    clock = speed.CLOCKS[_CLOCK.value]
    seconds = speed.take_turns(calls, _WARM_UP + rounds, clock=clock)[_WARM_UP:]
    return dict(zip((LIVE, *caches), seconds.T.tolist(), strict=True))


def stepper(
    bench: Bench, which: Experiment, cache: cache_fill.Cache | None, rounds: int
) -> Callable[[], None]:
    """A run of its own that makes one step at a call, from the text on disk to the metrics."""
    total = steps_of(which, bench.materials)
    optimizer, _ = optimizer_of(which, total)
    current = state.create(bench.mesh, bench.params, optimizer, which.student)
    step = make_step(which, bench.pair, optimizer, total, state.shardings_in(current))
    compiled = {}  # by the length of the batch
    for number in range(_WARM_UP + rounds):
        batch = bench.batch(number, cache)
        length = batch["input_ids"].shape[1]
        if length not in compiled:
            compiled[length] = step.lower(current, bench.teacher, bench.table, batch).compile()
    numbers = itertools.count()

    def call() -> None:
        nonlocal current
        batch = bench.batch(next(numbers), cache)
        run_step = compiled[batch["input_ids"].shape[1]]
        current, metrics = run_step(current, bench.teacher, bench.table, batch)
        jax.block_until_ready(metrics)

    return call


def on_disk(record: dict[str, Any]) -> tables.Table:
    """What is kept in each way, and the time of a step with it over that with the teacher."""
    rows = []
    for way, kept in record["bytes"].items():
        own, live = (np.array(record["seconds"][name]) for name in (way, LIVE))

        def medians(at, own=own, live=live):
            return float(np.median(own[at])), float(np.median(live[at]))

        ratio = intervals.compare(medians, len(own)).retention
        each = " + ".join(map(str, kept["a_position"].values()))
        shown = tables.interval(ratio._asdict(), digits=2)
        rows.append((way, each, tables.number(kept["a_token"], 1), shown))
    columns = ("Kept", "Bytes a position", "Bytes a token of text", "Step's time / live [95%]")
    note = (
        "Positions: real tokens for states, those that terms over words cover for words. Time: "
        f"medians of {len(record['seconds'][LIVE])} rounds by the {record['clock']} clock in which "
        "the steps took turns, over the median with the teacher in every step; bootstrap intervals "
        "over the rounds."
    )
    return tables.Table("What is kept, and the time of a step", columns, tuple(rows), note)


def off(record: dict[str, Any]) -> Iterator[tables.Table]:
    """For each group of terms how far its gradient is off."""
    for terms, ways in record["gaps"].items():
        rows = []
        for way, of_batches in ways.items():
            bias, noise = (
                intervals.over_runs([one[key] for one in of_batches])
                for key in ("bias_squared", "noise_squared")
            )
            rows.append(
                (
                    way,
                    tables.interval(_root(bias)._asdict(), 100.0, 2),
                    tables.percent(_root(noise).value, 2) if way in DRAWN else tables.MISSING,
                )
            )
        columns = ("Kept", "Bias, % [95%]", "Noise of a draw, %")
        note = (
            f"Of the student before its first step, over {len(record['batches'])} batches, with "
            f"{record['draws']} draws of words on each; relative to the gradient with the teacher "
            "in the step. Roots of mean squares, intervals by Student's t over the batches: one "
            "that begins at 0 shows no bias."
        )
        yield tables.Table(f"The gradient of {terms}", columns, tuple(rows), note)


def to_markdown(record: dict[str, Any], shown: Collection[tables.Table]) -> str:
    """The text of `teacher_cache.md`."""
    facts = {k: v for k, v in record["environment"].items() if not isinstance(v, dict)}
    parts = ["# A teacher that is run once", *map(tables.markdown, shown)]
    parts.append("## Machine\n\n" + tables.listed(facts))
    parts.append(f"## Command\n\n```\n{record['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _root(square: intervals.Interval) -> intervals.Interval:
    return intervals.Interval(*(max(value, 0.0) ** 0.5 for value in square))


if __name__ == "__main__":
    command.main(run)
