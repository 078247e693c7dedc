"""What a task is: six steps from a file to a figure, and the rows that pass between them.

    read      files to examples, each knowing its place
    encode    examples to rows of ids, with what the loss compares
    head      the layers that are put on the encoder
    loss      logits and targets to a sum and a count; `distil` likewise against a teacher
    decode    logits to predictions as a user wants them
    metrics   predictions and examples to the field's figures

A new task of such a kind as there are is one file with a subclass of `Task`, one line in
`tasks/__init__.py`, and one test.
Tasks are frozen dataclasses: what they learn of the training data (`learn`) or of the development
data (`tune`) is in the task that these return.
"""

import abc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from distilflax.losses import Sum
from distilflax.models import TaskHead
from distilflax.settings import Encoder, from_config
from distilflax.tasks.records import Faults
from distilflax.text.tokenizer import Tokenizer
from distilflax.weights import SentenceFiles

# What a target holds where there is nothing to compare; floats hold NaN.
NOTHING = -100


@dataclass(frozen=True, eq=False)
class Features:
    """Examples as the encoder takes them: a row for each, or several where a text is windowed.

    Attributes:
      ids: the tokens of each row, special ones included.
      types: the token type of each token of each row.
      owner: which example a row belongs to; rows of one example stand together.
      targets: by name, an array with one entry a row, or a list with one array a row that has one
        entry a token. `NOTHING` (NaN in floats) marks what has no target.
      details: what `decode` wants to know of each row.
      cut: how many examples were too long and lost their end.
      cut_to: how many tokens were left of them; 0 for a whole row.
      unlearned: how many examples have an answer that stands whole in no row.
      unsaid: how many have one of more tokens than `max_answer`.
    """

    ids: list[Int[np.ndarray, "_"]]
    types: list[Int[np.ndarray, "_"]]
    owner: Int[np.ndarray, "rows"]
    targets: dict[str, Any] = field(default_factory=dict)
    details: list = field(default_factory=list)
    cut: int = 0
    cut_to: int = 0
    unlearned: int = 0
    unsaid: int = 0

    @property
    def lengths(self) -> Int[np.ndarray, "rows"]:
        return np.array([len(row) for row in self.ids], np.int64)


class Task(abc.ABC):
    """The steps; see the module's docstring."""

    # How it is called in a config, which of the heads in `models` it has, and which of its options
    # say how files are read: those are of the data, and the others of the model.
    name: ClassVar[str]
    kind: ClassVar[str]
    reading: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def metric(self) -> str:
        """The figure by which models are chosen; greater is better."""

    def of_model(self, own: SentenceFiles | None) -> "Task":
        """The task with what it takes from the folder that is fine-tuned: how `own` makes vectors,
        None where the folder says nothing of that."""
        del own
        return self

    @property
    def together(self) -> int:
        """Rows of a training example that the loss must see together; then every example has so
        many, and `loss` is given [B, together, N] and targets of [B, together]."""
        return 1

    def contrasts(self, taught: bool) -> bool:
        """Whether batches mix lengths, as a loss wants that tells a row from the others of its
        batch; `taught`: with a teacher's logits."""
        del taught
        return False

    @property
    def texts_once(self) -> bool:
        """Whether no text should be in such a batch twice; the target `text` numbers them."""
        return False

    @abc.abstractmethod
    def read(self, paths: Sequence[Path], faults: Faults, *, labelled: bool = True) -> list:
        """The examples of some files, in order; without `labelled` only what a model is given.

        Raises:
          UserError: a file that is not what it should be; single records go to `faults`.
        """

    def learn(self, examples: Sequence) -> "Task":
        """The task with what it takes from the training examples: the labels."""
        del examples
        return self

    @property
    def learned(self) -> str:
        """What `learn` made of the training data, in a few words for whoever reads along."""
        return ""

    def split(self, examples: Sequence, faults: Faults, *, training: bool) -> list:
        """The examples that this part of the data is for, after checking that they fit.

        Of training data `training` leaves out what is only ever detected, never learned.

        Raises:
          UserError: a label that the training data does not have.
        """
        del faults, training
        return list(examples)

    def arrange(self, examples: Sequence, *, training: bool) -> list:
        """The examples as this part of the data is encoded: other ones, where what is learned from
        differs from what is measured."""
        del training
        return list(examples)

    def group(self, example: Any) -> Hashable:
        """What a small part of the data should have its share of: the label, if there is one."""
        del example
        return None

    @abc.abstractmethod
    def wording(self, example: Any) -> tuple[str, ...]:
        """The texts of an example in which words may be replaced by others."""

    @abc.abstractmethod
    def reworded(self, example: Any, texts: tuple[str, ...]) -> Any:
        """The example with these texts in their place, and nothing said of what is right."""

    @abc.abstractmethod
    def encode(self, words: Tokenizer, examples: Sequence, max_length: int) -> Features:
        """Rows of at most `max_length` tokens."""

    def trained_on(
        self, features: Features, rows: Int[np.ndarray, "rows"], rng: np.random.Generator
    ) -> Int[np.ndarray, "kept"]:
        """Which of these rows of the training data are learned from."""
        del features, rng
        return rows

    @abc.abstractmethod
    def head(self, encoder: Encoder) -> TaskHead:
        """The head that goes on `encoder`; what it drops in training, the model's folder says."""

    def prior(self, features: Features, rows: Int[np.ndarray, "rows"]) -> float:
        """What a new head says of every text before it has learned anything, of the training data
        in `rows`: the bias that its last layer begins with."""
        del features, rows
        return 0.0

    @abc.abstractmethod
    def loss(self, logits: Float[Array, "B *L N"], batch: dict) -> Sum:
        """Against the targets of the batch."""

    @abc.abstractmethod
    def distil(
        self,
        logits: Float[Array, "B *L N"],
        teacher: Float[Array, "B *L N"],
        batch: dict,
        temperature: float,
    ) -> Sum:
        """Against the logits of a teacher, targets or not."""

    def tune(self, logits: Sequence[np.ndarray], features: Features, examples: Sequence) -> "Task":
        """The task with the thresholds that are best on these (development) examples."""
        del logits, features, examples
        return self

    @abc.abstractmethod
    def decode(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence
    ) -> list[dict]:
        """A prediction for each example, as JSON values."""

    @abc.abstractmethod
    def metrics(self, predictions: Sequence[dict], examples: Sequence) -> dict[str, float]:
        """The field's figures, by name."""

    def by_index(
        self, predictions: Sequence[dict], examples: Sequence
    ) -> tuple[int, Callable[[Int[np.ndarray, "n"]], dict[str, float]]]:
        """(how many there are to choose from, figures of those at some indices): for a bootstrap,
        which asks some hundred times and takes one more than once."""

        def figures(at: Int[np.ndarray, "n"]) -> dict[str, float]:
            return self.metrics([predictions[i] for i in at], [examples[i] for i in at])

        return len(examples), figures

    @abc.abstractmethod
    def own(self) -> dict:
        """The fields, JSON values, that a saved model needs beside its head to be this task."""

    def sentence(self, max_length: int) -> SentenceFiles | None:
        """What a saved model says of its vectors; None where it has a head."""
        del max_length

    @classmethod
    def restore(cls, head: TaskHead, own: dict, where: str) -> "Task":
        """The task of a saved model; `own` is empty for a folder that others wrote.

        Raises:
          UserError: values in `own` that cannot be, naming `where` they were read.
        """
        return from_config(cls.of_head(head) | own, cls, where)

    @classmethod
    def of_head(cls, head: TaskHead) -> dict:
        """The fields that the head itself tells."""
        del head
        return {}
