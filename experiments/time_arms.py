"""How much faster are eight arms in one program than eight runs one after another?

    python -m experiments.time_arms --workdir=runs/time_arms

Whole commands are timed, start-up, compilation and evaluation counted: `experiments.ablate` with
the eight arms of configs/ablation_table4.py:eight under one seed, and `experiments.distill` once
for each arm. What any of them would leave for the next is there beforehand or never: tokenised text
and the teacher's head are made first, by a short run that is not counted, and no program is kept
from one command to the next. The sides take turns, `--rounds` times, and the ratio of the medians
is printed and written to `time_arms.json`. On a machine that does other work it says little.
"""

import dataclasses
import json
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from distilflax.errors import UserError
from distilflax.settings import from_config
from distilflax.train import machine
from distilflax.train.arms import FULL, arms_of
from distilflax.train.records import write_json
from distilflax.train.workdir import flat
from experiments import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs; made if it is missing.")
_STEPS = flags.DEFINE_integer("steps", 0, "Updates of every run; 0 as the config.", lower_bound=0)
_ROUNDS = flags.DEFINE_integer("rounds", 1, "How often the two sides take turns.", lower_bound=1)
_VARIANT = flags.DEFINE_enum("variant", "", ["", "runlocal"], "runlocal tries the command out.")

CONFIG = "configs/ablation_table4.py"


def run() -> None:
    folder = command.required(_WORKDIR)
    if folder.exists():
        raise UserError(f"--workdir {folder} is there already; give a new one, to start cold.")
    common = ["--config.training.compilation_cache=False"]
    if _STEPS.value:
        common.append(f"--config.training.steps={_STEPS.value}")
    arms = {name: overrides(name) for name in arms_of(_experiment())}
    call("ablate", "eight", [*common, "--config.training.steps=1"], folder / "warm")
    together, apart = [], []
    for turn in range(_ROUNDS.value):
        where = folder / str(turn)
        together.append(call("ablate", "eight", common, where / "together"))
        apart.append(
            sum(
                call("distill", "alone", [*common, *own], where / name)
                for name, own in arms.items()
            )
        )
    result = {
        "command": command.typed("time_arms"),
        "arms": list(arms),
        "together_seconds": together,
        "apart_seconds": apart,
        "ratio": statistics.median(apart) / statistics.median(together),
        "environment": machine.record(),
    }
    write_json(folder / "time_arms.json", result)
    print(json.dumps(result, indent=1))


def call(entry: str, variant: str, arguments: list[str], workdir: Path) -> float:
    """Seconds of one whole command."""
    variants = ",".join(part for part in (variant, _VARIANT.value) if part)
    arguments = [f"--config={CONFIG}:{variants}", f"--workdir={workdir}", *arguments]
    if entry == "ablate":
        arguments.append("--config.ablation.seeds=(0,)")
    workdir.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with open(f"{workdir}.log", "w") as log:
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{entry}", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise UserError(f"{entry} failed; what it said is in {workdir}.log.")
    print(f"{entry} {workdir.name}: {seconds:.0f} s", flush=True)
    return seconds


def overrides(name: str) -> list[str]:
    """The command line that makes the arm `name` of the full recipe."""
    arms = arms_of(_experiment())
    ours, full = (flat(dataclasses.asdict(arms[which])) for which in (name, FULL))
    return [f"--config.{key}={ours[key]}" for key in ours if ours[key] != full[key]]


def _experiment():
    return from_config(runpy.run_path(CONFIG)["get_config"]("eight"))


if __name__ == "__main__":
    command.main(run)
