"""Take a model elsewhere: write it in other formats, each checked against the model on real texts.

    python -m experiments.export --model=runs/demo --format=onnx-int8 --output=runs/demo/export
    python -m experiments.export --model=bert-base-uncased --part=masked_lm --format=onnx ...

`--model` is the workdir of experiments.distill or experiments.finetune, an HF folder, a hub name or
package:NAME/SUBFOLDER. Each format gets a folder of its own in `--output`, with the tokenizer and a
manifest.json of sizes, checksums, versions and the figures of the check. A format that does not
compute what the model does leaves nothing behind, and neither does an int8 one that is slower than
float32 on this machine (1x16, 1x128 and 8x128 tokens, taking turns), unless --allow_slower.

    hf              config, safetensors, tokenizer, and a model card out of the run's records
    numpy           weights and a file of plain numpy that runs them
    stablehlo       jax.export, for CPU, CUDA and TPU in one file
    onnx            float32, standard operators; any runtime
    onnx-ort        float32, with ONNX Runtime's own attention
    onnx-fp16       half the size; computes in float32
    onnx-int8       int8 weights and embeddings, standard operators
    onnx-ort-int8   the same with ONNX Runtime's own attention
    onnx-int8-static  int8, activations in ranges measured on the texts of --calibration
    onnx-w8, -w4    weights alone in 8 or 4 bits, in blocks; ONNX Runtime's own MatMulNBits
    litert          float32 for LiteRT (TFLite): phones, boards; one text at a time, of any length
    litert-int8     int8 weights and embeddings
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from absl import flags
from rich.console import Console
from rich.table import Table

from distilflax import export
from distilflax.errors import UserError, choose_from
from distilflax.evaluate import tables
from distilflax.export import calibration, parity, samples
from distilflax.export.formats import Format
from distilflax.export.sensitivity import Choice, Sensitivity
from distilflax.train.progress import say_on
from experiments import command

_MODEL = flags.DEFINE_string("model", None, "A workdir, an HF folder, a hub name or package:NAME.")
_PART = flags.DEFINE_string("part", "auto", f"auto, {', '.join(export.PARTS)}.")
_FORMAT = flags.DEFINE_multi_string("format", [], "A format; give the flag again for each more.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the exports; one folder a format.")
_TEXTS = flags.DEFINE_string("texts", "", "Check on these instead: files, folders, globs, hf:...")
_COLUMN = flags.DEFINE_string(
    "column", "text", "Of JSON lines, CSV and Parquet among --texts and --calibration."
)
_MOST = flags.DEFINE_integer(
    "most_texts", 200, "Read so many of --texts, and of --calibration.", lower_bound=2
)
_OPSET = flags.DEFINE_integer("opset", 17, "Of the ONNX formats; newer ones run in fewer places.")
_RANGE = flags.DEFINE_string(
    "int8_range",
    "portable",
    "portable: 7 bits, right on every processor; full: 8 bits, for those with VNNI or ARM's dot "
    "product; auto: what this machine's processor needs.",
)
_LENGTHS = flags.DEFINE_multi_integer(
    "lengths",
    [],
    "Of the LiteRT formats: a graph of this many tokens, for accelerators that need to know; again "
    "for each more. One graph for any length if not given.",
)
_COSINE = flags.DEFINE_float("least_cosine", parity.LEAST_COSINE, "Of int8 and fp16 formats.", 0, 1)
_AGREEMENT = flags.DEFINE_float(
    "least_agreement", parity.LEAST_AGREEMENT, "Equal labels, of int8 and fp16 formats.", 0, 1
)

_SLOWER = flags.DEFINE_bool("allow_slower", False, "Leave int8 files that are slower here, too.")

_CALIBRATION = flags.DEFINE_string("calibration", "", "As --texts: what static int8 is fitted to.")
_PERCENTILE = flags.DEFINE_float(
    "percentile", 100.0, "Of the calibration's activations that are in range; 100: all.", 90, 100
)
_LOSS = flags.DEFINE_float(
    "most_loss",
    None,
    "Measure what each group of products loses in few bits, on the texts (of --calibration if "
    "given), and leave the worst in float32 until the relative squared error is at most this.",
    0,
)


# The formats that hear a flag, and the flags without which another has nothing to do.
_HEARD_BY: dict[str, Callable[[Format], bool]] = {
    "opset": lambda form: "opset" in form.reads,
    "int8_range": lambda form: "int8_range" in form.reads,
    "lengths": lambda form: "lengths" in form.reads,
    "most_loss": lambda form: "in_float" in form.reads,
    "percentile": lambda form: "calibration" in form.reads,
    # What --most_loss leaves in float32 is measured on it, too.
    "calibration": lambda form: (
        "calibration" in form.reads or (_given("most_loss") and "in_float" in form.reads)
    ),
    "least_cosine": lambda form: not form.exact,
    "least_agreement": lambda form: not form.exact,
    "allow_slower": lambda form: bool(form.faster_than),
}
_WITH = {
    "percentile": ("calibration",),
    "most_texts": ("texts", "calibration"),
    "column": ("texts", "calibration"),
}


def run() -> None:
    if not _MODEL.value:
        raise UserError("--model is missing; give a workdir, an HF folder or a hub name.")
    if not _FORMAT.value:
        raise UserError(f"--format is missing; {choose_from('', export.FORMATS)}")
    _check_flags()
    output = command.required(_OUTPUT)
    subject = export.open_subject(_MODEL.value, _PART.value)
    if _given("least_agreement") and subject.part != "head":
        raise UserError(
            f"--least_agreement is of a task head's labels, and this is the part {subject.part!r} "
            f"of {_MODEL.value}; take it away, or choose the head with --part=head."
        )
    texts, column = samples.TEXTS, _COLUMN.value
    if _TEXTS.value:
        texts = samples.read(_TEXTS.value, _MOST.value, subject.words, column=column)
    options = export.Options(_OPSET.value, _RANGE.value, lengths=tuple(_LENGTHS.value))
    measured_on = texts
    if _CALIBRATION.value:
        measured_on = samples.read_calibration(
            _CALIBRATION.value, _MOST.value, subject.words, column
        )
        measured = calibration.measure(subject, measured_on, _PERCENTILE.value)
        options = replace(options, calibration=measured)
    rows, console = [], Console(stderr=True)
    try:
        for name in dict.fromkeys(_FORMAT.value):
            if _LOSS.value is not None and "in_float" in export.format_of(name).reads:
                with console.status(f"{name}: measuring its groups"):
                    measures = Sensitivity(subject, name, measured_on, options)
                    found = measures.choose(_LOSS.value)
                Console().print(losses_of(name, found))
                options = replace(options, in_float=found.in_float)
            else:
                options = replace(options, in_float=())
            with console.status(f"{name}: writing and checking"):
                manifest = export.export(
                    subject,
                    name,
                    output / name,
                    options=options,
                    texts=texts,
                    least_cosine=_COSINE.value,
                    least_agreement=_AGREEMENT.value,
                    allow_slower=_SLOWER.value,
                )
            rows += rows_of(manifest)
    finally:
        # What was written before a later format failed is there, and is said to be.
        if rows:
            title = f"{subject.name}, {subject.part}: {len(texts)} texts"
            Console().print(table_of(title, rows))
            say_on(console)(f"exported to {output}")


def _check_flags() -> None:
    """
    Raises:
      UserError: an unknown format, or a flag that no format and no other flag would hear.
    """
    chosen = [export.format_of(name) for name in _FORMAT.value]
    for name, hears in _HEARD_BY.items():
        if _given(name) and not any(map(hears, chosen)):
            able = ", ".join(other for other, form in export.FORMATS.items() if hears(form))
            raise UserError(
                f"--{name} changes nothing in --format={', '.join(_FORMAT.value)}; take it away, "
                f"or choose a format that hears it: {able}."
            )
    for name, others in _WITH.items():
        if _given(name) and not any(map(_given, others)):
            needed = " or ".join(f"--{other}" for other in others)
            raise UserError(f"--{name} changes nothing without {needed}; give that, too.")


def _given(name: str) -> bool:
    """Whether a flag says something else than it says where it is left out."""
    return flags.FLAGS[name].value != flags.FLAGS[name].default


def losses_of(name: str, found: Choice) -> Table:
    """What each group loses alone, and what the whole does."""
    table = Table(title=f"{name}: what each group of products loses in few bits")
    for column in ("group", "relative error", "mean cosine", "agreement", "stored"):
        table.add_column(column, justify="left" if column in ("group", "stored") else "right")
    whole = "in few bits, but for those left in float32"
    for group, loss in (*found.alone.items(), (whole, found.whole)):
        stored = "float32" if group in found.in_float else ""
        table.add_row(
            group, f"{loss.error:.2g}", f"{loss.cosine:.5f}", f"{loss.agreement:.1%}", stored
        )
    return table


def table_of(title: str, rows: Sequence[tuple[str, ...]]) -> Table:
    """The formats beside each other, each cell whole on the 80 columns of a log."""
    columns = ("format", "MB", "output", "max difference", "mean cosine", "agreement")
    table = tables.terminal(tables.Table(title, columns, tuple(rows)))
    table.columns[columns.index("output")].justify = "left"
    return table


def rows_of(manifest: dict) -> list[tuple[str, ...]]:
    """One row of the table for each output; the size stands in the first."""
    size = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
    rows = []
    for output in manifest["model"]["outputs"]:
        figure = manifest["parity"][output]
        agreement = f"{figure['agreement']:.1%}" if "agreement" in figure else "-"
        first = not rows
        rows.append(
            (
                manifest["format"] if first else "",
                f"{size:.1f}" if first else "",
                output,
                f"{figure['max_difference']:.2g}",
                f"{figure['mean_cosine']:.5f}",
                agreement,
            )
        )
    return rows


if __name__ == "__main__":
    command.main(run)
