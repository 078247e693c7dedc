"""How fast a task is fine-tuned here and by torch: steps of one and the same run, taking turns.

    pip install -e '.[demo,tasks,parity]'
    python -m experiments.time_tuning --config=configs/sst2.py --data=SST2_FOLDER --threads=2

The two sides of `experiments.beside_transformers`, with as many rows of the same data in a batch;
each makes --rounds steps of its first epoch. Ours draws them from anywhere in it, since its batches
are of texts of like lengths; the other side's are of texts at random, each padded to the longest of
its batch. Whatever else the machine does meets both alike. Seconds are of whole steps, from the
rows' numbers to the new weights. Compiling is told apart: a whole run compiles one program for each
shape of its epoch. The ratio is their seconds over ours, of all rounds, with its 95% interval over
them (bootstrap). With other work on the machine take --clock=cpu.
"""

import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from jaxtyping import Float
from ml_collections import config_flags
from rich.console import Console

from distilflax.evaluate import intervals, speed, tables
from distilflax.tasks import data
from distilflax.tasks.finetune import on_labels
from distilflax.tasks.settings import FineTuning, from_values
from distilflax.tasks.stage import program_of
from distilflax.train import machine, records, sharding
from distilflax.train.progress import say_on
from experiments import command, torch_tuning

_CONFIG = config_flags.DEFINE_config_file("config", None, "A task's file of configs/.")
_DATA = flags.DEFINE_string("data", None, "Folder of that task's data.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of both, and cores.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Steps of each.", 2)
_CLOCK = flags.DEFINE_enum(
    "clock", "wall", list(speed.CLOCKS), "Whose seconds: passed, or of the processor."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for everything that was measured.")

_LIBRARIES = ("torch", "transformers", "sentence-transformers")


def run() -> None:
    settings = from_values(command.task_values_of(_CONFIG, _DATA))
    output = command.file_of(_OUTPUT)
    torch_tuning.check_config(settings)
    command.keep_to_cores(_THREADS.value)
    materials = data.prepare(settings, say_on(Console(stderr=True)))
    torch_tuning.check(settings, materials)
    theirs = torch_tuning.Learner(settings, materials)
    theirs.torch.set_num_threads(_THREADS.value)
    mesh = sharding.make_mesh(settings.mesh, settings.training.batch_size)
    with jax.set_mesh(mesh):
        ours, programs = _ours(settings, materials, mesh, int(theirs.epoch_steps))
        theirs.step()  # What torch does on its first step only is not counted either.
        seconds = speed.take_turns(
            (ours, theirs.step), _ROUNDS.value, clock=speed.CLOCKS[_CLOCK.value]
        )
    record = {
        "command": command.typed("time_tuning"),
        "clock": _CLOCK.value,
        "threads": _THREADS.value,
        "rows": settings.training.batch_size * materials.task.together,
        "programs": programs,
        "seconds": {"distilflax": seconds[:, 0].tolist(), "torch": seconds[:, 1].tolist()},
        "ratio": ratio(seconds),
        "environment": machine.record() | {"versions": machine.versions(_LIBRARIES)},
    }
    Console().print(tables.terminal(_table(record)))
    if output:
        records.write_json(output, record)


def _ours(
    settings: FineTuning, materials: data.Materials, mesh: jax.sharding.Mesh, epoch_steps: int
) -> tuple[Callable[[], None], dict]:
    """A call that makes the next step, whose program is compiled; and of how many programs that
    was, the seconds of compiling them, and how many a whole epoch has."""
    stage = on_labels(settings, materials, mesh)
    programs = [program_of(stage.collate(stage.batch_at(step))) for step in range(epoch_steps)]
    drawn = np.random.default_rng(settings.seed).permutation(epoch_steps)
    turns = [int(drawn[turn % epoch_steps]) for turn in range(_ROUNDS.value)]
    first_of = {programs[step]: step for step in turns}
    current, compiled, taken = stage.fresh, {}, 0.0
    for program, number in first_of.items():
        batch, begin = stage.collate(stage.batch_at(number)), time.perf_counter()
        compiled[program] = stage.step.lower(current, batch, *stage.constants).compile()
        taken += time.perf_counter() - begin
        # A first call allocates what the others use again.
        current, _ = compiled[program](current, batch, *stage.constants)
        jax.block_until_ready(current)
    coming = iter(stage.batch_at(number) for number in turns)

    def step() -> None:
        nonlocal current
        batch = stage.collate(next(coming))
        current, _ = compiled[program_of(batch)](current, batch, *stage.constants)
        jax.block_until_ready(current)

    found = {"compiled": len(compiled), "seconds": taken, "of_an_epoch": len(set(programs))}
    return step, found


def ratio(seconds: Float[np.ndarray, "rounds 2"]) -> dict[str, float]:
    """The other side's seconds over ours, and its interval over the rounds."""
    return intervals.compare_means(seconds[:, 1], seconds[:, 0]).retention._asdict()


def _table(record: dict) -> tables.Table:
    rows = []
    for side, seconds in record["seconds"].items():
        mean = float(np.mean(seconds))
        rows.append((side, tables.number(mean, 3), tables.number(record["rows"] / mean, 1)))
    rows.append(("ratio", tables.interval(record["ratio"], 1.0, 2), ""))
    programs = record["programs"]
    note = (
        f"Means of {_ROUNDS.value} steps each. {programs['compiled']} programs took "
        f"{programs['seconds']:.0f} s to compile; a whole epoch has {programs['of_an_epoch']}."
    )
    return tables.Table("Steps of fine-tuning", ("Side", "s/step", "rows/s"), tuple(rows), note)


if __name__ == "__main__":
    command.main(run)
