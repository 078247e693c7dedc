"""Fine-tune a model on a task, with as many seeds as the config says, and report the figures.

    python -m experiments.finetune --config=configs/sst2.py --data=SST2_FOLDER --workdir=runs/sst2

Any value of the config may be given on the command line:

    --config.model.path=runs/demo/distilled/model    another model
    --config.distillation.teacher=runs/sst2/seed0/model --config.distillation.weight=0.7
    --config.augmentation.model=runs/demo/distilled/model    more texts for that teacher
    --config.intermediate.losses.cosine.weight=1     on its layers (configs/tinybert_task.py)
    --config.data.fraction=0.01                      a hundredth of the training examples
    --config.training.seeds=5 --config.training.patience=2 --config.training.mode=probe

Killed or stopped, the same command goes on where it was. In the workdir:

    report.json   every figure, over all seeds: mean and 95% interval (of a probe probe.json)
    seed0/ ...    a run each: metrics.jsonl, result.json, and model/, an HF folder
"""

import dataclasses

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from distilflax.evaluate import tables
from distilflax.evaluate.intervals import over_runs
from distilflax.tasks import data
from distilflax.tasks.finetune import finetune
from distilflax.tasks.probe import probe
from distilflax.tasks.settings import FineTuning, from_values
from distilflax.tasks.teacher import teaching_of
from distilflax.train import machine
from distilflax.train.progress import say_on
from distilflax.train.records import plain, write_json
from distilflax.train.workdir import enable_compilation_cache
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_DATA = flags.DEFINE_string("data", None, "Folder of the data; stands for config.data.folder.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if it is missing.")


def run() -> int:
    settings = from_values(command.task_values_of(_CONFIG, _DATA))
    workdir = command.required(_WORKDIR)
    console = Console(stderr=True)
    if settings.training.compilation_cache:
        enable_compilation_cache(workdir)

    say = say_on(console)
    materials = data.prepare(settings, say)
    probing = settings.training.mode == "probe"
    teacher = None if probing else teaching_of(settings, materials, say)
    results = []
    for one in runs_of(settings):
        if probing:
            results.append(probe(one, materials))
            continue
        console.rule(f"seed {one.seed}")
        outcome = finetune(one, materials, workdir / f"seed{one.seed}", teacher)
        if outcome.exit_code:
            return outcome.exit_code
        results.append(outcome.result)

    report = plain(report_of(settings, materials, results))
    workdir.mkdir(parents=True, exist_ok=True)
    place = workdir / ("probe.json" if probing else "report.json")
    write_json(place, report)
    Console().print(table_of(report))
    for note in report["notes"]:
        say(note)
    say(f"report: {place}")
    if not probing:
        say(f"model:  {workdir / f'seed{settings.seed}' / 'model'}")
    return 0


def runs_of(settings: FineTuning) -> list[FineTuning]:
    """One run for each seed. How many there are does not belong to any of them: more may be added
    later without starting the others anew."""
    training = dataclasses.replace(settings.training, seeds=1)
    return [
        dataclasses.replace(settings, seed=settings.seed + i, training=training)
        for i in range(settings.training.seeds)
    ]


def report_of(settings: FineTuning, materials: data.Materials, results: list[dict]) -> dict:
    """Every figure over all seeds, and what it was measured with and on."""
    figures = {
        part: {name: over_runs([r[part][name] for r in results])._asdict() for name in found}
        for part, found in results[0].items()
        if part in ("dev", "test")
    }
    parts = {"train": materials.train, "dev": materials.dev, "test": materials.test}
    return {
        "command": command.typed("finetune"),
        "metric": results[0]["metric"],
        "figures": figures,
        "runs": results,
        "notes": materials.notes,
        "data": {
            name: {"examples": len(part.examples), "fingerprint": materials.fingerprints[name]}
            for name, part in parts.items()
            if part is not None
        },
        "model": materials.checkpoint.fingerprint,
        "config": dataclasses.asdict(settings),
        "environment": machine.record(),
    }


def table_of(report: dict) -> Table:
    """The figures as a person reads them."""
    seeds = [run["seed"] for run in report["runs"]]
    title = f"{report['config']['task']}, seeds {', '.join(map(str, seeds))}"
    table = Table(title=title, caption="mean over the seeds [95% interval]" * (len(seeds) > 1))
    table.add_column("figure")
    for part in report["figures"]:
        table.add_column(part, justify="right")
    # Some are of test data alone, such as those of rejections where the others have none.
    for name in dict.fromkeys(name for part in report["figures"].values() for name in part):
        found = [part.get(name) for part in report["figures"].values()]
        cells = [tables.interval(figure, digits=4) for figure in found]
        table.add_row(name + (" (chosen by)" if name == report["metric"] else ""), *cells)
    return table


if __name__ == "__main__":
    command.main(run)
