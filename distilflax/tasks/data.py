"""Everything that the runs of a fine-tuning share: the model, the task, the data as rows."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int

from distilflax import weights
from distilflax.errors import UserError
from distilflax.tasks import augmentation, named_files
from distilflax.tasks.records import Faults
from distilflax.tasks.settings import FineTuning, task_of
from distilflax.tasks.task import Features, Task
from distilflax.text import tokenizer as text_tokenizer
from distilflax.text.tokenizer import Tokenizer
from distilflax.weights import Checkpoint


@dataclass(frozen=True, eq=False)
class Part:
    """One part of the data: its examples, and their rows."""

    examples: list
    features: Features


@dataclass(frozen=True, eq=False)
class Materials:
    """What all seeds share.

    Attributes:
      labelled: how many of the training examples have labels; those from `data.unlabelled` follow,
        and then those that augmentation made.
      test: may be None.
      origins: of each example that augmentation made, the training example it was made from.
    """

    checkpoint: Checkpoint
    words: Tokenizer
    task: Task
    train: Part
    labelled: int
    dev: Part
    test: Part | None
    notes: list[str] = field(default_factory=list)
    origins: Int[np.ndarray, "made"] = field(default_factory=lambda: np.zeros(0, np.int64))

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the model's weights, its tokenizer and how it makes vectors, and of each part as it
        was read; what augmentation makes of it is a seed's own (`augmented_for`)."""
        parts = {"train": self.train, "dev": self.dev, "test": self.test}
        read = {name: part.examples for name, part in parts.items() if part is not None}
        read["train"] = read["train"][: len(read["train"]) - len(self.origins)]
        found = {name: fingerprint(examples) for name, examples in read.items()}
        return found | fingerprints_of_model(self.checkpoint, self.words)


def fingerprints_of_model(checkpoint: Checkpoint, words: Tokenizer) -> dict[str, str]:
    """Of its weights, its tokenizer, its head where one was read, and how it makes vectors."""
    found = {"model": checkpoint.fingerprint, "tokenizer": words.fingerprint}
    if head := weights.fingerprint_of_head(checkpoint.params):
        found["head"] = head
    if checkpoint.sentence is not None:
        written = repr(checkpoint.sentence).encode()
        found["way of making vectors"] = hashlib.sha256(written).hexdigest()[:16]
    return found


def prepare(run: FineTuning, say: Callable[[str], None]) -> Materials:
    """Reads the model and the data, and says how much there is and what was left out.

    Raises:
      UserError: whatever is wrong with the files, or does not fit together, in one sentence.
    """
    if not run.model.path:
        raise UserError(
            "config.model.path is empty; give an HF folder, a hub name, or package:NAME/FOLDER."
        )
    if not run.data.folder:
        raise UserError("config.data.folder is empty; give the folder of the data (--data=...).")
    checkpoint = weights.load(run.model.path, with_task_head=run.model.keep_head)
    if run.data.max_length > checkpoint.encoder.max_positions:
        raise UserError(
            f"config.data.max_length is {run.data.max_length} but the model has "
            f"{checkpoint.encoder.max_positions} positions; set it to at most that."
        )
    words = text_tokenizer.load_for(checkpoint.folder, checkpoint.encoder.vocab_size)

    reader = Reader(run, say)
    task = task_of(run).of_model(checkpoint.sentence)
    train = reader.examples(task, "train", run.data.train)
    task = task.learn(train)
    if task.learned:
        say(f"train: {task.learned}")
    train = task.arrange(reader.checked(task, "train", train, training=True), training=True)
    labelled = len(train)
    if run.data.unlabelled:
        more = reader.examples(task, "unlabelled", run.data.unlabelled, labelled=False)
        train = train + task.arrange(reader.thinned(more), training=True)
    made, origins = _augmented(run, task, train[:labelled], say)
    train = train + made
    dev = reader.checked(task, "dev", reader.examples(task, "dev", run.data.dev))
    dev, test = task.arrange(dev, training=False), None
    if run.data.test:
        try:
            test = reader.checked(task, "test", reader.examples(task, "test", run.data.test))
        except UserError as error:
            if _is_of_no_use(task, named_files.find(run.data.folder, run.data.test)):
                raise UserError(f"{error} To do without: --config.data.test=") from None
            raise
        test = task.arrange(test, training=False)
    return Materials(
        checkpoint,
        words,
        task,
        reader.part(words, task, "train", train),
        labelled,
        reader.part(words, task, "dev", dev),
        None if test is None else reader.part(words, task, "test", test),
        reader.notes,
        origins,
    )


def _augmented(
    run: FineTuning, task: Task, examples: list, say: Callable[[str], None]
) -> tuple[list, Int[np.ndarray, "made"]]:
    """(samples of those examples that any seed uses, which example each was made from)."""
    if not run.augmentation.model:
        return [], np.zeros(0, np.int64)
    seeds = range(run.seed, run.seed + run.training.seeds)
    used = sorted({i for seed in seeds for i in _drawn(task, examples, run.data.fraction, seed)})
    found = augmentation.augment(run, task, [examples[i] for i in used], say)
    origins = np.repeat(np.array(used, np.int64), [len(samples) for samples in found])
    return [sample for samples in found for sample in samples], origins


def _is_of_no_use(task: Task, paths: list[Path]) -> bool:
    """Whether none of the records can be measured on: published test files hide what is to be
    found, and some have other columns besides."""
    faults = Faults(skip=True)
    try:
        return not task.split(task.read(paths, faults), faults, training=False)
    except UserError:
        return True


class Reader:
    """Reads parts of the data and keeps count of what was not used."""

    def __init__(self, run: FineTuning, say: Callable[[str], None]):
        self._run, self._say = run, say
        self.notes: list[str] = []
        self._read: dict[str, list[Path]] = {}

    def examples(self, task: Task, name: str, files: str, labelled: bool = True) -> list:
        found = named_files.find(self._run.data.folder, files)
        if not found:
            raise UserError(f"config.data.{name} names no file; give one inside of data.folder.")
        for other, others in self._read.items() if labelled else ():
            shared = sorted({path.name for path in {*found} & {*others}})
            # A part that is read again, as for thresholds and then for figures, is no other part.
            if shared and other != name:
                self._note(name, f"{', '.join(shared):.200} is {other} data too")
        self._read |= {name: found} if labelled else {}
        faults = self._faults()
        examples = task.read(found, faults, labelled=labelled)
        for text in (*faults.notes, faults.summary()):
            self._note(name, text)
        if not examples and faults.count:
            raise UserError(f"config.data.{name} is left with no examples: {faults.first}")
        return examples

    def checked(self, task: Task, name: str, examples: list, *, training: bool = False) -> list:
        faults = self._faults()
        kept = task.split(examples, faults, training=training)
        self._note(name, faults.summary())
        if not kept:
            why = "; ".join(faults.notes) or "see config.data."
            raise UserError(f"config.data.{name} is left with no examples; {why}")
        for text in faults.notes:
            self._note(name, text)
        aside = len(examples) - len(kept) - faults.count
        if training and aside:
            self._note(name, f"{aside:,} examples are for detection, and were not trained on")
        return self.thinned(kept)

    def thinned(self, examples: list) -> list:
        """At most `max_examples`, evenly spread: files are often sorted by label."""
        most, number = self._run.data.max_examples, len(examples)
        if not most or number <= most:
            return examples
        return [examples[i * number // most] for i in range(most)]

    def part(self, words: Tokenizer, task: Task, name: str, examples: list) -> Part:
        features = task.encode(words, examples, self._run.data.max_length)
        rows = len(features.ids)
        more = f" in {rows:,} rows" if rows != len(examples) else ""
        self._say(f"{name}: {len(examples):,} examples{more}, {features.lengths.sum():,} tokens")
        if features.cut:
            what = "questions" if features.cut_to else "examples"
            longest = features.cut_to or self._run.data.max_length
            self._note(name, f"{features.cut:,} {what} were cut to {longest} tokens")
        if features.unlearned:
            self._note(
                name,
                f"{features.unlearned:,} questions have an answer that stands whole in no row: it "
                "is not learned, and cannot be found (config.data.max_length and options.stride)",
            )
        if features.unsaid:
            self._note(
                name,
                f"{features.unsaid:,} questions have an answer of more tokens than are given "
                "(config.options.max_answer)",
            )
        return Part(examples, features)

    def _faults(self) -> Faults:
        return Faults(skip=self._run.data.on_fault == "skip")

    def _note(self, name: str, text: str) -> None:
        if text:
            self.notes.append(f"{name}: {text}")
            self._say(self.notes[-1])


def training_rows(materials: Materials, fraction: float, seed: int) -> Int[np.ndarray, "rows"]:
    """The rows of the training examples that a seed uses: `fraction` of those with a label, drawn
    from every group alike and from each at least one, what was made of these, and all that came
    without a label; of these rows those that the task learns from."""
    part, labelled, task = materials.train, materials.labelled, materials.task
    rows = np.arange(len(part.features.ids))
    if fraction < 1:
        drawn = _drawn(task, part.examples[:labelled], fraction, seed)
        first_made = len(part.examples) - len(materials.origins)
        made = first_made + np.flatnonzero(np.isin(materials.origins, drawn))
        chosen = [*drawn, *range(labelled, first_made), *made]
        rows = np.flatnonzero(np.isin(part.features.owner, chosen))
    return task.trained_on(part.features, rows, _rng(seed, 2))


def augmented_for(materials: Materials, fraction: float, seed: int) -> list:
    """The examples that augmentation made of those that a seed uses."""
    examples = materials.train.examples
    drawn = _drawn(materials.task, examples[: materials.labelled], fraction, seed)
    made = examples[len(examples) - len(materials.origins) :]
    return [made[i] for i in np.flatnonzero(np.isin(materials.origins, drawn))]


def compared_rows(
    materials: Materials, rows: Int[np.ndarray, "rows"], taught: bool
) -> Int[np.ndarray, "compared"]:
    """Those of the rows that the labels' stage can compare: a text that came alone, where others
    come in groups, has only layers to learn from, as has one without a label unless a teacher's
    logits are there (`taught`)."""
    together, owner = materials.task.together, materials.train.features.owner
    rows = rows if taught else rows[owner[rows] < materials.labelled]
    return rows if together == 1 else rows[np.bincount(owner)[owner[rows]] == together]


def learned_from(materials: Materials, fraction: float, seed: int) -> list:
    """The examples with a label that a seed uses."""
    examples = materials.train.examples[: materials.labelled]
    return [examples[i] for i in _drawn(materials.task, examples, fraction, seed)]


def _drawn(task: Task, examples: Sequence, fraction: float, seed: int) -> list[int]:
    """The examples of a low-data run."""
    if fraction >= 1:
        return list(range(len(examples)))
    rng = _rng(seed, 1)
    groups: dict = {}
    for i, example in enumerate(examples):
        groups.setdefault(task.group(example), []).append(i)
    chosen = []
    for members in groups.values():
        number = max(1, round(fraction * len(members)))
        chosen += rng.permutation(members)[:number].tolist()
    return chosen


def _rng(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))


# Fields that published results are older than: where they are empty, an example is as it was.
_NEWER = ("itself", "missing")
# Fields that only messages use.
_NOT_DATA = ("hashed",)


def fingerprint(examples: Sequence) -> str:
    """Of what was read, so that a report can say which data it is of; left out are places and what
    else only messages use."""
    digest = hashlib.sha256()
    for example in examples:
        _, *fields = example._fields
        names = [name for name in fields if name not in _NOT_DATA]
        told = (getattr(example, n) for n in names if n not in _NEWER or getattr(example, n))
        digest.update(repr(tuple(told)).encode())
    return digest.hexdigest()[:16]
