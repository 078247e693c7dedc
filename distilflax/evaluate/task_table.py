"""Fine-tuned models on several tasks under several seeds: the report, its tables and its pages.

Seeds are the unit, as in `ablation.py`: an arm's mean has an interval by Student's t over its runs,
and arms are held against each other seed by seed. Figures are shares of 1 throughout, whatever unit
a task's own scorer has, and are shown in percent.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilflax.errors import UserError, choose_from
from distilflax.evaluate import plots, task_plot
from distilflax.evaluate.intervals import over_runs
from distilflax.evaluate.tables import MISSING, Table, interval, made_with, markdown, number
from distilflax.train import machine, records

FILE = "task_results"
VERSION = 1
AVERAGE = "macro average"
_PERCENT = 100.0

# Of one arm: by seed its figures, each a share of 1.
Runs = Mapping[int, Mapping[str, float]]


class Put(NamedTuple):
    """A task, and what was measured on it.

    `figures` are those to be shown, the first being the task's own; with `averaged` it counts in
    the average over the tasks. `classic` is (name, figures) of the baseline that needs no training
    of a network; `seconds` are for 1,000 examples, by arm, the baseline's under "classic"; `tried`
    are by arm the learning rates and their figures on development data.
    """

    name: str
    figures: tuple[str, ...]
    runs: Mapping[str, Runs]
    averaged: bool = True
    classic: tuple[str, Mapping[str, float]] | None = None
    seconds: Mapping[str, float] = {}
    tried: Mapping[str, Mapping[float, float]] = {}


def build(
    tasks: Sequence[Put],
    arms: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    **facts: Any,
) -> dict[str, Any]:
    """The report as a dict that JSON can hold.

    Args:
      arms: their names; of the first one it is told what the others keep.
      pairs: (arm, other arm) that are subtracted from each other.
      facts: anything else that the record should hold, such as `command` and `config`.

    Raises:
      UserError: a figure that the task does not have.
    """
    entries = [_entry(task, arms, pairs) for task in tasks]
    averaged = [task for task in tasks if task.averaged]
    if len(averaged) > 1:
        runs = {arm: _average(averaged, arm) for arm in arms}
        whole = Put(AVERAGE, (AVERAGE,), runs, classic=_average_of_classic(averaged))
        entries.append(_entry(whole, arms, pairs) | {"of": [task.name for task in averaged]})
    return records.plain(
        {
            "version": VERSION,
            **facts,
            "arms": list(arms),
            "pairs": [list(pair) for pair in pairs],
            "tasks": entries,
            "machine": machine.describe(),
            "versions": machine.versions(),
        }
    )


def _entry(task: Put, arms: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict:
    runs = {arm: task.runs.get(arm, {}) for arm in arms}
    for name in task.figures:
        known = {key for of_seeds in runs.values() for found in of_seeds.values() for key in found}
        if known and name not in known:
            raise UserError(
                f"config.reported of {task.name} has {name!r}; {choose_from(name, sorted(known))}"
            )
    first = runs[arms[0]]
    primary = task.figures[0]
    return {
        "name": task.name,
        "figures": list(task.figures),
        "averaged": task.averaged,
        "runs": {arm: dict(of_seeds) for arm, of_seeds in runs.items()},
        "means": {
            arm: {
                name: over_runs([f[name] for f in of_seeds.values()])._asdict()
                for name in task.figures
            }
            for arm, of_seeds in runs.items()
        },
        "kept": {
            arm: _paired(of_seeds, first, primary, _share)
            for arm, of_seeds in list(runs.items())[1:]
        },
        "differences": [
            _paired(runs[one], runs[other], primary, operator.sub) for one, other in pairs
        ],
        "classic": task.classic and {"name": task.classic[0], "figures": dict(task.classic[1])},
        "seconds_per_1000": dict(task.seconds),
        "tried": {arm: dict(figures) for arm, figures in task.tried.items()},
    }


def _average(tasks: Sequence[Put], arm: str) -> dict[int, dict[str, float]]:
    """Of those seeds that were run on every task."""
    runs = [task.runs.get(arm, {}) for task in tasks]
    seeds = sorted(set.intersection(*map(set, runs)))
    return {
        seed: {
            AVERAGE: float(
                np.mean([of[seed][task.figures[0]] for of, task in zip(runs, tasks, strict=True)])
            )
        }
        for seed in seeds
    }


def _average_of_classic(tasks: Sequence[Put]) -> tuple[str, dict[str, float]] | None:
    if any(task.classic is None or task.figures[0] not in task.classic[1] for task in tasks):
        return None
    found = [task.classic[1][task.figures[0]] for task in tasks]
    return "of each task", {AVERAGE: float(np.mean(found))}


def _share(own: float, other: float) -> float | None:
    # Of a score of 0 or less (a correlation may have one) nothing can be kept.
    return own / other if other > 0 else None


def _paired(
    ours: Runs, theirs: Runs, name: str, compare: Callable[[float, float], float | None]
) -> dict:
    """Over the seeds that both have, and that there is something to say of."""
    found = [compare(ours[seed][name], theirs[seed][name]) for seed in ours if seed in theirs]
    return over_runs([value for value in found if value is not None])._asdict()


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Scores, what is kept, differences, learning rates where they were chosen, seconds."""
    chosen = [_rates(report)] if _were_chosen(report) else []
    return [_scores(report), _kept(report), _differences(report), *chosen, _seconds(report)]


def _scores(report: Mapping[str, Any]) -> Table:
    arms, rows = report["arms"], []
    for task in report["tasks"]:
        for name in task["figures"]:
            classic = (task["classic"] or {"figures": {}})["figures"].get(name)
            called = AVERAGE if task["name"] == AVERAGE else f"{task['name']}, {name}"
            rows.append(
                (
                    called,
                    number(None if classic is None else _PERCENT * classic, 1),
                    *(interval(task["means"][arm][name], _PERCENT, 1) for arm in arms),
                )
            )
    baselines = "; ".join(
        f"{task['name']}: {task['classic']['name']}"
        for task in report["tasks"]
        if task["classic"] and task["name"] != AVERAGE
    )
    apart = ", ".join(task["name"] for task in report["tasks"] if not task["averaged"])
    note = (
        f"Test data, in percent; means over {_seeds(report)}, with 95% intervals by Student's t "
        f"where there are several{_fewer(report)}. The first figure of a task, named in its config "
        f"beforehand, counts in the average{f' (not of {apart})' if apart else ''}, which is of "
        f"the seeds that an arm has on all. The classic baselines: {baselines or 'none'}."
    )
    return Table("Scores", ("Task", "classic", *arms), tuple(rows), note)


def _kept(report: Mapping[str, Any]) -> Table:
    students = report["arms"][1:]
    rows = [
        (task["name"], *(interval(task["kept"][arm], _PERCENT, 1) for arm in students))
        for task in report["tasks"]
    ]
    note = f"Percent of {report['arms'][0]}'s first figure, seed by seed."
    return Table(f"Kept of {report['arms'][0]}", ("Task", *students), tuple(rows), note)


def _differences(report: Mapping[str, Any]) -> Table:
    columns = [f"{one} − {other}" for one, other in report["pairs"]]
    rows = [
        (task["name"], *(interval(found, _PERCENT, 2) for found in task["differences"]))
        for task in report["tasks"]
    ]
    note = "Points of the first figure, paired by seed."
    return Table("Differences", ("Task", *columns), tuple(rows), note)


def _were_chosen(report: Mapping[str, Any]) -> bool:
    return any(len(of) > 1 for task in report["tasks"] for of in task["tried"].values())


def _rates(report: Mapping[str, Any]) -> Table:
    """Every arm's rate; a rate at the end of those tried stands beside what it might have been."""
    arms = [arm for arm in report["arms"] if any(arm in t["tried"] for t in report["tasks"])]
    rows = [
        (task["name"], *(_best(task["tried"].get(arm)) for arm in arms))
        for task in report["tasks"]
        if task["tried"]
    ]
    note = (
        "Of each model the one that was best on development data under the first seed, in "
        "brackets how far the worst one was behind, in points. ↑, ↓: the highest or lowest that "
        "was tried, so that one beyond it may be better. A student that is taught takes that of "
        "the one that is not."
    )
    return Table("Learning rates", ("Task", *arms), tuple(rows), note)


def _best(tried: Mapping[str, float] | None) -> str:
    if not tried:
        return MISSING
    figures = {float(rate): figure for rate, figure in tried.items()}
    rate = max(figures, key=figures.get)
    behind = number(_PERCENT * (figures[rate] - min(figures.values())), 1)
    ends = {max(figures): " ↑", min(figures): " ↓"} if len(figures) > 1 else {}
    return f"{rate:g}{ends.get(rate, '')} ({behind})"


def _seconds(report: Mapping[str, Any]) -> Table:
    arms = [a for a in report["arms"] if any(a in t["seconds_per_1000"] for t in report["tasks"])]
    rows = []
    for task in report["tasks"]:
        of = task["seconds_per_1000"]
        if of:
            rows.append((task["name"], *(number(of.get(arm)) for arm in ("classic", *arms))))
    note = (
        "From text to prediction on this machine, compiled beforehand, the models taking turns; of "
        "retrieval, queries against vectors that are there. A student that was taught is the same "
        "program."
    )
    return Table("Seconds for 1,000 examples", ("Task", "classic", *arms), tuple(rows), note)


def _seeds(report: Mapping[str, Any]) -> str:
    seeds = _united(_seeds_of(task) for task in report["tasks"])
    return f"seed{'s' * (len(seeds) != 1)} {_listed(seeds)}" if seeds else "no runs"


def _fewer(report: Mapping[str, Any]) -> str:
    """Which tasks, and which arms of a task, have fewer seeds than others; what has none is a
    dash."""
    tasks = [task for task in report["tasks"] if task["name"] != AVERAGE]
    every = _united(map(_seeds_of, tasks))
    found: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        of_task = _united([_seeds_of(task)])
        if of_task and of_task != every:
            found.setdefault(("", _listed(of_task)), []).append(task["name"])
        for arm, seeds in _seeds_of(task).items():
            if seeds and seeds != of_task:
                found.setdefault((f"{arm} of ", _listed(seeds)), []).append(task["name"])
    told = [f"{who}{', '.join(names)}: {seeds}" for (who, seeds), names in found.items()]
    return f" (fewer seeds: {'; '.join(told)})" if told else ""


def _seeds_of(task: Mapping[str, Any]) -> dict[str, set[int]]:
    """By arm; JSON has them as texts."""
    return {arm: set(map(int, runs)) for arm, runs in task["runs"].items()}


def _united(found: Iterable[Mapping[str, set[int]]]) -> set[int]:
    return {seed for by_arm in found for seeds in by_arm.values() for seed in seeds}


def _listed(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def write(folder: Path, report: Mapping[str, Any]) -> Path:
    """Writes task_results.json, .md and the figure; returns the path of the .md.

    Raises:
      UserError: the folder cannot be written.
    """
    drawn = plots.available() and any(
        mean["value"] is not None
        for task in report["tasks"]
        for means in task["means"].values()
        for mean in means.values()
    )
    if drawn:
        plots.save(task_plot.figure(report), folder / f"{FILE}.png")
    records.write_json(folder / f"{FILE}.json", report)
    records.write_text(folder / f"{FILE}.md", to_markdown(report, drawn))
    return folder / f"{FILE}.md"


def to_markdown(report: Mapping[str, Any], drawn: bool) -> str:
    """The text of `task_results.md`."""
    parts = [f"# {report['title']}", *map(markdown, tables(report))]
    if drawn:
        caption = "Each dot is a run; bars are 95% intervals over seeds; the line is the baseline"
        parts.insert(2, f"![{caption}]({FILE}.png)\n\n*{caption}.*")
    arms = [f"- **{name}**: {text}" for name, text in report["explained"].items()]
    parts.append("## The models\n\n" + "\n".join(arms))
    if report["notes"]:
        parts.append("## What was left out\n\n" + "\n".join(f"- {n}" for n in report["notes"]))
    return "\n\n".join([*parts, *made_with(report)]) + "\n"
