"""Distil a teacher into a student, with its baselines, and report what was kept.

    python -m experiments.distill --config=configs/demo.py --workdir=runs/demo

Any value of the config may be given on the command line: `--config.losses.kl.weight=0`. Killed or
stopped, the same command goes on where it was. In the workdir:

    report.md, report.json   every figure for teacher, copied student and each arm
    distilled/               the run: checkpoints, metrics.jsonl, and model/, an HF folder
    ARM/                     the same for each entry of `config.arms`
"""

import dataclasses
from collections.abc import Callable
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
from distilflax.train import records
from distilflax.train.arms import check_common
from distilflax.train.loop import Outcome
from distilflax.train.progress import say_on
from distilflax.train.setup import Materials, new_student, prepare
from distilflax.train.side_by_side import train_arms
from distilflax.train.state import HELD_OUT_MASKING, purpose_key
from distilflax.train.workdir import check_workdir, enable_compilation_cache
from experiments import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if it is missing.")

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other hosts of a TPU slice or a cluster; start it on each."
)

MAIN_ARM = "distilled"
_LONGEST_REPORT = 86_400  # seconds


def run() -> int:
    if _DISTRIBUTED.value:
        # Those who have nothing to measure wait at the end for the one that has.
        jax.distributed.initialize(shutdown_timeout_seconds=_LONGEST_REPORT)
    experiment = command.settings_of(_CONFIG)
    workdir = command.required(_WORKDIR)
    console = Console(stderr=True)
    say = say_on(console)
    arms = arms_of(experiment)
    if experiment.training.compilation_cache:
        enable_compilation_cache(workdir / MAIN_ARM)

    for name, arm in arms.items():
        check_workdir(workdir / name, arm)
    materials = prepare(experiment, arms.values(), say)
    _check_lengths(experiment, materials)
    collection = _collection(experiment, materials, say)

    def keep(name: str, outcome: Outcome) -> None:
        if jax.process_index() > 0:
            return
        folder = workdir / name / "model"
        weights.save_student(folder, outcome.encoder, outcome.params, materials.teacher)

    outcomes, exit_code = train_arms(
        arms,
        materials,
        workdir,
        at_once=experiment.training.arms_at_once,
        say=say,
        keep=keep,
    )
    if exit_code:
        return exit_code
    if jax.process_index() == 0:
        report(experiment, materials, collection, arms, outcomes, workdir, console)
    return 0


def arms_of(experiment: Experiment) -> dict[str, Experiment]:
    """The experiment itself and each of its variations, all checked before anything runs."""
    arms = {MAIN_ARM: dataclasses.replace(experiment, arms={})}
    for name, overrides in experiment.arms.items():
        if name in (MAIN_ARM, "teacher", "copied") or "/" in name:
            raise UserError(
                f"config.arms.{name} cannot be called so: there is a {name!r} already, or it is no "
                "name for a folder; choose another."
            )
        arms[name] = with_overrides(experiment, overrides, name)
        check_common(arms[name], experiment, name)
    for name, arm in arms.items():
        try:
            run = arm.training
            losses.check(arm.losses, arm.data.layout, run.accumulate, run.batch_size)
        except UserError as mistake:
            place = "" if name == MAIN_ARM else f"config.arms.{name}: "
            raise UserError(f"{place}{mistake}") from None
    return arms


def _check_lengths(experiment: Experiment, materials: Materials) -> None:
    """Whether the models take what the report will give them, asked before they are trained."""
    most = materials.teacher.encoder.max_positions
    for name in ("latency_length", "retrieval_length"):
        length = getattr(experiment.evaluation, name)
        if length > most:
            raise UserError(
                f"config.evaluation.{name} is {length} but the teacher has {most} positions; set "
                "it to at most that."
            )


def _collection(
    experiment: Experiment, materials: Materials, say: Callable[[str], None]
) -> Collection | None:
    """What models are asked to find; None, and said before anything is trained, where the held-out
    text has nothing to find, as a file of one-line texts has not."""
    entries = materials.corpus.validation_documents
    try:
        return retrieval.documentation(entries, experiment.evaluation.retrieval_entries)
    except UserError as reason:
        say(f"the report will have no retrieval: {reason}")
        return None


def _notes(
    experiment: Experiment, materials: Materials, arms: dict[str, Experiment]
) -> dict[str, str]:
    """What a reader of the figures must know and no figure says, by the heading it belongs to."""
    notes = {}
    if materials.head_fitted:
        notes["summary"] = (
            "The teacher came without a masked-LM head: its own was fitted, the encoder frozen, on "
            f"{experiment.head_fit.tokens:,} tokens, and its MLM figures are those of that head."
        )
    training = []
    regressed: dict[int, list[str]] = {}
    for name, arm in arms.items():
        if arm.student.init == "regressed":
            regressed.setdefault(arm.student.regression_tokens, []).append(name)
    for tokens, names in regressed.items():
        training.append(
            f"Before its first step {' and '.join(names)} read {tokens:,} tokens more, for the "
            "regression that it starts from."
        )
    at_once = min(experiment.training.arms_at_once, len(arms))
    if at_once > 1:
        training.append(f"Trained {at_once} at a time, which share the machine's cores.")
    if training:
        notes["training"] = " ".join(training)
    return notes


def report(
    experiment: Experiment,
    materials: Materials,
    collection: Collection | None,
    arms: dict[str, Experiment],
    outcomes: dict[str, Outcome],
    workdir: Path,
    console: Console,
) -> None:
    """Measures teacher, copied student and every arm, and writes the report."""
    say = say_on(console)
    teacher, corpus = materials.teacher, materials.corpus
    compared = [evaluate.Model("teacher", teacher.encoder, teacher.params, "teacher")]
    origin = materials.origin(experiment.student).encoder
    for init in dict.fromkeys(("teacher", experiment.student.init)):
        student = dataclasses.replace(experiment.student, init=init)
        if init != experiment.student.init and not weights.surgery.can_be_cut(origin, student):
            continue
        untrained = new_student(dataclasses.replace(experiment, student=student), materials)
        if init == "teacher":
            path = experiment.student.path
            about = f"{path}, as cut out and not yet trained" if path else ""
            compared.append(evaluate.Model("copied", *untrained, "copied", about))
        else:
            about = f"the student as student.init={init} makes it, before training"
            compared.append(evaluate.Model(init, *untrained, about=about))
    for name, outcome in outcomes.items():
        role = name if name in ROLES else "other"
        compared.append(evaluate.Model(name, outcome.encoder, outcome.params, role))

    host_batches = []
    if len(corpus.validation):
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
        collection=collection,
        evaluation=experiment.evaluation,
        compute=experiment.compute,
        sentence=teacher.vectors,
        say=lambda what: say(f"measuring {what}"),
    )
    built = evaluate.report.build(
        measured,
        title=f"Distilling {experiment.teacher.path} into {experiment.student.num_layers} layers",
        command=command.typed("distill"),
        config=dataclasses.asdict(experiment),
        text={
            "sources": experiment.data.sources,
            "training sequences": len(corpus.train),
            "training tokens": int(corpus.token_counts.sum()),
            "held-out sequences": len(corpus.validation),
            "held-out documents": len(corpus.validation_documents),
            "fingerprint": corpus.fingerprint,
        },
        notes=_notes(experiment, materials, arms),
        training={
            name: {
                "steps": outcome.steps,
                "tokens": outcome.tokens,
                "seconds": outcome.seconds,
                "objective": losses.formula(arms[name].losses),
                "curve": records.curve(workdir / name / "metrics.jsonl"),
                "gradients": records.gradients(workdir / name / "metrics.jsonl"),
            }
            for name, outcome in outcomes.items()
        },
    )
    path = evaluate.report.write(workdir, built)
    for table in evaluate.report.all_tables(built):
        console.print(evaluate.report.tables.terminal(table))
    say(f"report: {path}\nmodel:  {workdir / MAIN_ARM / 'model'}")


if __name__ == "__main__":
    command.main(run)
