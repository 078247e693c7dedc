"""Fine-tuned models on data of their task, without training: figures, their intervals, seconds.

A folder of `experiments.finetune` brings its labels and thresholds. Of a folder that others wrote
the config says what its `config.json` does not: the names of labels that are but numbered there,
in the head's order (those of the data, sorted, unless `options.labels` gives them), and whether
questions may have no answer (where some of the data's have and others have not, unless
`options.unanswerable` says so). A folder for retrieval has no head; its sentence-transformers files
say how its vectors are made.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.evaluate import intervals
from distilflax.evaluate.speed import take_turns
from distilflax.settings import from_config
from distilflax.tasks import Classification, Reranking, Task, batches, texts
from distilflax.tasks.runner import Runner
from distilflax.tasks.settings import FineTuning, task_of
from distilflax.text import tokenizer as text_tokenizer
from distilflax.weights import Checkpoint

# Fewer than for vectors: a figure over labels or entities is counted anew for each draw.
RESAMPLES = 500
# So many examples are timed, this often: no more than what the figures themselves cost.
_TIMED, _ROUNDS = 256, 3


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A model with a head, and the task that its head is for."""

    name: str
    task: Task
    checkpoint: Checkpoint
    words: text_tokenizer.Tokenizer
    max_length: int
    runner: Runner
    params: dict

    def predict(self, examples: Sequence) -> list[dict]:
        """What the model says of each example."""
        logits, features = self.logits(examples)
        return self.task.decode(logits, features, examples)

    def logits(self, examples: Sequence):
        """(logits of every row, the rows)."""
        features = self.task.encode(self.words, examples, self.max_length)
        return self.runner(self.params, features), features


def load(path: str, name: str, run: FineTuning, examples: Sequence) -> FineTuned:
    """The model at `path`, to be put to the task and options of `run`.

    Raises:
      UserError: a folder without a head, or with the head of another task, labels of another
        number than its own, or too few positions.
    """
    checkpoint = weights.load(path, with_task_head=True)
    if task_of(run).kind == "vector":
        task = _of_vectors(checkpoint, run)
        checkpoint = replace(checkpoint, head=task.head(checkpoint.encoder))
    if checkpoint.head is None:
        raise UserError(
            f"{path} has no head, so it was not fine-tuned for a task; fine-tune it first "
            "(experiments.finetune), or leave out --config."
        )
    if run.data.max_length > checkpoint.encoder.max_positions:
        raise UserError(
            f"config.data.max_length is {run.data.max_length} but {path} has "
            f"{checkpoint.encoder.max_positions} positions; set it to at most that."
        )
    if checkpoint.head.kind != "vector":
        task = _task(path, checkpoint, run, examples)
    words = text_tokenizer.load_for(checkpoint.folder, checkpoint.encoder.vocab_size)
    runner = Runner(
        partial(models.task_logits, checkpoint.encoder, run.compute, checkpoint.head),
        with_types=texts.with_types(words, checkpoint.encoder),
        batch_sizes=(run.training.batch_size,),
        buckets=batches.buckets(run.data.max_length, run.data.buckets),
    )
    params = jax.device_put(checkpoint.params)
    return FineTuned(name, task, checkpoint, words, run.data.max_length, runner, params)


def _of_vectors(checkpoint: Checkpoint, run: FineTuning) -> Task:
    """The task of the config with what the folder's own sentence-transformers files say."""
    asked, own = task_of(run), checkpoint.sentence
    if own is not None:
        unset = {"pooling": "own", "query_prompt": "", "document_prompt": ""}
        asked = replace(asked, normalize=own.unit, **unset)
    return asked.of_model(own)


# Options that are settled with the training: the head's labels, and how they were weighed.
_OF_TRAINING = ("labels", "class_weights", "balanced")


def _task(path: str, checkpoint: Checkpoint, run: FineTuning, examples: Sequence) -> Task:
    asked, head = task_of(run), checkpoint.head
    given = vars(asked)
    problem = given.get("problem", head.problem)
    own = {name: value for name, value in checkpoint.own.items() if name != "max_length"}
    if (asked.kind, problem) != (head.kind, head.problem):
        raise UserError(
            f"{path} has a {head.kind} head ({head.problem}) and config.task={run.task} needs a "
            f"{asked.kind} head ({problem}); give a model of the same task."
        )
    if isinstance(asked, Reranking):
        if len(head.labels) != 1:
            raise UserError(
                f"{path} has {len(head.labels)} labels and a reranker has one output; give a "
                "cross-encoder."
            )
        return asked
    names = _names(path, given.get("labels"), head.labels)
    # Without names the data's own, once they are known.
    nameless = not own and weights.task_head.is_numbered(names)
    names = () if nameless and head.kind != "answer" else names
    usual = dataclasses.asdict(type(asked)())
    values = usual | {name: given[name] for name in ("labels",) if name in given}
    if names or head.kind == "answer":
        values |= type(asked).of_head(replace(head, labels=names))
    # What the folder says, and over it what the config says that nobody has to.
    chosen = {
        name: value
        for name, value in given.items()
        if name not in _OF_TRAINING and value != usual[name]
    }
    values |= own | chosen | {name: given[name] for name in asked.reading}
    task = from_config(values, type(asked), f"{path}: distilflax")
    task = task if own else task.learn(examples)
    found = task.head(checkpoint.encoder)
    if len(found.labels) != len(head.labels):
        raise UserError(
            f"{path} has {len(head.labels)} labels without names and the data has "
            f"{len(found.labels)}; name them as config.options.labels, in the head's order."
        )
    return task


def _names(path: str, given: Sequence[str] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a head's outputs, in its order: its `own`, which a config may replace."""
    if not given or sorted(given) == sorted(own):
        return own
    if len(given) != len(own):
        raise UserError(
            f"config.options.labels names {len(given)} labels and {path} has {len(own)}; "
            "give as many, in the head's order."
        )
    moved = [name for here, name in zip(own, given, strict=True) if name in own and name != here]
    if moved:
        raise UserError(
            f"config.options.labels names {moved[0]!r} as another output of {path} than its "
            f"config.json does ({', '.join(own):.200}); give new names in that order, or none."
        )
    return tuple(given)


def measure(
    compared: Sequence[FineTuned], examples: Sequence, resamples: int = RESAMPLES
) -> dict[str, list[dict]]:
    """For every figure one entry a model: its `score` and, where examples can be drawn for it, the
    bootstrap `interval` over examples; of all but the first also `difference` from the first one
    and `retention`, with intervals over the same draws. `f1` of two labels is of `positive`.
    `seconds_per_1000` are seconds alone.
    """
    predictions = [model.predict(examples) for model in compared]
    label = positive(compared)
    tasks = [_with_f1_of(label, model.task) for model in compared]
    scores = [task.metrics(p, examples) for task, p in zip(tasks, predictions, strict=True)]
    drawn = [
        draws(task, found, examples, resamples)
        for task, found in zip(tasks, predictions, strict=True)
    ]
    figures = {}
    for name in scores[0]:
        entries = []
        for own, of_draws in zip(scores, drawn, strict=True):
            entry = {"score": own.get(name, float("nan"))}
            if name in of_draws:
                entry["interval"] = intervals.around(entry["score"], of_draws[name])._asdict()
            if entries and name in of_draws and name in drawn[0]:
                pair = (entry["score"], scores[0][name])
                both = intervals.compare_draws(pair, of_draws[name], drawn[0][name])
                entry |= {key: value._asdict() for key, value in both._asdict().items()}
            entries.append(entry)
        figures[name] = entries
    taken = seconds([model.predict for model in compared], examples)
    figures["seconds_per_1000"] = [{"score": float(value)} for value in taken]
    return figures


def positive(compared: Sequence[FineTuned]) -> str:
    """The label that `f1` is of for all models: the second of the first model's two. Empty where
    that has no such figure."""
    task = compared[0].task
    single = isinstance(task, Classification) and task.problem == "single"
    return task.labels[1] if single and len(task.labels) == 2 else ""


def _with_f1_of(label: str, task: Task) -> Task:
    """The task to count figures by, and not to decode by: `label` stands last, as `f1` is of the
    second of two labels, and heads may have them in either order."""
    if not label:
        return task
    return replace(task, labels=tuple(sorted(task.labels, key=lambda name: name == label)))


def draws(
    task: Task, predictions: Sequence[dict], examples: Sequence, resamples: int
) -> dict[str, Float[np.ndarray, "draws"]]:
    """The figures of `resamples` draws of as many examples; the same draws for every model."""
    number, figures = task.by_index(predictions, examples)
    rng = np.random.default_rng(0)
    found = [figures(rng.integers(0, number, number)) for _ in range(resamples)]
    common = set.intersection(*map(set, found)) if found else set()
    return {name: np.array([one[name] for one in found]) for name in common}


def seconds(
    answers: Sequence[Callable[[Sequence], Any]], examples: Sequence
) -> Float[np.ndarray, "answers"]:
    """Seconds that each of `answers` takes for 1,000 examples, compiled beforehand; they take
    turns, and the median of the rounds counts."""
    step = max(1, len(examples) // _TIMED)
    few = list(examples)[::step][:_TIMED]
    calls = [partial(answer, few) for answer in answers]
    for call in calls:
        call()
    taken = take_turns(calls, _ROUNDS, clock=time.perf_counter)
    return np.median(taken, axis=0) * 1000 / len(few)


def tuned(model: FineTuned, examples: Sequence) -> FineTuned:
    """The model with its thresholds chosen anew on (development) examples."""
    logits, features = model.logits(examples)
    return replace(model, task=model.task.tune(logits, features, examples))
