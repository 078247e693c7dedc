"""A linear probe: how much of a task can be read off the frozen encoder, in seconds.

Sentence vectors (pooled) or the states of words' first pieces go to a logistic or ridge regression
of scikit-learn, whose strength of regularisation is chosen on the development data. Question
answering has no such probe: a span is no class.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax import models
from distilflax.batches import plan
from distilflax.errors import UserError
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches
from distilflax.tasks.data import Materials, Part, training_rows
from distilflax.tasks.finetune import figures
from distilflax.tasks.settings import FineTuning

# Penalties that are tried: of the mean loss, half the squared length of the weights.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def probe(run: FineTuning, materials: Materials) -> dict:
    """Fit on the training rows of `run.seed`; returns what `finetune`'s result holds, but no model.

    Raises:
      UserError: a task that has no probe, or scikit-learn is missing.
    """
    task = materials.task
    if task.kind == "answer":
        raise UserError(
            "config.training.mode 'probe' is for classification and tagging; use 'full' to answer "
            "questions."
        )
    rows = training_rows(task, materials.train, materials.labelled, run.data.fraction, run.seed)
    rows = rows[materials.train.features.owner[rows] < materials.labelled]
    inputs, targets = _points(run, materials, materials.train, rows)
    states = {
        name: _states(run, materials, part, np.arange(len(part.features.ids)))
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
    run: FineTuning, materials: Materials, part: Part, rows: Int[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "points D"], np.ndarray]:
    """Vectors and what they should say: one a row, or one for each tagged word of a row."""
    states = _states(run, materials, part, rows)
    if materials.task.kind == "sequence":
        return np.stack(states), part.features.targets["label"][rows]
    targets = [part.features.targets["tag"][row] for row in rows]
    tagged = [target >= 0 for target in targets]
    points = [state[mask] for state, mask in zip(states, tagged, strict=True)]
    wanted = [target[mask] for target, mask in zip(targets, tagged, strict=True)]
    return np.concatenate(points), np.concatenate(wanted)


def _states(
    run: FineTuning, materials: Materials, part: Part, rows: Int[np.ndarray, "n"]
) -> list[np.ndarray]:
    """[D] of each row where the task has a sequence head, [tokens, D] otherwise."""
    checkpoint, features = materials.checkpoint, part.features
    pooling = checkpoint.sentence.pooling if checkpoint.sentence else "mean"
    pooling = pooling if materials.task.kind == "sequence" else ""
    buckets = batches.buckets(run.data.max_length, run.data.buckets)
    size = run.training.batch_size
    params = jax.device_put(checkpoint.params["encoder"])
    found: list[np.ndarray] = [None] * len(rows)
    for part_of in plan.validation_plan(features.lengths[rows], batch_size=size, buckets=buckets):
        indices = rows[part_of.indices]
        with_types = checkpoint.encoder.type_vocab_size > 1
        batch = batches.collate(features, indices, size, part_of.length, with_types=with_types)
        types = batch.get("token_type_ids")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        out = _encode(checkpoint.encoder, run.compute, pooling, params, ids, mask, types)
        for place, index, row in zip(part_of.indices, indices, jax.device_get(out), strict=False):
            found[place] = (row if pooling else row[: len(features.ids[index])]).copy()
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(
    encoder: Encoder,
    compute: Compute,
    pooling: str,
    params: dict,
    ids: Int[Array, "B L"],
    mask: Int[Array, "B L"],
    types: Int[Array, "B L"] | None,
) -> Array:
    hidden = models.encode(encoder, compute, params, ids, mask, token_type_ids=types)
    hidden = hidden["last_hidden_state"]
    return models.pool(hidden, mask, pooling) if pooling else hidden.astype("float32")


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
