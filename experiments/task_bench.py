"""A task of `task_results`: its runs, and what is measured beside them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distilflax import settings, weights
from distilflax.errors import UserError
from distilflax.evaluate import classic, fine_tuned
from distilflax.search import exact
from distilflax.tasks import data
from distilflax.tasks.finetune import MODEL
from distilflax.tasks.settings import FineTuning
from distilflax.train import records
from distilflax.train.workdir import flat

# A task whose models are put to other data too, unchanged: (its folder, its file).
ZERO_SHOT = {"subjqa": ("xquad", "test.en.json")}
TEACHER, TAUGHT = "teacher", "+"
TIMED = (TEACHER, "copied", "distilled")  # a student that was taught is the same program
_SHOWN = 10  # of a query's answers, in what is timed
# What a command says of every run, and by what.
_DECIDED = {
    "seed": "--seeds",
    "model.path": "--teacher and --distilled",
    "data.folder": "--data",
    "training.seeds": "--seeds",
    "distillation.teacher": "the fine-tuned --teacher",
}
# What of it a baseline, an answer or the seconds of one depend on: how a model was trained changes
# its weights, and not the program.
_MEASURED_BY = ("task", "options.", "data.", "model.", "compute.dtype", "training.batch_size")


@dataclass
class Bench:
    """A task with its folder of runs, and what was measured in there so far."""

    name: str
    run: FineTuning
    taught: FineTuning  # the same, for students with a teacher
    folder: Path
    rates: list[float]
    # By arm: the figure on development data at each rate, and by seed those on test data.
    tried: dict[str, dict[float, float]] = field(default_factory=dict)
    runs: dict[str, dict[int, dict]] = field(default_factory=dict)
    zero_shot: dict[str, dict[int, dict]] = field(default_factory=dict)
    measured: dict = field(default_factory=dict)
    # By part of the data: its fingerprint, and the first place that is of it.
    data: dict[str, tuple[str, Path]] = field(default_factory=dict)

    def rate(self, arm: str) -> float:
        """The learning rate that was best on development data, untaught; the one that there is."""
        tried = self.tried.get(arm.removesuffix(TAUGHT), {})
        return max(tried, key=tried.get) if tried else self.rates[0]

    def place(self, arm: str, seed: int, rate: float | None = None) -> Path:
        rate = self.rate(arm) if rate is None else rate
        return self.folder / arm / f"rate{rate:g}" / f"seed{seed}"

    def shares(self, figures: dict) -> dict:
        """The same as shares of 1: those of answers are percent."""
        scale = 0.01 if self.run.task == "answering" else 1.0
        return {name: scale * value for name, value in figures.items()}

    def check_data(self, of: Mapping[str, str], place: Path) -> None:
        """Whether what was left in `place` is of the data that all other runs are of: a mean over
        seeds of different data says nothing. `of` are fingerprints by part.

        Raises:
          UserError: it is not.
        """
        for part, found in of.items():
            known, where = self.data.setdefault(part, (found, place))
            if known != found:
                raise UserError(
                    f"{where} and {place} are of different {part} data; delete one of them, and "
                    "the same command makes it again of the data that there are now."
                )

    def check_coming(self, of: Mapping[str, str], folder: str) -> None:
        """The same of data in `folder` that were read, before anything is made of them.

        Raises:
          UserError: what is there already is of other data.
        """
        for part, found in of.items():
            known, where = self.data.get(part, (found, None))
            if known != found:
                raise UserError(
                    f"{where} is of other {part} data than there are in {folder} now; delete it, "
                    "and the same command makes it again, or bring back what it was made of."
                )


def check_given(given: str, flag: str, *, rates: bool) -> None:
    """
    Args:
      given: key=value of a task's config, of which `flag` is what the user wrote.
      rates: whether learning rates are tried.

    Raises:
      UserError: the command decides that itself, and the value would stand in the report alone.
    """
    decided = _DECIDED | ({"optimizer.learning_rate": "--rates"} if rates else {})
    key = given.partition("=")[0]
    if key in decided:
        raise UserError(f"{flag}: {key} is decided by {decided[key]}; leave it out.")


def check_run(name: str, run: FineTuning) -> None:
    """
    Raises:
      UserError: models cannot be put to the task as its config says.
    """
    if run.training.mode != "full":
        raise UserError(
            f"config.training.mode of {name} is {run.training.mode!r}, and whole models are "
            "fine-tuned here; leave it out, or take experiments.finetune for it."
        )
    if not run.data.test:
        raise UserError(
            f"config.data.test of {name} is empty; give the file that all models are judged by."
        )


def parts_of(sources: Mapping[str, str], run: FineTuning) -> dict[str, str]:
    """The fingerprints of the data alone. Training data that texts without a label were added to,
    of taught students, are another part than those that were not."""
    own = {"train": "train"} if not run.data.unlabelled else {"train": "train with unlabelled"}
    names = own | {"dev": "dev", "test": "test"}
    return {name: sources[part] for part, name in names.items() if part in sources}


def on_other_data(
    bench: Bench,
    folder: Path,
    run: FineTuning,
    source: Path,
    say: Callable[[str], None],
    *,
    make: bool,
) -> dict[str, float] | None:
    """The figures of a fine-tuned model on the data of `ZERO_SHOT`, where every question has an
    answer: the best one is taken, however likely none seems. None where there are none yet and
    none are to be made.

    Raises:
      UserError: those of other runs are of other data, or these of another model.
    """
    name, file = ZERO_SHOT[bench.name]
    path = folder / f"{name}.json"
    if not (make or path.is_file()):
        return None
    made_of = _weights_of(folder / MODEL)
    if path.is_file():
        figures = bench.run.reported or (data.task_of(bench.run).metric,)
        found = records.read_json(path, figures)
        if _is_of(found.pop("made_of", None), made_of, path):
            bench.check_data(found.pop("data"), path)
            return bench.shares(found)
    if not make:
        return None
    there = replace(run, data=replace(run.data, folder=str((source / name).absolute()), test=file))
    reader = data.Reader(there, say)
    examples = reader.examples(data.task_of(there), "test", file)
    read = {name: data.fingerprint(examples)}
    bench.check_coming(read, there.data.folder)
    model = fine_tuned.load(str(folder / MODEL), name, there, examples)
    model = replace(model, task=replace(model.task, unanswerable=False))
    examples = reader.checked(model.task, "test", examples)
    figures = model.task.metrics(model.predict(examples), examples)
    records.write_json(path, figures | {"made_of": made_of, "data": read})
    bench.check_data(read, path)
    return bench.shares(figures)


def _weights_of(folder: Path) -> dict[str, str]:
    """Fingerprints of the fine-tuned model in a folder."""
    found = weights.load(str(folder), with_task_head=True)
    return {"model": found.fingerprint, "head": weights.fingerprint_of_head(found.params)}


def _made_of(run: FineTuning, models: Mapping[str, str]) -> dict:
    """What is measured beside the runs of a task is made of this, as JSON has it, and of the data;
    `models` are fingerprints by arm."""
    config = flat(json.loads(settings.to_json(run)))
    return {
        key: value
        for key, value in config.items()
        if key.startswith(_MEASURED_BY) and key not in _DECIDED
    } | {f"model called {arm}": models[arm] for arm in TIMED}


def _is_of(known: Mapping | None, made_of: Mapping, path: Path) -> bool:
    """Whether what is in `path` counts; not where it does not say what it is made of.

    Raises:
      UserError: it is made of something else, and would stand beside what it does not belong to.
    """
    if known is None:
        return False
    keys = [key for key in known | made_of if known.get(key) != made_of.get(key)]
    if keys:
        raise UserError(
            f"{path} was measured with another {' and '.join(keys[:3])} than there is now; delete "
            "it, and the same command makes it again, or bring back what it was made of."
        )
    return True


def measured(
    bench: Bench,
    seed: int,
    models: Mapping[str, str],
    ended_at: Callable[[str], Path | None],
    materials: Callable[[], data.Materials],
    *,
    make: bool,
) -> dict:
    """The baseline's figures, and seconds for 1,000 test examples of each program; nothing where
    they are not there and not to be made, or one of the models has not been fine-tuned yet.

    Args:
      models: by arm the fingerprint of what is fine-tuned.
      ended_at: says where a run of an arm has ended, whichever command made it.

    Raises:
      UserError: they are of other data than the runs, or of another config or models.
    """
    path, made_of = bench.folder / "measured.json", _made_of(bench.run, models)
    if path.is_file():
        found = records.read_json(path, ["seconds_per_1000"])
        if _is_of(found.get("made_of"), made_of, path):
            sources = {part: of["fingerprint"] for part, of in found["data"].items()}
            bench.check_data(parts_of(sources, bench.run), path)
            return found
    places = {arm: ended_at(arm) for arm in TIMED} if make else {}
    if not places or None in places.values():
        return {}
    ready = materials()
    bench.check_coming(parts_of(ready.fingerprints, bench.run), bench.run.data.folder)
    examples = ready.test.examples
    compared = {
        arm: fine_tuned.load(str(place / MODEL), arm, bench.run, examples)
        for arm, place in places.items()
    }
    answers = {arm: model.predict for arm, model in compared.items()}
    asked = examples
    if bench.run.task == "retrieval" and any(e.is_document for e in examples):
        asked = [e for e in examples if not e.is_document]
        documents = [e for e in examples if e.is_document]
        answers = {arm: _searching(model, documents) for arm, model in compared.items()}
    simple = classic.baseline(ready, data.learned_from(ready, bench.run.data.fraction, seed))
    if simple is not None:
        answers["classic"] = simple.answer
    seconds = fine_tuned.seconds(list(answers.values()), asked)
    found = {
        "made_of": made_of,
        "classic": simple and {"name": simple.name, "figures": bench.shares(simple.figures)},
        "seconds_per_1000": dict(zip(answers, map(float, seconds), strict=True)),
        "notes": [f"{bench.name}: {note}" for note in ready.notes],
        "data": {
            part: {"examples": len(of.examples), "fingerprint": ready.fingerprints[part]}
            for part, of in (("train", ready.train), ("dev", ready.dev), ("test", ready.test))
        },
    }
    records.write_json(path, found)
    return found


def unmeasured(name: str) -> str:
    """What a report without `measured` says of it."""
    arms = " ".join(f"--arms={arm}" for arm in TIMED)
    return (
        f"{name}: its classic baseline, seconds and data were not measured; the same command does "
        f"it with --noreport --tasks={name} --seeds=1 {arms}."
    )


def _searching(model: fine_tuned.FineTuned, documents: list) -> Callable[[list], np.ndarray]:
    """From queries to the documents that are nearest, whose vectors are made beforehand."""
    known = np.concatenate([found["vectors"] for found in model.predict(documents)])

    def answer(queries: list) -> np.ndarray:
        asked = np.concatenate([found["vectors"] for found in model.predict(queries)])
        return exact.nearest(asked, known, _SHOWN)[1]

    return answer
