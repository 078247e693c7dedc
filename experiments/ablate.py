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

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax.evaluate import ablation, grid, tables
from distilflax.train.arms import arms_of, groups_of
from distilflax.train.progress import say_on
from distilflax.train.setup import prepare
from distilflax.train.workdir import enable_compilation_cache, open_workdir
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if it is missing.")


def run() -> int:
    experiment = command.settings_of(_CONFIG)
    folder = command.required(_WORKDIR)
    console = Console(stderr=True)
    say = say_on(console)
    arms = arms_of(experiment)
    groups = groups_of(arms, experiment.ablation.arms_at_once)
    if experiment.training.compilation_cache:
        enable_compilation_cache(folder / "ablation")
    with open_workdir(folder, experiment) as workdir:
        materials = prepare(experiment, arms.values(), say)
        yardstick = ablation.Yardstick(experiment, materials, say)
        ran = grid.run(experiment, groups, materials, yardstick, workdir.folder, say)
        if ran.exit_code or jax.process_index() > 0:
            return ran.exit_code
        called = command.typed("ablate")
        report = grid.report(experiment, arms, yardstick, ran.figures, called)
        path = ablation.write(workdir.folder, report)
        console.print(tables.terminal(ablation.table(report)))
        say(f"table: {path}")
    return 0


if __name__ == "__main__":
    command.main(run)
