"""Several exports of a model beside each other: size, what they keep of a task, and time.

    python -m experiments.export --model=runs/demo --format=onnx --format=onnx-int8 ... \\
        --output=runs/demo/export
    python -m experiments.tradeoff --export=runs/demo/export --stsb=STSB_FOLDER \\
        --output=runs/demo/tradeoff
    python -m experiments.tradeoff --export=runs/sst2/export --model=runs/sst2/seed0/model \\
        --config=configs/sst2.py --data=SST2_FOLDER --output=runs/sst2/tradeoff

Each is measured through its own file and tokenizer, in the runtime that is there for it: Spearman's
correlation on --stsb for exports that make sentence vectors, or the metric of the task of --config
for those with its head. Changes are from --first, or else `onnx` or what is there, with 95%
intervals over examples; times are of the task's own texts, one at a time and taking turns, over
those of the first in the same round. tradeoff.json, tradeoff.md and tradeoff.png are left in
--output.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from distilflax.errors import UserError, choose_from
from distilflax.evaluate import fine_tuned, plots, sts, tables
from distilflax.export import tradeoff, tradeoff_plot
from distilflax.tasks.data import Reader
from distilflax.tasks.settings import from_values, task_of
from distilflax.train import machine, records
from distilflax.train.progress import say_on
from experiments import command

_EXPORT = flags.DEFINE_multi_string(
    "export", [], "An export, or a folder of some; may be repeated."
)
_FIRST = flags.DEFINE_string("first", "", "The export that the others are held against.")
_STSB = flags.DEFINE_string("stsb", "", "TSV of sentence1, sentence2, score, or a folder of it.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "A task's file of configs/.")
_DATA = flags.DEFINE_string("data", "", "Folder of that task's data.")
_MODEL = flags.DEFINE_string("model", "", "With --config: the model that the exports are of.")
_SPLIT = flags.DEFINE_string("split", "test", "Which of --stsb, or of the task's files.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Texts run at once for the figure.", 1)
_TIMED = flags.DEFINE_integer("timed", 64, "So many texts are timed, one at a time.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", 3)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table, the figure and the record.")

_FILES = ("test", "dev", "train")


def run() -> None:
    if not _EXPORT.value:
        raise UserError("--export is missing; give the --output of experiments.export.")
    if bool(_STSB.value) == (_CONFIG.value is not None):
        raise UserError("Give one of --stsb and --config, for what the exports are to be good at.")
    output = command.required(_OUTPUT)
    judged = _similarity() if _STSB.value else _headed()
    exports = tradeoff.open_exports(_EXPORT.value)
    names = [export.name for export in exports]
    first = _FIRST.value or ("onnx" if "onnx" in names else names[0])
    if first not in names:
        raise UserError(f"--first={first} is not there; {choose_from(first, names)}")
    exports.sort(key=lambda export: export.name != first)
    with Console(stderr=True).status("measuring"):
        options = {"batch_size": _BATCH.value, "timed": _TIMED.value, "rounds": _ROUNDS.value}
        rows = tradeoff.weigh(exports, judged, **options)
    table = _table(rows, judged)
    Console().print(tables.terminal(table))
    _write(output, rows, table, exports, judged)


def _similarity() -> tradeoff.Similarity:
    return tradeoff.Similarity(sts.read_pairs(_STSB.value, _SPLIT.value))


def _headed() -> tradeoff.Headed:
    if not (_DATA.value and _MODEL.value):
        raise UserError("--config wants --data, the task's folder, and --model, for its labels.")
    task_run = from_values(command.task_values_of(_CONFIG, _DATA))
    if _SPLIT.value not in _FILES:
        raise UserError(f"--split is {_SPLIT.value!r}; {choose_from(_SPLIT.value, _FILES)}")
    reader = Reader(task_run, say_on(Console(stderr=True)))
    named = getattr(task_run.data, _SPLIT.value)
    examples = reader.examples(task_of(task_run), _SPLIT.value, named)
    model = fine_tuned.load(_MODEL.value, _MODEL.value, task_run, examples)
    examples = reader.checked(model.task, _SPLIT.value, examples)
    return tradeoff.Headed(
        model.task, model.task.arrange(examples, training=False), task_run.data.max_length
    )


def _table(rows: list[dict], judged: tradeoff.Similarity | tradeoff.Headed) -> tables.Table:
    cells = [
        (
            row["name"],
            tables.number(row["bytes"] / 1e6, 1),
            tables.number(row["score"], 4),
            tables.interval(row.get("change"), 100.0, 2),
            tables.interval(row["time_ratio"], 1.0, 2),
        )
        for row in rows
    ]
    first = rows[0]["name"]
    columns = ("Export", "MB", judged.name, "Change, points [95%]", "Time / first [80%]")
    note = (
        f"MB without the tokenizer. Change from {first}, in hundredths, with intervals over "
        f"examples. Time of {_TIMED.value} of the texts, one at a time, over that of {first} in "
        f"the same round: medians and middle 80% of {_ROUNDS.value} rounds."
    )
    return tables.Table("Size, quality and time", columns, tuple(cells), note)


def _write(output: Path, rows: list[dict], table: tables.Table, exports: list, judged) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{output} cannot be made ({error.strerror}); give another --output."
        ) from None
    told = command.typed("tradeoff")
    record = machine.record()
    content = {
        "command": told,
        "metric": judged.name,
        "rows": rows,
        "exports": {
            e.name: {"model": e.manifest["model"], "files": e.manifest["files"]} for e in exports
        },
        **record,
    }
    records.write_json(output / "tradeoff.json", content)
    parts = ["# What each export takes and keeps", tables.markdown(table)]
    if plots.available():
        drawn = tradeoff_plot.figure(rows, judged.name)
        plots.save(drawn, output / "tradeoff.png")
        parts.append("![score against size and time](tradeoff.png)")
    on = f"{record['processor']}, {record['cores']} cores, commit {record['commit']}."
    parts += [on, f"```\n{told}\n```"]
    records.write_text(output / "tradeoff.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    command.main(run)
