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
several runs. Texts or pairs of texts with one label or one number each, tagging, and answers out of
a text. Each run that has ended is kept in the workdir, and not run again. On a machine with a GPU
both use it, which has not been tried yet.
"""

import copy
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax.errors import UserError
from distilflax.evaluate import tables
from distilflax.tasks import batches, data
from distilflax.tasks.finetune import figures, finetune
from distilflax.tasks.scores import student_interval
from distilflax.tasks.settings import FineTuning, from_values
from distilflax.tasks.stage import is_over
from distilflax.tasks.teacher import teaching_of
from distilflax.train import machine, records
from distilflax.train.workdir import enable_compilation_cache
from experiments import command, torch_side

_CONFIG = config_flags.DEFINE_config_file("config", None, "A task's file of configs/.")
_DATA = flags.DEFINE_string("data", None, "Folder of that task's data.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs; made if it is missing.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs on either side.", lower_bound=1)

OURS, THEIRS = "distilflax", "transformers"
STOPPED = 130
# Our names of targets, and theirs.
_TARGETS = {
    "label": "labels",
    "tag": "labels",
    "start": "start_positions",
    "end": "end_positions",
}
_PROBLEMS = {"single": "single_label_classification", "regression": "regression"}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_HEADS = ("classifier.weight", "qa_outputs.weight")


def run() -> int:
    values = command.values_of(_CONFIG)
    if _DATA.value:
        values["data"]["folder"] = str(Path(_DATA.value).expanduser().absolute())
    settings, workdir = from_values(values), command.required(_WORKDIR)
    of_texts = settings.task == "classification" and settings.options["problem"] in _PROBLEMS
    if not of_texts and settings.task not in ("tagging", "answering"):
        raise UserError(
            "The other side has one label or number a text, tagging and answering; give a config "
            "of those."
        )
    if settings.distillation.teacher:
        raise UserError(
            "config.distillation.teacher is given, and the other side has none; leave it out."
        )
    _check_config(settings)
    console = Console(stderr=True, soft_wrap=True)
    enable_compilation_cache(workdir)
    materials = data.prepare(settings, console.print)
    _check_model(settings, materials)
    if materials.test is None:
        raise UserError("config.data.test is empty; give the file that both sides are judged by.")
    runs: dict[str, list[dict]] = {OURS: [], THEIRS: []}
    for seed in range(settings.seed, settings.seed + _SEEDS.value):
        one = replace(settings, seed=seed)
        runs[OURS].append(_ours(one, materials, workdir / OURS / f"seed{seed}"))
        if runs[OURS][-1] is None:
            return STOPPED
        runs[THEIRS].append(_kept(workdir / THEIRS / f"seed{seed}.json", one, materials))
    metric = runs[OURS][0]["metric"]
    report = {
        "command": shlex.join(["python", "-m", "experiments.beside_transformers", *sys.argv[1:]]),
        "metric": metric,
        "runs": runs,
        "environment": machine.record() | {"versions": machine.versions(("torch", "transformers"))},
    }
    records.write_json(workdir / "beside.json", report)
    Console().print(tables.terminal(table(runs, metric)))
    return 0


def _check_config(run: FineTuning) -> None:
    """
    Raises:
      UserError: something of the config that the other side would do otherwise.
    """
    given = {"model.keep_head": run.model.keep_head}
    given |= {f"options.{n}": run.options.get(n) for n in ("balanced", "class_weights")}
    name = next((name for name, value in given.items() if value), None)
    if name is not None:
        raise UserError(f"The other side has nothing like config.{name}; leave it out.")


def _check_model(run: FineTuning, materials: data.Materials) -> None:
    """
    Raises:
      UserError: a model whose head the other side would begin with.
    """
    heads = [name for name in materials.checkpoint.ignored if name.endswith(_HEADS)]
    if heads:
        raise UserError(
            f"{run.model.path} has a head already ({heads[0]}), from which the other side would "
            "begin; give the encoder that it was made of."
        )


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
    taken = json.loads(whole.read_text()) if whole.is_file() else {"whole_seconds": float("nan")}
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
    note = "Means over the seeds, with 95% intervals by Student's t where there are several."
    return tables.Table("Fine-tuning side by side", columns, tuple(rows), note)


def _shown(values: list[float], digits: int) -> str:
    mean, low, high = student_interval(values)
    if np.isnan(low):
        return tables.number(mean, digits)
    return tables.interval({"value": mean, "low": low, "high": high}, 1.0, digits)


def _kept(path: Path, settings: FineTuning, materials: data.Materials) -> dict:
    sources = {"config": asdict(settings), "sources": materials.fingerprints}
    made_of = json.loads(json.dumps(sources))
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(path, theirs(settings, materials) | {"made_of": made_of})
    found = json.loads(path.read_text())
    if found.pop("made_of", None) != made_of:
        raise UserError(
            f"{path} is of another config, model or data; delete it, or take a new folder."
        )
    return found


def theirs(run: FineTuning, materials: data.Materials) -> dict[str, Any]:
    """One fine-tuning in torch: figures, seconds of steps, and of the whole with evaluations."""
    torch, transformers = _libraries()
    begin = time.perf_counter()
    torch.manual_seed(run.seed)
    task, optimizer = materials.task, run.optimizer
    model = _model(transformers, materials).to(torch_side.device())
    features = materials.train.features
    rows = data.training_rows(materials, run.data.fraction, run.seed)
    # As many as ours, of full batches: what does not fill one is left out of an epoch.
    epoch_steps = max(1, len(rows) // run.training.batch_size)
    total = max(1, round(run.training.epochs * epoch_steps))
    every = max(1, round(run.training.evaluate_epochs * epoch_steps))
    adamw = torch.optim.AdamW(
        _groups(torch, model, optimizer.weight_decay),
        lr=optimizer.learning_rate,
        betas=(optimizer.b1, optimizer.b2),
        eps=optimizer.eps,
    )
    name, warmup = _SCHEDULES[optimizer.schedule], round(optimizer.warmup_fraction * total)
    schedule = transformers.get_scheduler(name, adamw, warmup, total)
    order, best, seconds, seen = np.random.default_rng(run.seed), None, 0.0, 0
    scores = []
    drawn = _drawn(order, rows, run.training.batch_size)
    for step in range(1, total + 1):
        start = time.perf_counter()
        at = next(drawn)
        model.train()
        loss = model(**_batch(torch, materials, features, at, targets=True)).loss
        loss.backward()
        if optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        torch_side.finish(torch)
        seconds, seen = seconds + time.perf_counter() - start, seen + len(at)
        if step % every == 0 or step == total:
            logits = _logits(torch, model, materials, materials.dev, run.training.batch_size)
            tuned, found = figures(task, logits, materials.dev, tuned=True)
            if best is None or found[task.metric] > best[1][task.metric]:
                best = tuned, found, step, copy.deepcopy(model.state_dict())
            scores.append(found[task.metric])
            if is_over(scores, run.training.patience):
                break
    tuned, dev, best_step, state = best
    model.load_state_dict(state)
    logits = _logits(torch, model, materials, materials.test, run.training.batch_size)
    return {
        "seed": run.seed,
        "metric": task.metric,
        "best_step": best_step,
        "steps": step,
        "dev": dev,
        "test": figures(tuned, logits, materials.test, tuned=False)[1],
        "seconds": seconds,
        "rows_per_second": seen / seconds,
        "training_rows": len(rows),
        "whole_seconds": time.perf_counter() - begin,
    }


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"The other side needs {error.name}: pip install 'distilflax[parity]'."
        ) from None
    return torch, transformers


def _model(transformers: Any, materials: data.Materials) -> Any:
    task, folder = materials.task, materials.checkpoint.folder
    given: dict[str, Any] = {"dtype": "float32"}  # whatever the file has: it is trained
    if task.kind == "answer":
        return transformers.AutoModelForQuestionAnswering.from_pretrained(folder, **given)
    given["num_labels"] = len(task.labels)
    if task.kind == "token":
        return transformers.AutoModelForTokenClassification.from_pretrained(folder, **given)
    given["problem_type"] = _PROBLEMS[task.problem]
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, **given)


def _groups(torch: Any, model: Any, weight_decay: float) -> list[dict]:
    """As transformers' Trainer has them: no decay of biases and LayerNorms."""
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
        for p in module.parameters()
    }
    named = [(n.endswith("bias") or id(p) in norms, p) for n, p in model.named_parameters()]
    return [
        {"params": [p for spared, p in named if not spared], "weight_decay": weight_decay},
        {"params": [p for spared, p in named if spared], "weight_decay": 0.0},
    ]


def _drawn(order: np.random.Generator, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    while True:
        permuted = order.permutation(rows)
        for start in range(0, max(len(rows) - size, 0) + 1, size):
            yield permuted[start : start + size]


def _batch(torch: Any, materials: data.Materials, features, at: np.ndarray, *, targets: bool):
    """Rows padded to the longest of them, as DataCollatorWithPadding does."""
    length = int(features.lengths[at].max())
    host = batches.collate(features, at, len(at), length, with_types=True)
    names = {"input_ids", "attention_mask", "token_type_ids"}
    found = {name: torch.from_numpy(host[name].astype(np.int64)) for name in names}
    for own, theirs in _TARGETS.items() if targets else ():
        if own in host:
            # What has no target has -100 on both sides.
            kind = np.int64 if np.issubdtype(host[own].dtype, np.integer) else np.float32
            found[theirs] = torch.from_numpy(host[own].astype(kind))
    return {name: array.to(torch_side.device()) for name, array in found.items()}


def _logits(torch: Any, model: Any, materials: data.Materials, part: data.Part, size: int) -> list:
    """Of every row, in the order of the rows; rows of like length are run together."""
    model.eval()
    order, found = np.argsort(part.features.lengths, kind="stable"), [None] * len(part.features.ids)
    with torch.inference_mode():
        for start in range(0, len(order), size):
            at = order[start : start + size]
            out = model(**_batch(torch, materials, part.features, at, targets=False))
            if materials.task.kind == "answer":
                rows = torch.stack([out.start_logits, out.end_logits], -1)
            else:
                rows = out.logits
            for index, row in zip(at, rows.cpu().numpy(), strict=True):
                found[index] = row if row.ndim == 1 else row[: part.features.lengths[index]]
    return found


if __name__ == "__main__":
    command.main(run)
