"""A linear probe: how much of a task can be read off the frozen encoder, in seconds.

Sentence vectors (pooled) or the states of words' first pieces go to a logistic or ridge regression
of scikit-learn, whose strength of regularisation is chosen on the development data. Question
answering has no such probe: a span is no class. Nor has retrieval, whose vectors have no layer
above them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax import models
from distilflax.errors import UserError
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches
from distilflax.tasks.data import Materials, Part, training_rows
from distilflax.tasks.finetune import figures
from distilflax.tasks.runner import Runner
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.task import Features, Task

# Penalties that are tried: of the mean loss, half the squared length of the weights.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)

Reader = Callable[[Features], list[np.ndarray]]


def probe(run: FineTuning, materials: Materials) -> dict:
    """Fit on the training rows of `run.seed`; returns what `finetune`'s result holds, but no model.

    Raises:
      UserError: a task that has no probe, or scikit-learn is missing.
    """
    task = materials.task
    if task.kind not in ("sequence", "token"):
        raise UserError(
            "config.training.mode 'probe' is for classification and tagging; use 'full' for "
            f"{task.name}."
        )
    rows = training_rows(task, materials.train, materials.labelled, run.data.fraction, run.seed)
    rows = rows[materials.train.features.owner[rows] < materials.labelled]
    read = _reader(run, materials)
    inputs, targets = _points(read, task, materials.train.features, rows)
    states = {
        name: read(part.features)
        for name, part in (("dev", materials.dev), ("test", materials.test))
        if part is not None
    }
    best = None
    for penalty in PENALTIES:
        logits = _fit(inputs, targets, penalty, task.head(materials.checkpoint.encoder))
        tuned, measured = _measured(logits, states["dev"], task, materials.dev, tuned=True)
        if best is None or measured[task.metric] > best[1][task.metric]:
            best = tuned, measured, logits, penalty
    tuned, measured, logits, penalty = best
    result = {
        "seed": run.seed,
        "metric": task.metric,
        "training_rows": len(rows),
        "penalty": penalty,
        "dev": measured,
    }
    if materials.test is not None:
        found = _measured(logits, states["test"], tuned, materials.test, tuned=False)
        result["test"] = found[1]
    return result


def _measured(logits, states: Sequence[np.ndarray], task, part: Part, *, tuned: bool):
    rows = [logits(np.atleast_2d(row)) for row in states]
    rows = [row[0] if task.kind == "sequence" else row for row in rows]
    return figures(task, rows, part, tuned=tuned)


def _points(
    read: Reader, task: Task, features: Features, rows: Int[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "points D"], np.ndarray]:
    """Vectors and what they should say: one a row, or one for each tagged word of a row."""
    chosen = Features(
        [features.ids[row] for row in rows],
        [features.types[row] for row in rows],
        features.owner[rows],
    )
    states = read(chosen)
    if task.kind == "sequence":
        return np.stack(states), features.targets["label"][rows]
    targets = [features.targets["tag"][row] for row in rows]
    tagged = [target >= 0 for target in targets]
    points = [state[mask] for state, mask in zip(states, tagged, strict=True)]
    wanted = [target[mask] for target, mask in zip(targets, tagged, strict=True)]
    return np.concatenate(points), np.concatenate(wanted)


def _reader(run: FineTuning, materials: Materials) -> Reader:
    """Features to [D] of each row where the task has a sequence head, to [tokens, D] otherwise."""
    checkpoint = materials.checkpoint
    pooling = checkpoint.sentence.pooling if checkpoint.sentence else "mean"
    pooling = pooling if materials.task.kind == "sequence" else ""
    runner = Runner(
        partial(_encode, checkpoint.encoder, run.compute, pooling),
        with_types=checkpoint.encoder.type_vocab_size > 1,
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


def _fit(inputs: Float[np.ndarray, "n D"], targets: np.ndarray, penalty: float, head):
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
    if head.problem == "multi":
        many = OneVsRestClassifier(logistic).fit(scaled, targets.astype(int))
        return lambda x: many.decision_function(scaler.transform(x))
    fitted = logistic.fit(scaled, targets)

    def logits(x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n N"]:
        found = fitted.decision_function(scaler.transform(x))
        if found.ndim == 1:
            found = np.stack([np.zeros_like(found), found], axis=1)
        # A class that the low-data draw missed is never said.
        out = np.full((len(x), head.outputs), -1e9)
        out[:, fitted.classes_] = found
        return out

    return logits
