"""A linear probe: how much of a task can be read off the frozen encoder, in seconds.

Sentence vectors (pooled), the states of words' first pieces, or of tokens that may begin or end an
answer go to a logistic or ridge regression of scikit-learn, whose strength of regularisation is
chosen on the development data. Retrieval has no such probe: its vectors have no layer above them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax import models
from distilflax.errors import UserError
from distilflax.models import TaskHead
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches, texts
from distilflax.tasks.data import Materials, Part, training_rows
from distilflax.tasks.finetune import figures
from distilflax.tasks.runner import Runner
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.task import Features, Task

# Penalties that are tried: of the mean loss, half the squared length of the weights.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)

# Rows whose tokens are in memory together; tokens of a row that neither begin nor end an answer.
_AT_ONCE, _OTHERS = 1024, 16

Reader = Callable[[Features], list[np.ndarray]]


def probe(run: FineTuning, materials: Materials) -> dict:
    """Fit on the training rows of `run.seed`; returns what `finetune`'s result holds, but no model.

    Raises:
      UserError: a task that has no probe, or scikit-learn is missing.
    """
    task, features = materials.task, materials.train.features
    if task.kind == "vector":
        raise UserError(
            "config.training.mode 'probe' is for tasks with a layer above the encoder; use 'full' "
            f"for {task.name}."
        )
    if getattr(task, "activation", ""):
        task = replace(task, activation="")  # numbers are fitted as they are
    rows = training_rows(materials, run.data.fraction, run.seed)
    rows = rows[features.owner[rows] < materials.labelled]
    read, head = _reader(run, materials), task.head(materials.checkpoint.encoder)
    points = _points(read, task, features, rows, run.seed)
    given = dict(enumerate(getattr(task, "class_weights", ()))) or None
    fitted = [_fit(*points, penalty, head, given) for penalty in PENALTIES]
    dev = materials.dev
    measured = [
        figures(task, logits, dev, tuned=True) for logits in _logits(read, task, fitted, dev)
    ]
    best = int(np.argmax([found[task.metric] for _, found in measured]))
    tuned, of_dev = measured[best]
    result = {
        "seed": run.seed,
        "metric": task.metric,
        "training_rows": len(rows),
        "penalty": PENALTIES[best],
        "dev": of_dev,
    }
    if materials.test is not None:
        (logits,) = _logits(read, task, fitted[best : best + 1], materials.test)
        result["test"] = figures(tuned, logits, materials.test, tuned=False)[1]
    return result


def _states(
    read: Reader, features: Features, rows: Int[np.ndarray, "n"]
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, what is read of it), a part at a time: the tokens of all rows may not fit in memory."""
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        chosen = Features(
            [features.ids[row] for row in part],
            [features.types[row] for row in part],
            features.owner[part],
        )
        yield from zip(part.tolist(), read(chosen), strict=True)


def _logits(read: Reader, task: Task, fitted: Sequence[Callable], part: Part) -> list[list]:
    """The logits of every row, by each of the fitted models."""
    found: list[list] = [[] for _ in fitted]
    for _, state in _states(read, part.features, np.arange(len(part.features.ids))):
        for own, logits in zip(found, fitted, strict=True):
            row = logits(np.atleast_2d(state))
            own.append(row[0] if task.kind == "sequence" else row)
    return found


def _points(
    read: Reader, task: Task, features: Features, rows: Int[np.ndarray, "n"], seed: int
) -> tuple[Float[np.ndarray, "points D"], np.ndarray]:
    """Vectors and what they should say: one a row, one for each tagged word of a row, or an
    answer's first and last token and some others: whether they are the first, and the last."""
    rng = np.random.default_rng(seed)
    points, wanted = [], []
    for row, state in _states(read, features, rows):
        if task.kind == "sequence":
            points.append(state[None])
            wanted.append(features.targets["label"][row][None])
            continue
        if task.kind == "token":
            target = features.targets["tag"][row]
            at = np.flatnonzero(target >= 0)
            target = target[at]
        else:
            ends = [features.targets[name][row] for name in ("start", "end")]
            if min(ends) < 0:  # its answer stands whole in no row
                continue
            # How many others there are moves all logits alike, which no span's rank depends on.
            at = np.unique([*ends, *rng.integers(0, len(state), _OTHERS)])
            target = np.stack([at == end for end in ends], axis=1).astype(np.int32)
        points.append(state[at])
        wanted.append(target)
    if not points:
        raise UserError(
            "No row of the training data holds its answer whole; raise config.data.max_length."
        )
    return np.concatenate(points), np.concatenate(wanted)


def _reader(run: FineTuning, materials: Materials) -> Reader:
    """Features to [D] of each row where the task has a sequence head, to [tokens, D] otherwise."""
    checkpoint = materials.checkpoint
    pooling = checkpoint.sentence.pooling if checkpoint.sentence else "mean"
    pooling = pooling if materials.task.kind == "sequence" else ""
    runner = Runner(
        partial(_encode, checkpoint.encoder, run.compute, pooling),
        with_types=texts.with_types(materials.words, checkpoint.encoder),
        batch_sizes=(run.training.batch_size,),
        buckets=batches.buckets(run.data.max_length, run.data.buckets),
    )
    return partial(runner, jax.device_put(checkpoint.params["encoder"]))


def _encode(
    encoder: Encoder,
    compute: Compute,
    pooling: str,
    params: dict,
    input_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
    token_type_ids: Int[Array, "B L"] | None = None,
) -> Array:
    hidden = models.encode(
        encoder, compute, params, input_ids, attention_mask, token_type_ids=token_type_ids
    )["last_hidden_state"]
    return models.pool(hidden, attention_mask, pooling) if pooling else hidden.astype("float32")


def _fit(
    inputs: Float[np.ndarray, "n D"],
    targets: np.ndarray,
    penalty: float,
    head: TaskHead,
    class_weights: dict[int, float] | None,
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from vectors to logits, one column for each of the head's outputs."""
    try:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise UserError(f"A probe needs {error.name}: pip install 'distilflax[tasks]'.") from None
    scaler = StandardScaler().fit(inputs)
    scaled = scaler.transform(inputs)
    if head.problem == "regression":
        ridge = Ridge(alpha=penalty * len(scaled)).fit(scaled, targets)
        return lambda x: ridge.predict(scaler.transform(x))[:, None]
    logistic = LogisticRegression(C=1 / (penalty * len(scaled)), max_iter=500)
    if head.problem == "multi" or head.kind == "answer":
        # Each output is a regression of its own, to which a weight of all its rows means nothing.
        many = OneVsRestClassifier(logistic).fit(scaled, targets.astype(int))
        # Of a single output scikit-learn gives no column.
        return lambda x: many.decision_function(scaler.transform(x)).reshape(len(x), -1)
    if len(np.unique(targets)) == 1:
        raise UserError(
            f"The training data of the probe has the label {head.labels[targets.flat[0]]!r} alone; "
            "raise config.data.fraction."
        )
    fitted = logistic.set_params(class_weight=class_weights).fit(scaled, targets)

    def logits(x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n N"]:
        found = fitted.decision_function(scaler.transform(x))
        if found.ndim == 1:
            found = np.stack([np.zeros_like(found), found], axis=1)
        # A class that the low-data draw missed is never said.
        out = np.full((len(x), head.outputs), -1e9)
        out[:, fitted.classes_] = found
        return out

    return logits
