"""Which setting earns its place? A grid of arms, many in one program, with error bars.

    python -m experiments.ablate --config=configs/ablation_table4.py --workdir=runs/ablation

Arms are the config itself (`full`), each entry of `config.arms` and each combination of
`config.ablation.grid`; every one is trained under every seed of `config.ablation.seeds`. Arms whose
programs agree are trained together, as one program that runs the teacher once for all of them; each
ends as its own run of `experiments.distill` would, up to rounding. What is evaluated while training
there (`training.evaluate_every`, `gradients_every`) is left out here. Killed or stopped, the same
command goes on where it was. In the workdir:

    ablation.md, ablation.json, ablation.png   the table: means, intervals, paired differences
    groupI/seedS/results.json                  the figures of a group of arms under one seed
    groupI/seedS/ARM/metrics.jsonl             the losses of every step
    groupI/seedS/ARM/model/                    the student, with `config.ablation.save_students`
"""

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax import weights
from distilflax.errors import UserError
from distilflax.evaluate import Model, ablation, tables
from distilflax.settings import Experiment
from distilflax.train.arms import FULL, Group, arms_of, groups_of
from distilflax.train.arms_loop import Together, Trained, members_of
from distilflax.train.records import write_json
from distilflax.train.setup import Materials, prepare
from distilflax.train.workdir import Workdir, enable_compilation_cache, flat, open_workdir
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if it is missing.")

RESULTS = "results.json"


def run() -> int:
    experiment = command.settings_of(_CONFIG)
    folder = command.required(_WORKDIR)
    console = Console(stderr=True)
    arms = arms_of(experiment)
    groups = groups_of(arms, experiment.ablation.arms_at_once)
    if experiment.training.compilation_cache:
        enable_compilation_cache(folder / "ablation")
    with open_workdir(folder, experiment) as workdir:
        materials = prepare(experiment, arms.values(), console.print)
        yardstick = ablation.Yardstick(experiment, materials)
        found: dict[str, dict[int, Any]] = {name: {} for name in arms}
        for number, group in enumerate(groups):
            console.rule(f"group {number}: {', '.join(group.arms)}")
            where = workdir.folder / f"group{number}"
            code = run_group(experiment, group, materials, yardstick, where, console, found)
            if code:
                return code
        if jax.process_index() == 0:
            report(experiment, arms, yardstick, found, workdir.folder, console)
    return 0


def run_group(
    experiment: Experiment,
    group: Group,
    materials: Materials,
    yardstick: ablation.Yardstick,
    folder: Path,
    console: Console,
    found: dict[str, dict[int, Any]],
) -> int:
    """Trains and measures the group's arms under every seed, putting figures into `found`.

    Returns the exit code: not 0 if a signal stopped it.
    """
    together = None
    for seed in experiment.ablation.seeds:
        with open_workdir(folder / f"seed{seed}", members_of(group, seed)) as workdir:
            results = read_results(workdir.folder / RESULTS)
            if results is None:
                together = together or Together(group, materials, console.print)
                console.print(f"seed {seed}")
                trained = together.train(seed, workdir)
                if trained.exit_code:
                    return trained.exit_code
                results = measure(trained, yardstick, experiment, materials, workdir)
            for name, figures in results["figures"].items():
                found[name][seed] = figures
    return 0


def measure(
    trained: Trained,
    yardstick: ablation.Yardstick,
    experiment: Experiment,
    materials: Materials,
    workdir: Workdir,
) -> dict[str, Any]:
    """The figures of each arm, written down; then nothing needs the checkpoints any more."""
    students = [
        Model(name, trained.encoder, params)
        for name, params in trained.params.items()
        if name not in trained.diverged
    ]
    figures = dict.fromkeys(trained.params)
    for student, own in zip(students, yardstick.measure(students), strict=True):
        figures[student.name] = own
    if jax.process_index() > 0:
        return {"figures": figures}
    if experiment.ablation.save_students:
        for student in students:
            weights.save(
                workdir.folder / student.name / "model",
                student.encoder,
                student.params,
                tokenizer_folder=materials.teacher.folder,
                sentence=materials.teacher.sentence,
            )
    results = {
        "figures": figures,
        "diverged": trained.diverged,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": trained.seconds,
    }
    write_json(workdir.folder / RESULTS, results)
    shutil.rmtree(workdir.checkpoints, ignore_errors=True)
    return results


def read_results(path: Path) -> dict[str, Any] | None:
    """What `measure` wrote; None if that has not happened yet."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(
            f"{path} is not JSON any more; delete it, and the same command trains those arms again."
        ) from None


def report(
    experiment: Experiment,
    arms: dict[str, Experiment],
    yardstick: ablation.Yardstick,
    found: dict[str, dict[int, Any]],
    folder: Path,
    console: Console,
) -> None:
    """Writes the table and shows it."""
    (teacher,) = yardstick.measure([yardstick.teacher])
    built = ablation.build(
        found,
        full=FULL,
        metric=experiment.ablation.metric,
        teacher=teacher,
        changes={name: changes(arm, arms[FULL]) for name, arm in arms.items()},
        title=f"Ablation: {experiment.teacher.path} into {experiment.student.num_layers} layers",
        command=shlex.join(["python", "-m", "experiments.ablate", *sys.argv[1:]]),
        config=dataclasses.asdict(experiment),
    )
    path = ablation.write(folder, built)
    console.print(tables.terminal(ablation.table(built)))
    console.print(f"table: {path}")


def changes(arm: Experiment, full: Experiment) -> str:
    """`losses.kl.weight=0.0, student.init=random`: in what an arm differs from the full recipe."""
    ours, theirs = (flat(dataclasses.asdict(one)) for one in (arm, full))
    return ", ".join(f"{key}={ours[key]}" for key in ours if ours[key] != theirs.get(key))


if __name__ == "__main__":
    command.main(run)
