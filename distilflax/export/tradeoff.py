"""What each of a model's exports takes, keeps and gives: bytes, the figure of a task, time.

Opened exports answer through their own tokenizers, so that a trimmed vocabulary is measured with
what it does to the texts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from distilflax import weights
from distilflax.errors import UserError
from distilflax.evaluate import fine_tuned, intervals, sts
from distilflax.evaluate.speed import ratio, take_turns
from distilflax.export import leave, manifest
from distilflax.export.formats import FILES
from distilflax.export.parity import Run
from distilflax.export.samples import Batch, padded
from distilflax.tasks import Task, texts
from distilflax.tasks.task import Features
from distilflax.text import tokenizer
from distilflax.weights import SentenceFiles, writer

_VECTOR = "sentence_embedding"


@dataclass(frozen=True, eq=False)
class Opened:
    """An export that was opened; `longest` is the most tokens that it takes."""

    name: str
    manifest: dict[str, Any]
    words: tokenizer.Tokenizer
    run: Run
    longest: int

    @property
    def bytes(self) -> int:
        """Of all files but the tokenizer's."""
        listed = self.manifest["files"].items()
        return sum(entry["bytes"] for name, entry in listed if name not in writer.TOKENIZER_FILES)

    @property
    def sentence(self) -> SentenceFiles:
        """How vectors are made, as the manifest says; older ones say nothing of prompts."""
        model = self.manifest["model"]
        names = [one.name for one in fields(SentenceFiles)]
        return SentenceFiles(**{name: model[name] for name in names if name in model})

    def outputs(self, features: Features, batch_size: int) -> list[dict[str, np.ndarray]]:
        """What the export says of each row, at real tokens, in the order of the rows; they are run
        from the shortest to the longest."""
        found: list[dict[str, np.ndarray]] = [{}] * len(features.ids)
        order = np.argsort(features.lengths, kind="stable")
        for at in range(0, len(order), batch_size):
            indices = order[at : at + batch_size].tolist()
            out = self.run(_batch(features, indices))
            for row, index in enumerate(indices):
                size = len(features.ids[index])
                found[index] = {
                    name: array[row, :size] if name != _VECTOR and array.ndim == 3 else array[row]
                    for name, array in out.items()
                }
        return found


def open_exports(paths: Sequence[str | Path]) -> list[Opened]:
    """The exports at `paths`, each a folder of one or of several.

    Raises:
      UserError: a folder without any, or one that `leave.load` refuses.
    """
    folders = [folder for path in paths for folder in _exports_of(Path(path).expanduser())]
    listed = {folder: manifest.read(folder, FILES) for folder in folders}
    found = []
    for (folder, content), name in zip(listed.items(), _names(listed), strict=True):
        model = content["model"]
        longest = min(model["max_positions"], content.get("length", [1, model["max_positions"]])[1])
        longest = min(longest, model.get("max_seq_length") or longest)
        words = tokenizer.load_for(folder, model["vocab_size"])
        found.append(Opened(name, content, words, leave.load(folder), longest))
    return found


def _names(listed: Mapping[Path, dict[str, Any]]) -> list[str]:
    """The formats where these differ, else with the models' names, or the folders' own."""
    formats = [content["format"] for content in listed.values()]
    models = [f"{content['model']['name']} {content['format']}" for content in listed.values()]
    of_folders = [weights.short_name(folder) for folder in listed]
    for names in (formats, models, of_folders):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in listed]


def _exports_of(folder: Path) -> list[Path]:
    if (folder / manifest.FILE).is_file():
        return [folder]
    inside = sorted(path.parent for path in folder.glob(f"*/{manifest.FILE}"))
    if not inside:
        raise UserError(
            f"{folder} holds no export; give the --output of experiments.export, or a folder in it."
        )
    return inside


@dataclass(frozen=True)
class Figure:
    """A score of all examples, and of draws of them (None where none can be drawn)."""

    score: float
    draws: Float[np.ndarray, "draws"] | None


@dataclass(frozen=True)
class Similarity:
    """Spearman's correlation of cosines with people's scores."""

    pairs: sts.Pairs
    name: str = "Spearman"

    def features(self, export: Opened) -> Features:
        before = export.sentence.prompted(self.pairs.first + self.pairs.second)
        rows, types, _ = texts.rows(export.words, before, None, export.longest)
        return Features(rows, types, np.arange(len(rows)))

    def measure(self, export: Opened, features: Features, batch_size: int) -> Figure:
        if _VECTOR not in export.manifest["model"]["outputs"]:
            raise UserError(
                f"{export.name} makes no sentence vectors; export a sentence encoder with "
                "--part=encoder, or give the task of its head as --config."
            )
        rows = [out[_VECTOR] for out in export.outputs(features, batch_size)]
        vectors = np.stack(rows).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        cosine = sts.cosines(*np.split(vectors, 2))
        rng = np.random.default_rng(0)
        count = len(cosine)
        drawn = [rng.integers(0, count, count) for _ in range(fine_tuned.RESAMPLES)]
        scores = self.pairs.scores
        return Figure(
            sts.spearman(cosine, scores),
            np.array([sts.spearman(cosine[at], scores[at]) for at in drawn]),
        )


@dataclass(frozen=True)
class Headed:
    """The figure by which a task judges a model with a head."""

    task: Task
    examples: Sequence
    max_length: int

    @property
    def name(self) -> str:
        return self.task.metric

    def features(self, export: Opened) -> Features:
        longest = min(self.max_length, export.longest)
        return self.task.encode(export.words, self.examples, longest)

    def measure(self, export: Opened, features: Features, batch_size: int) -> Figure:
        outputs = export.outputs(features, batch_size)
        if "start_logits" in outputs[0]:
            both = ("start_logits", "end_logits")
            logits = [np.stack([out[name] for name in both], axis=-1) for out in outputs]
            sizes = [len(row) for row in features.ids]
            logits = [row[:size] for row, size in zip(logits, sizes, strict=True)]
        elif "logits" in outputs[0]:
            logits = [out["logits"] for out in outputs]
        else:
            raise UserError(f"{export.name} has no task head; export the model with --part=head.")
        predictions = self.task.decode(logits, features, self.examples)
        score = self.task.metrics(predictions, self.examples)[self.name]
        drawn = fine_tuned.draws(self.task, predictions, self.examples, fine_tuned.RESAMPLES)
        return Figure(score, drawn.get(self.name))


def weigh(
    exports: Sequence[Opened],
    judged: Similarity | Headed,
    *,
    batch_size: int,
    timed: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """For each export: name, bytes, score, `change` from the first with its interval over examples,
    `seconds` a text one at a time (median of the rounds) and `time_ratio`, the median over rounds
    of its time over the first one's in the same round, with the middle 80%.

    `timed` texts of the task are timed, evenly spread; the exports take turns.
    """
    all_features = [judged.features(export) for export in exports]
    figures = [
        judged.measure(export, features, batch_size)
        for export, features in zip(exports, all_features, strict=True)
    ]
    calls = [
        _one_at_a_time(export, features, timed)
        for export, features in zip(exports, all_features, strict=True)
    ]
    for call in calls:
        call()
    seconds = take_turns(calls, rounds, clock=time.perf_counter, pause=0.01)
    number = min(timed, len(all_features[0].ids))
    found = []
    for i, (export, figure) in enumerate(zip(exports, figures, strict=True)):
        entry = {"name": export.name, "bytes": export.bytes, "score": figure.score}
        first = figures[0]
        if i and figure.draws is not None and first.draws is not None:
            pair = (figure.score, first.score)
            compared = intervals.compare_draws(pair, figure.draws, first.draws)
            entry["change"] = compared.difference._asdict()
        entry["time_ratio"] = ratio(seconds[:, i], seconds[:, 0])
        entry["seconds"] = float(np.median(seconds[:, i])) / number
        found.append(entry)
    return found


def _one_at_a_time(export: Opened, features: Features, timed: int) -> Callable[[], None]:
    chosen = np.unique(np.linspace(0, len(features.ids) - 1, timed).astype(int)).tolist()
    given = [_batch(features, [index]) for index in chosen]

    def call() -> None:
        for batch in given:
            export.run(batch)

    return call


def _batch(features: Features, indices: Sequence[int]) -> Batch:
    return padded([features.ids[i] for i in indices], [features.types[i] for i in indices])
