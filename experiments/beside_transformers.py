"""Fine-tuning here and by torch with transformers: same weights, data, budget, figures; one table.

    pip install -e '.[demo,tasks,parity]'
    python -m experiments.beside_transformers --config=configs/sst2.py --data=SST2_FOLDER \\
        --workdir=runs/beside/sst2 --seeds=3

The other side is the loop of transformers' example scripts with the config's values: AdamW without
decay on biases and LayerNorms, the schedule with its warm-up, gradients clipped, batches in random
order and padded to their longest text (the scripts' own default, padding to a fixed length, would
be slower still). It reads the same rows, makes as many steps, is measured as often by the same
figures, and its best state counts too. Seconds are of training steps; ours are without compiling,
which is told apart. One runs after the other: on a machine with other work compare seconds of
several runs. Texts or pairs of texts with one label or one number each, tagging, answers out of a
text, and vectors, of which the other side is sentence-transformers with its losses. Each run that
has ended is kept in the workdir, and not run again. On a machine with a GPU both use it, which has
not been tried yet.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax.errors import UserError
from distilflax.evaluate import intervals, tables
from distilflax.tasks import data
from distilflax.tasks.finetune import finetune
from distilflax.tasks.settings import FineTuning, from_values
from distilflax.tasks.teacher import teaching_of
from distilflax.train import machine, records
from distilflax.train.progress import say_on
from distilflax.train.workdir import enable_compilation_cache
from experiments import command, torch_tuning

_CONFIG = config_flags.DEFINE_config_file("config", None, "A task's file of configs/.")
_DATA = flags.DEFINE_string("data", None, "Folder of that task's data.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs; made if it is missing.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs on either side.", lower_bound=1)

_LIBRARIES = ("torch", "transformers", "sentence-transformers")
OURS, THEIRS = "distilflax", "transformers"
STOPPED = 130


def run() -> int:
    settings = from_values(command.task_values_of(_CONFIG, _DATA))
    workdir = command.required(_WORKDIR)
    torch_tuning.check_config(settings)
    console = Console(stderr=True)
    enable_compilation_cache(workdir)
    materials = data.prepare(settings, say_on(console))
    for seed in range(settings.seed, settings.seed + _SEEDS.value):
        torch_tuning.check(replace(settings, seed=seed), materials)
    if materials.test is None:
        raise UserError("config.data.test is empty; give the file that both sides are judged by.")
    runs: dict[str, list[dict]] = {OURS: [], THEIRS: []}
    for seed in range(settings.seed, settings.seed + _SEEDS.value):
        one = replace(settings, seed=seed)
        path = workdir / THEIRS / f"seed{seed}.json"
        theirs = _kept(path, one, materials)  # What is wrong there is told before ours is made.
        runs[OURS].append(_ours(one, materials, workdir / OURS / f"seed{seed}"))
        if runs[OURS][-1] is None:
            return STOPPED
        runs[THEIRS].append(theirs or _made(path, one, materials))
    metric = runs[OURS][0]["metric"]
    report = {
        "command": command.typed("beside_transformers"),
        "metric": metric,
        "runs": runs,
        "environment": machine.record() | {"versions": machine.versions(_LIBRARIES)},
    }
    records.write_json(workdir / "beside.json", report)
    Console().print(tables.terminal(table(runs, metric)))
    return 0


def _ours(run: FineTuning, materials: data.Materials, folder: Path) -> dict | None:
    """The result of experiments.finetune, with the seconds of the whole where it ran through; None
    where a signal stopped it."""
    whole, fresh, begin = folder / "whole.json", not folder.exists(), time.perf_counter()
    # Of a teacher there is none; a config that needs one is told so.
    outcome = finetune(run, materials, folder, teaching_of(run, materials, print))
    if outcome.result is None:
        return None
    if fresh:
        records.write_json(whole, {"whole_seconds": time.perf_counter() - begin})
    taken = json.loads(whole.read_text()) if whole.is_file() else {"whole_seconds": None}
    return outcome.result | taken


def table(runs: dict[str, list[dict]], metric: str) -> tables.Table:
    """A row a side: its figure on development and test data, and what a run of it took."""
    rows = []
    for side, found in runs.items():
        scores = [[one[part][metric] for one in found] for part in ("dev", "test")]
        seconds = [[one[name] for one in found] for name in ("seconds", "whole_seconds")]
        rate = [one["rows_per_second"] for one in found]
        rows.append(
            (
                side,
                *(_shown(values, 4) for values in scores),
                *(_shown(values, 0) for values in seconds),
                _shown(rate, 1),
            )
        )
    columns = (
        "Side", f"{metric}, dev", f"{metric}, test", "training, s", "whole run, s", "rows/s"
    )  # fmt: skip
    note = (
        "Means over the seeds, with 95% intervals by Student's t where there are several; of the "
        "whole, runs that were taken up again have no seconds, and do not count."
    )
    return tables.Table("Fine-tuning side by side", columns, tuple(rows), note)


def _shown(values: list[float | None], digits: int) -> str:
    """The mean of the runs that have such a figure and its interval; a dash where none has."""
    known = [value for value in values if value is not None]
    if not known:
        return tables.MISSING
    return tables.interval(intervals.over_runs(known)._asdict(), 1.0, digits)


def _made_of(settings: FineTuning, materials: data.Materials) -> dict:
    """What a run of the other side is made of, as its file says it."""
    sources = {"config": asdict(settings), "sources": materials.fingerprints}
    return json.loads(json.dumps(sources))


def _kept(path: Path, settings: FineTuning, materials: data.Materials) -> dict | None:
    """The other side's run that has ended; None where none has.

    Raises:
      UserError: it is of another config, model or data.
    """
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    if found.pop("made_of", None) != _made_of(settings, materials):
        raise UserError(
            f"{path} is of another config, model or data; delete it, or take a new folder."
        )
    return found


def _made(path: Path, settings: FineTuning, materials: data.Materials) -> dict:
    """The same run, made and kept."""
    found = torch_tuning.tune(settings, materials)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(path, found | {"made_of": _made_of(settings, materials)})
    return found


if __name__ == "__main__":
    command.main(run)
