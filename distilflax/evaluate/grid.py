"""A grid of arms, trained and measured: from the settings to the report.

What `experiments/ablate.py` and the notebook do. Killed or stopped, the same call goes on where it
was. In its folder:

    groupI/seedS/results.json          the figures of a group of arms under one seed
    groupI/seedS/ARM/metrics.jsonl     the losses of every step
    groupI/seedS/ARM/model/            the student, with `ablation.save_students`
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from distilflax import weights
from distilflax.errors import UserError
from distilflax.evaluate import ablation
from distilflax.evaluate.model import Model
from distilflax.settings import Experiment, to_json
from distilflax.train.arms import FULL, Group
from distilflax.train.arms_loop import Together, Trained, members_of, sources_of
from distilflax.train.records import read_json, write_json
from distilflax.train.setup import Materials, new_student
from distilflax.train.workdir import Workdir, check_sources, flat, open_workdir

RESULTS = "results.json"


class Ran(NamedTuple):
    """What a grid came to.

    figures: by arm and seed what `Yardstick.measure` found; None of a run that diverged.
    folders: by arm and seed where the run's losses and, if it was saved, its student are.
    exit_code: 0, or 128 + the signal that stopped it before all of it was done.
    """

    figures: dict[str, dict[int, dict[str, float | None] | None]]
    folders: dict[str, dict[int, Path]]
    exit_code: int = 0

    def student(self, arm: str, seed: int) -> Model:
        """The student of a run, as it was saved.

        Raises:
          UserError: it was not.
        """
        folder = self.folders[arm][seed] / "model"
        if not folder.is_dir():
            raise UserError(
                f"There is no student of {arm} under seed {seed} in {folder}; set "
                "config.ablation.save_students, and know that a run that diverged leaves none."
            )
        saved = weights.load(folder)
        return Model(arm, saved.encoder, saved.params)


def folder_of(place: str | Path, experiment: Experiment) -> Path:
    """A folder in `place` that is the experiment's own, whatever its seeds.

    The same settings find what they have trained, and more seeds go on from there; others go
    elsewhere, where a workdir would refuse them.
    """
    any_seeds = dataclasses.replace(experiment.ablation, seeds=(0,))
    text = to_json(dataclasses.replace(experiment, ablation=any_seeds))
    return Path(place).expanduser() / hashlib.sha256(text.encode()).hexdigest()[:12]


def untrained(experiment: Experiment, materials: Materials) -> Model:
    """The student before its first step, to hold the trained ones against."""
    return Model("copied", *new_student(experiment, materials), role="copied")


def run(
    experiment: Experiment,
    groups: Sequence[Group],
    materials: Materials,
    yardstick: ablation.Yardstick,
    folder: Path,
    say: Callable[[str], None],
) -> Ran:
    """Trains the groups' arms under every seed of `experiment.ablation`, and measures them.

    Args:
      yardstick: that of the experiment.
      say: is told what is being done.

    Raises:
      UserError: as training and measuring do, or figures in `folder` that other text, another
        teacher or another way of measuring led to.
    """
    names = [name for group in groups for name in group.arms]
    ran = Ran({name: {} for name in names}, {name: {} for name in names})
    # Of several hosts the first one alone has saved.
    wanted = experiment.ablation.save_students and jax.process_index() == 0
    for number, group in enumerate(groups):
        say(f"group {number}: {', '.join(group.arms)}")
        together = None
        for seed in experiment.ablation.seeds:
            place = Path(folder) / f"group{number}" / f"seed{seed}"
            with open_workdir(place, members_of(group, seed)) as workdir:
                results = read_results(workdir.folder / RESULTS)
                if results is not None:
                    mine = sources_of(group, materials) | _measured_by(experiment, yardstick)
                    check_sources(workdir.folder, results["sources"], mine)
                else:
                    together = together or Together(group, materials, say)
                    say(f"seed {seed}")
                    trained = together.train(seed, workdir)
                    if trained.exit_code:
                        return ran._replace(exit_code=trained.exit_code)
                    results = measure(trained, yardstick, experiment, materials, workdir)
                for name, figures in results["figures"].items():
                    ran.figures[name][seed] = figures
                    ran.folders[name][seed] = workdir.folder / name
                    if wanted and figures and not (workdir.folder / name / "model").is_dir():
                        say(
                            f"{name} under seed {seed} had ended without "
                            "config.ablation.save_students, and its student was not kept; delete "
                            f"{workdir.folder} to train it again"
                        )
    return ran


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
            folder = workdir.folder / student.name / "model"
            weights.save_student(folder, student.encoder, student.params, materials.teacher)
    results = {
        "figures": figures,
        "diverged": trained.diverged,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": trained.seconds,
        "sources": trained.sources | _measured_by(experiment, yardstick),
    }
    write_json(workdir.folder / RESULTS, results)
    shutil.rmtree(workdir.checkpoints, ignore_errors=True)
    return results


def _measured_by(experiment: Experiment, yardstick: ablation.Yardstick) -> dict[str, str]:
    """The settings that figures depend on, of those that a workdir lets change, and the data."""
    named = ("batch_size", "masked_lm_batches", "retrieval_length", "retrieval_entries")
    how = experiment.evaluation
    settings = {f"config.evaluation.{name}": str(getattr(how, name)) for name in named}
    return settings | yardstick.outside.fingerprints


def read_results(path: Path) -> dict[str, Any] | None:
    """What `measure` wrote; None if that has not happened yet.

    Raises:
      UserError: it is damaged.
    """
    if not path.exists():
        return None
    again = "delete it, and the same command trains those arms again"
    return read_json(path, ["figures", "sources"], again)


def report(
    experiment: Experiment,
    arms: Mapping[str, Experiment],
    yardstick: ablation.Yardstick,
    figures: Mapping[str, Mapping[int, Any]],
    command: str,
) -> dict[str, Any]:
    """The report of `ablation.build`: every arm of `arms_of` held against the experiment itself.

    Args:
      figures: those of `Ran`.
      command: what made it, for the record.
    """
    (teacher,) = yardstick.measure([yardstick.teacher])
    return ablation.build(
        figures,
        full=FULL,
        metric=experiment.ablation.metric,
        teacher=teacher,
        changes={name: changes(arm, arms[FULL]) for name, arm in arms.items()},
        title=f"Ablation: {experiment.teacher.path} into {experiment.student.num_layers} layers",
        command=command,
        config=dataclasses.asdict(experiment),
    )


def changes(arm: Experiment, full: Experiment) -> str:
    """`losses.kl.weight=0.0, student.init=random`: in what an arm differs from the full recipe."""
    ours, theirs = (flat(dataclasses.asdict(one)) for one in (arm, full))
    return ", ".join(f"{key}={ours[key]}" for key in ours if ours[key] != theirs.get(key))
