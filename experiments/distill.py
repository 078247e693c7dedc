"""Distil a teacher into a student, with its baselines, and report what was kept.

    python -m experiments.distill --config=configs/demo.py --workdir=runs/demo

Any value of the config may be given on the command line: `--config.losses.kl.weight=0`. Killed or
stopped, the same command goes on where it was. In the workdir:

    report.md, report.json   every figure for teacher, copied student and each arm
    distilled/               the run: checkpoints, metrics.jsonl, and model/, an HF folder
    ARM/                     the same for each entry of `config.arms`
"""

import dataclasses
import shlex
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax import evaluate, losses, weights
from distilflax.errors import UserError
from distilflax.evaluate import retrieval
from distilflax.evaluate.model import ROLES
from distilflax.search.collection import Collection
from distilflax.settings import Experiment, with_overrides
from distilflax.text.corpus import Corpus
from distilflax.train import records
from distilflax.train.arms import check_common
from distilflax.train.loop import Outcome
from distilflax.train.setup import Materials, new_student, prepare
from distilflax.train.side_by_side import train_arms
from distilflax.train.state import HELD_OUT_MASKING, purpose_key
from distilflax.train.workdir import enable_compilation_cache
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if it is missing.")

MAIN_ARM = "distilled"


def run() -> int:
    experiment = command.settings_of(_CONFIG)
    workdir = command.required(_WORKDIR)
    console = Console(stderr=True)
    arms = arms_of(experiment)
    if experiment.training.compilation_cache:
        enable_compilation_cache(workdir / MAIN_ARM)

    materials = prepare(experiment, arms.values(), console.print)

    def keep(name: str, outcome: Outcome) -> None:
        weights.save(
            workdir / name / "model",
            outcome.encoder,
            outcome.params,
            tokenizer_folder=materials.teacher.folder,
            sentence=materials.teacher.sentence,
        )

    outcomes, exit_code = train_arms(
        arms,
        materials,
        workdir,
        at_once=experiment.training.arms_at_once,
        say=console.print,
        keep=keep,
    )
    if exit_code:
        return exit_code
    if jax.process_index() == 0:
        report(experiment, materials, outcomes, workdir, console)
    return 0


def arms_of(experiment: Experiment) -> dict[str, Experiment]:
    """The experiment itself and each of its variations, all checked before anything runs."""
    arms = {MAIN_ARM: dataclasses.replace(experiment, arms={})}
    for name, overrides in experiment.arms.items():
        arms[name] = with_overrides(experiment, overrides, name)
        check_common(arms[name], experiment, name)
    for arm in arms.values():
        losses.check(arm.losses, arm.data.layout, arm.training.accumulate)
    return arms


def report(
    experiment: Experiment,
    materials: Materials,
    outcomes: dict[str, Outcome],
    workdir: Path,
    console: Console,
) -> None:
    """Measures teacher, copied student and every arm, and writes the report."""
    teacher, corpus = materials.teacher, materials.corpus
    compared = [evaluate.Model("teacher", teacher.encoder, teacher.params, "teacher")]
    origin = materials.origin(experiment.student).encoder
    for init in dict.fromkeys(("teacher", experiment.student.init)):
        student = dataclasses.replace(experiment.student, init=init)
        if init != experiment.student.init and not weights.surgery.can_be_cut(origin, student):
            continue
        untrained = new_student(dataclasses.replace(experiment, student=student), materials)
        if init == "teacher":
            compared.append(evaluate.Model("copied", *untrained, "copied"))
        else:
            about = f"the student as student.init={init} makes it, before training"
            compared.append(evaluate.Model(init, *untrained, about=about))
    for name, outcome in outcomes.items():
        role = name if name in ROLES else "other"
        compared.append(evaluate.Model(name, outcome.encoder, outcome.params, role))

    host_batches = evaluate.held_out_batches(
        corpus.validation, experiment.data, experiment.evaluation
    )
    measured = evaluate.measure(
        compared,
        materials.tokenizer,
        batches=evaluate.mask_batches(
            host_batches,
            purpose_key(experiment.seed, HELD_OUT_MASKING),
            materials.table,
            dataclasses.replace(experiment.masking, sequences=1.0),
        ),
        collection=_held_out_entries(experiment, corpus, console),
        evaluation=experiment.evaluation,
        compute=experiment.compute,
        say=lambda what: console.print(f"measuring {what}"),
    )
    built = evaluate.report.build(
        measured,
        title=f"Distilling {experiment.teacher.path} into {experiment.student.num_layers} layers",
        command=shlex.join(["python", "-m", "experiments.distill", *sys.argv[1:]]),
        config=dataclasses.asdict(experiment),
        text={
            "sources": experiment.data.sources,
            "training sequences": len(corpus.train),
            "training tokens": int(corpus.token_counts.sum()),
            "held-out sequences": len(corpus.validation),
            "fingerprint": corpus.fingerprint,
        },
        training={
            name: {
                "steps": outcome.steps,
                "tokens": outcome.tokens,
                "seconds": outcome.seconds,
                "curve": records.curve(workdir / name / "metrics.jsonl"),
                "gradients": records.gradients(workdir / name / "metrics.jsonl"),
            }
            for name, outcome in outcomes.items()
        },
    )
    path = evaluate.report.write(workdir, built)
    for table in evaluate.report.all_tables(built):
        console.print(evaluate.report.tables.terminal(table))
    console.print(f"report: {path}\nmodel:  {workdir / MAIN_ARM / 'model'}")


def _held_out_entries(
    experiment: Experiment, corpus: Corpus, console: Console
) -> Collection | None:
    """What retrieval is measured on; None of texts without titles, after a long training too."""
    try:
        return retrieval.documentation(
            corpus.validation_documents, experiment.evaluation.retrieval_entries
        )
    except UserError as too_few:
        console.print(f"the report has no retrieval: {too_few}", markup=False, highlight=False)
        return None


if __name__ == "__main__":
    command.main(run)
