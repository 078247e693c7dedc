"""A fine-tuned model as a teacher: its logits on the training rows, computed once.

Its dropout is off, so that its logits of a row never change: running it beside the student at every
step would compute the same numbers again in every epoch. Its layers on all rows would fill a disk:
for the intermediate stage it is kept itself.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from distilflax import losses, models, weights
from distilflax.errors import UserError
from distilflax.models import TaskHead
from distilflax.tasks import batches, intermediate, texts
from distilflax.tasks.classification import Classification
from distilflax.tasks.confidence import sigmoid
from distilflax.tasks.data import Materials, compared_rows, training_rows
from distilflax.tasks.runner import Runner
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.task import Features
from distilflax.text import tokenizer as text_tokenizer
from distilflax.text.tokenizer import Tokenizer
from distilflax.weights import Checkpoint


class Teaching(NamedTuple):
    """What comes from the task teacher, for all seeds of a run: its logits of the training rows
    (None for a row that no seed trains on), and itself for the intermediate stage. None where the
    run has no use for them; `fingerprint` is of all that decides its logits, and empty without a
    teacher."""

    logits: list[np.ndarray | None] | None
    layers: Checkpoint | None
    fingerprint: str = ""


def teaching_of(run: FineTuning, materials: Materials, say: Callable[[str], None]) -> Teaching:
    """Loads the run's task teacher, if it has one, and lets it read the training rows.

    Raises:
      UserError: an intermediate stage without a teacher; a teacher with fewer positions than the
        rows have, without a head, with that of another task or other labels, with a tokenizer that
        would make other rows, or as `intermediate.check_teacher` says.
    """
    path, by_layers = run.distillation.teacher, bool(losses.active(run.intermediate.losses))
    if by_layers and not path:
        raise UserError(
            "config.intermediate learns from the layers of config.distillation.teacher, which is "
            "empty; give the folder of a fine-tuned model."
        )
    if not path:
        return Teaching(None, None)
    teacher = weights.load(path, with_task_head=True)
    if run.data.max_length > teacher.encoder.max_positions:
        raise UserError(
            f"config.data.max_length is {run.data.max_length} but the teacher {path} has "
            f"{teacher.encoder.max_positions} positions; set it to at most that."
        )
    words = text_tokenizer.load(teacher.folder)
    if by_layers:
        intermediate.check_teacher(run, materials, teacher, words)
    logits = _logits(run, materials, teacher, words, say) if run.distillation.weight else None
    return Teaching(logits, teacher if by_layers else None, _fingerprint(teacher, words))


def _fingerprint(teacher: Checkpoint, words: Tokenizer) -> str:
    """Of its parameters, the order of its labels, what its number goes through, its tokenizer and
    how it makes vectors."""
    labels = teacher.head.labels if teacher.head is not None else ()
    activation = teacher.head.activation if teacher.head is not None else ""
    head = weights.fingerprint_of_head(teacher.params)
    read = (words.fingerprint, words.typed, teacher.vectors)
    told = repr((teacher.fingerprint, head, labels, activation, *read))
    return hashlib.sha256(told.encode()).hexdigest()


def _logits(
    run: FineTuning,
    materials: Materials,
    teacher: Checkpoint,
    words: Tokenizer,
    say: Callable[[str], None],
) -> list[np.ndarray | None]:
    """The teacher's logits of the training rows that a seed compares, its labels in the student's
    order."""
    path = run.distillation.teacher
    task, features = materials.task, materials.train.features
    head, ours = teacher.head, task.head(materials.checkpoint.encoder)
    asks_otherwise = False
    if ours.kind == "vector":
        # Its vectors are made as its own files say; those of the student may be of another width.
        own = teacher.vectors
        head, order = replace(ours, pooling=own.pooling, normalize=own.unit), None
        if teacher.sentence is not None:
            asks_otherwise = task.prompted_by(own) != task
            task = task.prompted_by(own)
    else:
        order = _order(head, ours, path, say)
    ours_read, theirs_read = ((one.fingerprint, one.pair) for one in (materials.words, words))
    if theirs_read != ours_read or asks_otherwise:
        if task.kind not in ("sequence", "vector"):
            raise UserError(
                f"{path} has another tokenizer than the student, so that their tokens cannot be "
                "compared; give a teacher with the same vocabulary."
            )
        features = task.encode(words, materials.train.examples, run.data.max_length)
    rows = [
        compared_rows(materials, training_rows(materials, run.data.fraction, seed), taught=True)
        for seed in range(run.seed, run.seed + run.training.seeds)
    ]
    read = np.unique(np.concatenate(rows))
    say(f"teacher: {path} reads {len(read):,} rows")
    runner = Runner(
        partial(models.task_logits, teacher.encoder, run.compute, head),
        with_types=texts.with_types(words, teacher.encoder),
        batch_sizes=(run.training.batch_size,),
        buckets=batches.buckets(run.data.max_length, run.data.buckets),
    )
    ids, types = ([kind[i] for i in read] for kind in (features.ids, features.types))
    logits: list[np.ndarray | None] = [None] * len(features.ids)
    found = runner(jax.device_put(teacher.params), Features(ids, types, features.owner[read]))
    if head.activation == "sigmoid" and isinstance(task, Classification):
        found = [sigmoid(row) for row in found]  # numbers, as its folder says
    for i, row in zip(read, found, strict=True):
        logits[i] = row if order is None else row[..., order]
    return logits


def _order(
    theirs: TaskHead | None, ours: TaskHead, path: str, say: Callable[[str], None]
) -> list[int] | None:
    """Where each of our labels stands among the teacher's; None where they are taken as they are.

    Raises:
      UserError: no head, one of another task, or other labels.
    """
    if theirs is None:
        raise UserError(
            f"{path} has no head, so it was not fine-tuned for a task; fine-tune it first, and "
            "give the folder that this writes."
        )
    found = weights.task_head.order(theirs, ours)
    if found is not None:
        return found
    if (theirs.kind, theirs.problem) != (ours.kind, ours.problem):
        raise UserError(
            f"{path} has a {theirs.kind} head ({theirs.problem}) and the task needs a {ours.kind} "
            f"head ({ours.problem}); give a teacher of the same task."
        )
    unnamed = weights.task_head.is_numbered(theirs.labels)
    if unnamed and len(theirs.labels) == len(ours.labels):
        say(
            f"teacher: {path} does not name its labels; they are taken for "
            f"{', '.join(ours.labels):.200}, in this order (config.options.labels gives another)"
        )
        return None
    other = sorted(set(theirs.labels) ^ set(ours.labels))
    raise UserError(
        f"{path} and the data do not have the same labels: {', '.join(other):.200} is in one of "
        "them alone; give a teacher of the same labels."
    )
