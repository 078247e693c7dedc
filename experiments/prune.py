"""Take from a model the heads and feed-forward neurons that matter least; it is an HF folder again.

    python -m experiments.prune --model=runs/demo --texts=my_texts/*.txt --heads=8 --neurons=1024 \
        --output=runs/demo/pruned

`--heads` and `--neurons` are how many stay in each layer; 0 is all. How much each matters is
measured on the first texts, by the gradient of a mask (`export/importance.py`), and what stays is
fitted on all of them to stand in for what goes (`export/pruning.py`), on at least ten tokens for
each neuron. Every tenth text is kept apart, to tell what was lost. Neurons make the folder
smaller; heads stay in it as zeros, because transformers has no other way to say it, and are left
out of the ONNX formats.

A short distillation from the model itself makes up for much of what was lost:

    python -m experiments.distill --config=configs/demo.py --workdir=runs/recovered \
        --config.teacher.path=THE_MODEL --config.student.path=runs/demo/pruned \
        --config.student.num_layers=AS_MANY_AS_IT_HAS --config.student.layer_map=first
"""

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from distilflax.errors import UserError
from distilflax.export import importance, parity, pruning, samples
from distilflax.export.formats import in_numpy
from distilflax.export.importance import Importance
from distilflax.export.subject import open_subject
from distilflax.models import parameter_count
from distilflax.train.progress import say_on
from experiments import command

_MODEL = flags.DEFINE_string("model", None, "A workdir, an HF folder, a hub name or package:NAME.")
_PART = flags.DEFINE_string("part", "auto", "What its importance is for, as in experiments.export.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the pruned model.")
_TEXTS = flags.DEFINE_string("texts", "", "Files, folders, globs, hf:...: texts like its own.")
_COLUMN = flags.DEFINE_string("column", "text", "Of JSON lines, CSV and Parquet among them.")
_MOST = flags.DEFINE_integer("most_texts", 3000, "Read at most so many texts.", 2)
_MEASURED = flags.DEFINE_integer("measured_texts", 300, "Measure on so many of them.", 1)
_HEADS = flags.DEFINE_integer("heads", 0, "Heads that stay in each layer; 0: all.", 0)
_NEURONS = flags.DEFINE_integer("neurons", 0, "Neurons that stay in each layer; 0: all.", 0)

_MOST_APART = 100


def run() -> None:
    if not _MODEL.value:
        raise UserError("--model is missing; give a workdir, an HF folder or a hub name.")
    if not _TEXTS.value:
        raise UserError("--texts is missing; give texts of the kind that the model is for.")
    if not (_HEADS.value or _NEURONS.value):
        raise UserError("Nothing is to be taken away; give --heads, --neurons or both.")
    output = command.required(_OUTPUT)
    subject = open_subject(_MODEL.value, _PART.value)
    sizes = {"heads": _HEADS.value, "neurons": _NEURONS.value}
    pruning.check(subject.encoder, **sizes)
    texts = samples.read(_TEXTS.value, _MOST.value, subject.words, column=_COLUMN.value)
    fitted, apart = [text for i, text in enumerate(texts) if i % 10], texts[::10][:_MOST_APART]
    if not fitted:
        raise UserError(f"--texts={_TEXTS.value} holds one text; give more.")
    console = Console(stderr=True)
    with console.status("measuring heads and neurons"):
        found = importance.measure(subject, fitted[: _MEASURED.value])
    with console.status("fitting what stays"):
        folder = pruning.prune(subject, found, fitted, output, **sizes)
    after = open_subject(folder, subject.part)
    console = Console()
    console.print(_shares(found, **sizes))
    batches = list(samples.batches(subject, apart))
    figures = parity.compare(in_numpy(subject), in_numpy(after), batches, subject.problem)
    table = Table(title=f"against the whole model, on {len(apart)} texts kept apart")
    for column in ("output", "mean cosine", "relative error", "agreement"):
        table.add_column(column, justify="left" if column == "output" else "right")
    for name, figure in figures.items():
        agreement = f"{figure['agreement']:.1%}" if "agreement" in figure else "-"
        error = f"{figure['relative_error']:.3g}"
        table.add_row(name, f"{figure['mean_cosine']:.4f}", error, agreement)
    console.print(table)
    counts = [parameter_count(one.params["encoder"]) for one in (subject, after)]
    say = say_on(console)
    say(f"parameters of the encoder: {counts[0]:,} before, {counts[1]:,} after")
    say(f"model: {folder}")


def _shares(found: Importance, heads: int, neurons: int) -> Table:
    """For each layer the heads that go, and the share of all importance that stays."""
    table = Table(title="what stays, by what it matters")
    for column in ("layer", "heads that go", "heads", "neurons"):
        table.add_column(column, justify="right")
    for i, (of_heads, of_neurons) in enumerate(zip(*found, strict=True)):
        gone = np.argsort(-of_heads, kind="stable")[heads:] if heads else []
        row = [", ".join(map(str, sorted(map(int, gone)))) or "-"]
        for values, kept in ((of_heads, heads), (of_neurons, neurons)):
            staying = np.sort(values)[-kept:] if kept else values
            row.append(f"{staying.sum() / max(values.sum(), 1e-30):.1%}")
        table.add_row(str(i), *row)
    return table


if __name__ == "__main__":
    command.main(run)
