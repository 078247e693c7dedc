"""Classification of one text or of a pair: one label, any number of labels, or a number.

A class may also be "none of these" (`out_of_scope`): it is never learned, but what the model is
least sure of is given that name, below a threshold chosen on development data (Larson et al. 2019,
CLINC150; the confidence is the largest probability, Hendrycks and Gimpel 2017, arXiv:1610.02136).
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from distilflax.errors import UserError, choose_from
from distilflax.losses import Sum
from distilflax.models import OUTPUT_ACTIVATIONS, PROBLEMS, TaskHead
from distilflax.settings import Encoder
from distilflax.tasks import label_scores, records, scores, softened, tables, texts
from distilflax.tasks.confidence import best_threshold, sigmoid, softmax
from distilflax.tasks.labels import Labels, by_number, is_first_alone
from distilflax.tasks.records import Faults, FaultyRecordError
from distilflax.tasks.task import NOTHING, Features, Task
from distilflax.text.tokenizer import Tokenizer

_METRICS = {
    "single": ("accuracy", "macro_f1", "matthews", "f1"),
    "multi": ("micro_f1", "macro_f1", "accuracy"),
    "regression": ("combined", "pearson", "spearman"),
}
_FEW = 12  # labels that are listed


class Example(NamedTuple):
    """`label` is a name, a tuple of names, or a number, as the problem is; None if unknown.
    `classes` are the names of all labels in order, where the file or the options say them."""

    place: str
    text: str
    pair: str | None = None
    label: Any = None
    classes: tuple[str, ...] = ()


# Options, and the problems that they mean something to.
_NEEDS = {
    "activation": ("regression",),
    "out_of_scope": ("single",),
    "balanced": ("single", "multi"),
    "class_weights": ("single", "multi"),
}


@dataclass(frozen=True)
class Classification(Task):
    """Options, and what was learned.

    `text`, `pair` (empty for single texts) and `label` name columns, which in folders with a text a
    file are `text` and `label`, the folder's name; `header`, `delimiter` and `quoting` say how
    tables are written (`records.Table`, `records.read`). `problem`: `single`, `multi` (labels in
    one cell with `separator` between, a JSON list, or a column of 0 and 1 for each, all named in
    `label`) or `regression`. `label_names` are the classes of files that have their numbers, in
    order from `numbered_from`, or a 0 or 1 for each of them. `labels`, unless given, are those, or
    the classes that a Parquet file of `datasets` names, in its order; or else those of the training
    data, sorted. `balanced` weighs each class by n / (k n_c); `class_weights` gives the weights, in
    the order of the labels. `select` names the figure that models are chosen by; empty for the
    first of the problem's; of two labels there is `f1` of the second one, as GLUE takes it for MRPC
    and QQP. `activation` is what the number of a regression goes through: `sigmoid` for numbers
    from 0 to 1; nothing, or `identity`, otherwise. The saved folder tells `CrossEncoder` of
    sentence-transformers. `threshold` is tuned.
    """

    name: ClassVar[str] = "classification"
    kind: ClassVar[str] = "sequence"
    reading: ClassVar[tuple[str, ...]] = (
        "text",
        "pair",
        "label",
        "label_names",
        "numbered_from",
        "header",
        "delimiter",
        "quoting",
        "separator",
    )

    text: str = "text"
    pair: str = ""
    label: str = "label"
    label_names: tuple[str, ...] = ()
    numbered_from: int = field(default=0, metadata={"least": 0})
    header: tuple[str, ...] = ()
    delimiter: str = ""
    quoting: str = field(default="auto", metadata={"choices": tables.QUOTING})
    problem: str = field(default="single", metadata={"choices": PROBLEMS})
    labels: tuple[str, ...] = ()
    separator: str = ","
    balanced: bool = False
    class_weights: tuple[float, ...] = ()
    out_of_scope: str = ""
    select: str = ""
    activation: str = field(default="", metadata={"choices": OUTPUT_ACTIVATIONS})
    threshold: float = field(default=0.0, metadata={"least": 0.0, "most": 1.0})

    def __post_init__(self):
        self._read_as.check_names()
        if self.select and self.select not in _METRICS[self.problem]:
            raise UserError(
                f"config.options.select is {self.select!r}; "
                f"{choose_from(self.select, _METRICS[self.problem])}"
            )
        for name, problems in _NEEDS.items():
            if getattr(self, name) and self.problem not in problems:
                raise UserError(
                    f"config.options.{name} needs problem {' or '.join(map(repr, problems))}; "
                    "leave one of them out."
                )
        if self.out_of_scope and self.out_of_scope in self.labels:
            raise UserError(
                f"config.options.labels has {self.out_of_scope!r}, which is out_of_scope and so "
                "never learned; leave it out of the labels."
            )
        if self.problem == "multi" and not self.separator:
            raise UserError("config.options.separator is empty; give what stands between labels.")
        if self.numbered_from and not self.label_names:
            raise UserError("config.options.numbered_from needs label_names; give them as well.")
        if not all(0 < weight < math.inf for weight in self.class_weights):
            raise UserError("config.options.class_weights has one that is not above 0; mend it.")
        if self.class_weights and self.labels and len(self.class_weights) != len(self.labels):
            raise UserError(
                f"config.options.class_weights has {len(self.class_weights)} weights for "
                f"{len(self.labels)} labels; give one for each, in the order of the labels."
            )

    @property
    def metric(self) -> str:
        return self.select or _METRICS[self.problem][0]

    def read(self, paths: Sequence[Path], faults: Faults, *, labelled: bool = True) -> list:
        examples, read_as = [], self._read_as
        for path in paths:
            table = records.Table(self.header, self.delimiter, "config.options.", self.quoting)
            start = len(examples)
            for record in records.read(path, faults, table):
                try:
                    text = records.text(record, self.text, "text")
                    pair = records.text(record, self.pair, "pair") if self.pair else None
                    label = read_as.of(record) if labelled else None
                except FaultyRecordError as fault:
                    faults.add(str(fault))
                    continue
                classes = read_as.declared(record) if labelled else ()
                examples.append(Example(record.place, text, pair, label, classes))
            own = examples[start:] if labelled and self.header and self.problem == "single" else []
            if own and is_first_alone([example.label for example in own]):
                faults.note(
                    f"{own[0].place} alone has the label {own[0].label!r}; if it names the "
                    "columns, leave out config.options.header"
                )
        return examples

    @property
    def _read_as(self) -> Labels:
        options = (self.label_names, self.separator, self.numbered_from)
        return Labels(self.problem, self.label, *options)

    def learn(self, examples: Sequence[Example]) -> "Classification":
        if self.balanced and self.class_weights:
            raise UserError("config.options has balanced and class_weights; leave one of them out.")
        if self.problem == "regression":
            return replace(self, labels=self.labels or ("score",))
        names = Counter(name for example in examples for name in self._names(example))
        given = dict.fromkeys(example.classes for example in examples)
        declared = dict.fromkeys(name for classes in given for name in classes)
        in_order = [*declared, *sorted({*names} - {*declared}, key=by_number)]
        labels = self.labels or self._read_as.columns or tuple(in_order)
        labels = tuple(name for name in labels if name != self.out_of_scope)
        if not labels or (self.problem == "single" and len(labels) < 2):
            raise UserError(
                f"The training data has {len(labels)} labels ({', '.join(labels):.80}); at least "
                "two are needed (config.options.label names the column)."
            )
        if self.select == "f1" and len(labels) != 2:
            raise UserError(
                f"config.options.select is 'f1', which is of the second of two labels, and there "
                f"are {len(labels)}; choose macro_f1."
            )
        if not self.balanced:
            return replace(self, labels=labels)
        total, seen = sum(names[name] for name in labels), sum(names[name] > 0 for name in labels)
        weights = tuple(total / (seen * max(names[name], 1)) for name in labels)
        return replace(self, labels=labels, class_weights=weights)

    @property
    def learned(self) -> str:
        if self.problem == "regression":
            return ""
        named = f" ({', '.join(self.labels)})" if len(self.labels) <= _FEW else ""
        return f"{len(self.labels)} labels{named:.400}"  # enough, where texts were taken for labels

    def _names(self, example: Example) -> tuple[str, ...]:
        if example.label is None:
            return ()
        return (example.label,) if self.problem == "single" else example.label

    def split(self, examples: Sequence[Example], faults: Faults, *, training: bool) -> list:
        if self.problem == "regression":
            beyond = (e for e in examples if not 0 <= (e.label or 0) <= 1)
            if training and self.activation == "sigmoid" and (one := next(beyond, None)):
                raise UserError(
                    f"{one.place} has the number {one.label:g}, and a sigmoid says those from 0 to "
                    "1; scale them, or leave out config.options.activation."
                )
            return list(examples)
        known, kept = {*self.labels} | {self.out_of_scope}, []
        nearest = cache(lambda name: choose_from(name, self.labels))
        for example in examples:
            unseen = next((name for name in self._names(example) if name not in known), None)
            if unseen is not None:
                faults.add(
                    f"{example.place} has the label {unseen!r:.80}, which "
                    f"{'the training data' if training else 'the model'} does not have; "
                    f"{nearest(unseen)}"
                )
            elif not (training and self.out_of_scope and example.label == self.out_of_scope):
                kept.append(example)
        if not training and self.out_of_scope not in ("", *(one.label for one in kept)):
            faults.note(
                f"no text is {self.out_of_scope!r} (config.options.out_of_scope); without any in "
                "dev no threshold is chosen, and nothing is rejected"
            )
        return kept

    def group(self, example: Example) -> Hashable:
        return example.label if self.problem == "single" else None

    def wording(self, example: Example) -> tuple[str, ...]:
        return (example.text,) if example.pair is None else (example.text, example.pair)

    def reworded(self, example: Example, texts: tuple[str, ...]) -> Example:
        return Example(example.place, *texts)

    def encode(self, words: Tokenizer, examples: Sequence[Example], max_length: int) -> Features:
        first, second = [example.text for example in examples], None
        if any(example.pair is not None for example in examples):
            second = [example.pair or "" for example in examples]
        ids, types, cut = texts.rows(words, first, second, max_length)
        targets = {"label": self._targets(examples)}
        return Features(ids, types, np.arange(len(ids)), targets, cut=cut)

    def _targets(self, examples: Sequence[Example]) -> np.ndarray:
        if self.problem == "regression":
            values = [np.nan if e.label is None else e.label for e in examples]
            return np.array(values, np.float32)
        number = {name: i for i, name in enumerate(self.labels)}
        if self.problem == "single":
            return np.array([number.get(e.label, NOTHING) for e in examples], np.int32)
        targets = np.full((len(examples), len(self.labels)), np.nan, np.float32)
        for row, example in zip(targets, examples, strict=True):
            if example.label is not None:
                row[:] = 0.0
                row[[number[name] for name in example.label if name in number]] = 1.0
        return targets

    def head(self, encoder: Encoder) -> TaskHead:
        # Of a folder that does not say, CrossEncoder takes the sigmoid of a number.
        activation = self.activation or ("identity" if self.problem == "regression" else "")
        return TaskHead(self.kind, self.labels, self.problem, activation=activation)

    def prior(self, features: Features, rows: Int[np.ndarray, "rows"]) -> float:
        """The mean of the numbers to be told. Seen from 0, scores of 0 to 5 are so far that the
        first hundreds of steps do little but raise the output, through every layer."""
        known = features.targets["label"][rows]
        if self.problem != "regression" or np.isnan(known).all():
            return 0.0
        mean = float(np.nanmean(known))
        if self.activation != "sigmoid":
            return mean
        mean = min(max(mean, 0.01), 0.99)
        return math.log(mean / (1 - mean))

    def loss(self, logits: Float[Array, "B N"], batch: dict) -> Sum:
        """Cross-entropy (weighted by class, and divided by those weights, as in PyTorch), binary
        cross-entropy averaged over the labels, or squared error."""
        target = batch["label"]
        if self.problem == "single":
            real = target >= 0
            index = jnp.where(real, target, 0)
            given = jnp.asarray(self.class_weights or (1.0,) * len(self.labels))
            weight = jnp.where(real, given[index], 0.0)
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), index[:, None], axis=1)[:, 0]
            return Sum(-jnp.sum(weight * log_p), jnp.sum(weight))
        if self.problem == "multi":
            real = ~jnp.isnan(target[:, 0])
            target = jnp.where(real[:, None], target, 0.0)
            given = jnp.asarray(self.class_weights or (1.0,) * len(self.labels))
            value = jnp.mean(given * optax.sigmoid_binary_cross_entropy(logits, target), axis=1)
        else:
            real = ~jnp.isnan(target)
            value = jnp.square(self.number(logits[:, 0]) - jnp.where(real, target, 0.0))
        return Sum.over(value, real)

    def number(self, logits: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """What a regression's outputs say."""
        return jax.nn.sigmoid(logits) if self.activation == "sigmoid" else logits

    def distil(
        self,
        logits: Float[Array, "B N"],
        teacher: Float[Array, "B N"],
        batch: dict,
        temperature: float,
    ) -> Sum:
        """Of a regression the teacher's are numbers, whatever its own output goes through."""
        value = {
            "single": lambda: softened.kl(logits, teacher, temperature),
            "multi": lambda: softened.binary_kl(logits, teacher, temperature),
            "regression": lambda: softened.squared(self.number(logits), teacher),
        }[self.problem]()
        real = jnp.any(batch["attention_mask"] > 0, axis=1)
        return Sum.over(value, real)

    def tune(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> "Classification":
        """The threshold with the most right answers, "out of scope" being one of them."""
        outside = np.array([example.label == self.out_of_scope for example in examples], bool)
        if not self.out_of_scope or not outside.any():
            return self
        probabilities = softmax(np.stack(logits))
        right = probabilities.argmax(axis=1) == features.targets["label"]
        return replace(self, threshold=best_threshold(probabilities.max(axis=1), right, outside))

    def decode(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Example]
    ) -> list[dict]:
        del features, examples
        if not len(logits):
            return []
        rows = np.stack(logits).astype(np.float64)
        if self.problem == "regression":
            rows = sigmoid(rows) if self.activation == "sigmoid" else rows
            return [{"value": float(value)} for value in rows[:, 0]]
        if self.problem == "multi":
            return [self._label_set(row) for row in sigmoid(rows)]
        return [self._one_label(row) for row in softmax(rows)]

    def _label_set(self, probabilities: Float[np.ndarray, "N"]) -> dict:
        scored = dict(zip(self.labels, map(float, probabilities), strict=True))
        return {"labels": [n for n, score in scored.items() if score > 0.5], "scores": scored}

    def _one_label(self, probabilities: Float[np.ndarray, "N"]) -> dict:
        best = int(probabilities.argmax())
        label, score = self.labels[best], float(probabilities[best])
        if self.out_of_scope and score < self.threshold:
            return {"label": self.out_of_scope, "score": score, "nearest": label}
        return {"label": label, "score": score}

    def metrics(self, predictions: Sequence[dict], examples: Sequence[Example]) -> dict:
        if self.problem == "regression":
            truth = np.array([example.label for example in examples], np.float64)
            return scores.numbers(truth, np.array([p["value"] for p in predictions]))
        if self.problem == "multi":
            sets = [e.label for e in examples], [p["labels"] for p in predictions]
            return scores.label_sets(*label_scores.marks(self.labels, *sets))
        truth = [example.label for example in examples]
        found = [prediction["label"] for prediction in predictions]
        figures = scores.classes(truth, found, self._second)
        if self.out_of_scope:
            figures |= label_scores.scope(self.out_of_scope, truth, predictions)
        return figures

    def by_index(self, predictions: Sequence[dict], examples: Sequence[Example]):
        """Labels are numbered and counted once for all draws."""
        truth = [example.label for example in examples]
        if self.problem == "regression":
            return super().by_index(predictions, examples)
        if self.problem == "multi":
            found = [prediction["labels"] for prediction in predictions]
            return len(truth), label_scores.of_sets(self.labels, truth, found)
        return len(truth), label_scores.of_one(truth, predictions, self._second, self.out_of_scope)

    @property
    def _second(self) -> str | None:
        """Of two labels the one that `f1` is of."""
        return self.labels[1] if len(self.labels) == 2 else None

    def own(self) -> dict:
        return {name: getattr(self, name) for name in ("pair", "out_of_scope", "threshold")}

    @classmethod
    def of_head(cls, head: TaskHead) -> dict:
        return {"problem": head.problem, "labels": head.labels, "activation": head.activation}
