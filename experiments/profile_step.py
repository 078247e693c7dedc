"""Where a training step's time goes: its matrix products beside one large one, and its input.

    python -m experiments.profile_step --config=configs/demo.py --workdir=runs/profile_step

The step is that of `experiments.distill` with this config, one arm alone, on batches of its text.
--rounds times, taking turns so that whatever else the machine does meets all of them alike:

    step       from a batch on the device to its metrics
    large      one 2048 x 2048 x 2048 float32 product, the measure of what the processor can do

and by itself, for it reads ahead while others have their turn:

    input      a few hundred batches, from the files on disk to the device

and then some steps more in which `jax.profiler` looks on, a large product beside each. From that
trace: when any matrix product of the step was running, how many operations those were (counted
from the shapes in the compiled program), and so the rate of the matrix work over the rate of the
large product. Busy cores and a cold cache are in it, as they are in the step. The workdir gets
`profile_step.json`, which has everything, and trace/, which may be deleted.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax.batches.pipeline import train_batches
from distilflax.batches.placement import to_global
from distilflax.evaluate import speed, tables
from distilflax.settings import Experiment
from distilflax.train import machine, matrix_work, records, sharding, state, teachers
from distilflax.train.loop import batch_options, steps_of
from distilflax.train.optimizer import optimizer_of
from distilflax.train.progress import say_on
from distilflax.train.setup import Materials, new_student, prepare, with_projections
from distilflax.train.step import make_step
from distilflax.train.workdir import enable_compilation_cache, open_workdir
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the result; made if it is missing.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each.", 3)
_TRACED = flags.DEFINE_integer("traced", 10, "Steps in which the profiler looks on.", 1)

_LARGE = 2048  # rows and columns: as `throughput.matmul_peak`
_AT_A_TIME = 4  # steps, and batches, of a turn
_PARTS, _PART = 5, 100  # batches read
_SHOWN = 12  # products in the table


class Steps:
    """A run of its own: what its step takes, one at a time; batches come round again."""

    def __init__(self, experiment: Experiment, materials: Materials):
        training = experiment.training
        self.mesh = sharding.make_mesh(experiment.mesh, training.batch_size // training.accumulate)
        self.options = batch_options(experiment, self.mesh)
        self.sequences, self.seed = materials.corpus.train, experiment.seed
        encoder, params = new_student(experiment, materials)
        pair = teachers.pair_of(experiment, materials, encoder)
        optimizer, _ = optimizer_of(experiment, steps_of(experiment, materials))
        params = with_projections(experiment, materials, encoder, params)
        self.state = state.create(self.mesh, params, optimizer, experiment.student)
        self.fixed = (
            teachers.placed(experiment, materials, self.mesh),
            jax.device_put(materials.table, sharding.replicated(self.mesh)),
        )
        where, total = state.shardings_in(self.state), steps_of(experiment, materials)
        step = make_step(experiment, pair, optimizer, total, where)
        few = list(itertools.islice(self.read(), _AT_A_TIME))
        self.tokens = float(np.mean([batch["attention_mask"].sum() for batch in few]))
        # Of one length, so that there is one program: the longest of these.
        longest = max(few, key=lambda batch: batch["input_ids"].shape[1])
        few = [batch for batch in few if batch["input_ids"].shape == longest["input_ids"].shape]
        self.batches = itertools.cycle([to_global(batch, self.mesh) for batch in few])
        self.program = step.lower(self.state, *self.fixed, next(self.batches)).compile()

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """The batches of the run from its text on disk."""
        return iter(train_batches(self.sequences, seed=self.seed, **self.options))

    def make(self) -> None:
        """One step, to its end."""
        self.state, metrics = self.program(self.state, *self.fixed, next(self.batches))
        jax.block_until_ready((self.state, metrics))


def run() -> None:
    experiment = dataclasses.replace(command.settings_of(_CONFIG), arms={})
    say = say_on(Console(stderr=True))
    folder = command.required(_WORKDIR)
    if experiment.training.compilation_cache:
        enable_compilation_cache(folder / "run")
    with open_workdir(folder, experiment) as workdir:
        steps = Steps(experiment, prepare(experiment, [experiment], say))
        with jax.set_mesh(steps.mesh):
            record = measured(steps, workdir.folder / "trace")
        record |= {
            "command": command.typed("profile_step"),
            "machine": machine.describe(),
            "versions": machine.versions(),
        }
        records.write_json(workdir.folder / "profile_step.json", record)
    for table in (overall(record), by_product(record)):
        Console().print(tables.terminal(table))


def measured(steps: Steps, folder: Path) -> dict[str, Any]:
    """Seconds of all turns, and what the trace says of the products."""
    large = large_product()

    def several(call: Callable[[], None]) -> Callable[[], None]:
        return lambda: [call() for _ in range(_AT_A_TIME)] and None

    calls = [several(call) for call in (steps.make, large)]
    for call in calls:
        call()
    turns = speed.take_turns(calls, _ROUNDS.value, clock=speed.CLOCKS["wall"]) / _AT_A_TIME
    reading = read_alone(steps)
    jax.profiler.start_trace(str(folder))
    try:
        alternating = speed.take_turns(
            [steps.make, large], _TRACED.value, clock=speed.CLOCKS["wall"]
        )
    finally:
        jax.profiler.stop_trace()
    text = steps.program.as_text()
    known = matrix_work.products(text)
    rows, busy = matrix_work.executed(folder, known, matrix_work.module_of(text))
    return {
        "tokens_a_step": steps.tokens,
        "seconds": dict(zip(("step", "large"), turns.T.tolist(), strict=True)) | {"input": reading},
        "traced": {
            "steps": _TRACED.value,
            "step_seconds": float(alternating[:, 0].sum()),
            "large_seconds": alternating[:, 1].tolist(),
            "busy_seconds": busy,
            "flops": sum(row.flops for row in rows),
        },
        "products": [
            {
                "shapes": row.product.shapes,
                "times": row.times,
                "flops": row.flops,
                "seconds": row.seconds,
            }
            for row in matrix_work.by_shapes(rows)
        ],
    }


def read_alone(steps: Steps) -> list[float]:
    """Seconds of a batch, in parts of a pass that is longer than what is read ahead."""
    source, seconds = steps.read(), []
    for part in range(_PARTS):
        begin = time.perf_counter()
        for batch in itertools.islice(source, _PART):
            jax.block_until_ready(to_global(batch, steps.mesh))
        if part:  # The first starts the workers.
            seconds.append((time.perf_counter() - begin) / _PART)
    return seconds


def large_product() -> Callable[[], None]:
    """A call that makes one product of two large float32 matrices."""
    side = jax.device_put(jnp.ones((_LARGE, _LARGE), jnp.float32), jax.local_devices()[0])
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(side, side))


def overall(record: dict[str, Any]) -> tables.Table:
    """The few numbers that this is for."""
    seconds = {name: float(np.median(turns)) for name, turns in record["seconds"].items()}
    traced = record["traced"]
    rate = traced["flops"] / traced["busy_seconds"]
    # Of all the time on both sides: what else the machine did is in both.
    large = 2 * _LARGE**3 / float(np.mean(traced["large_seconds"]))
    tokens = record["tokens_a_step"]
    each = traced["flops"] / traced["steps"]
    rows = (
        ("step, ms", tables.number(1e3 * seconds["step"], 1)),
        ("large product, GFLOP/s", tables.number(large / 1e9, 0)),
        ("matrix work of the step, GFLOP", tables.number(each / 1e9, 2)),
        ("  its rate while it runs, GFLOP/s", tables.number(rate / 1e9, 0)),
        ("  over that of the large product, %", tables.percent(rate / large)),
        (
            "  share of the step's time, %",
            tables.percent(traced["busy_seconds"] / traced["step_seconds"]),
        ),
        (
            "matrix work over the whole step's time, % of large",
            tables.percent(each / seconds["step"] * seconds["large"] / (2 * _LARGE**3)),
        ),
        ("tokens/s of the step", tables.number(tokens / seconds["step"], 0)),
        ("tokens/s of the input alone", tables.number(tokens / seconds["input"], 0)),
        ("input over step", tables.number(seconds["step"] / seconds["input"], 1)),
    )
    turns = len(record["seconds"]["step"])
    note = (
        f"Medians of {turns} turns of {_AT_A_TIME}; rates of the products from a trace of "
        f"{traced['steps']} steps with a large product beside each."
    )
    return tables.Table("The step", ("", "Measured"), rows, note)


def by_product(record: dict[str, Any]) -> tables.Table:
    """Which products take the time, and how fast each is."""
    steps, total = record["traced"]["steps"], record["traced"]["step_seconds"]
    rows = tuple(
        (
            row["shapes"],
            tables.number(row["times"] / steps, 1),
            tables.percent(row["seconds"] / total),
            tables.number(row["flops"] / row["seconds"] / 1e9, 0),
        )
        for row in record["products"][:_SHOWN]
    )
    columns = ("Product", "Times a step", "Share of time, %", "GFLOP/s")
    note = "Products that run at the same time each count their whole time here."
    return tables.Table("Its slowest products", columns, rows, note)


if __name__ == "__main__":
    command.main(run)
