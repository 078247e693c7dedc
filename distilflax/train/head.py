"""A masked-LM head for a teacher that has none, as sentence encoders do.

The encoder stays frozen. So it runs over the text once, its states at the masked positions are
kept, and the head (transform, LayerNorm, the decoder's bias; the decoder itself is tied to the
frozen word embeddings) learns from those: by a linear regression first, which is as good as three
passes of gradient descent from random weights and takes no time, then by a few passes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from distilflax import models
from distilflax.batches.masking import MaskTable, at_positions, mask_tokens
from distilflax.batches.pipeline import Sequences, fitting_batches
from distilflax.losses.logits import correct, cross_entropy
from distilflax.losses.total import CHUNK_ROWS
from distilflax.losses.vocabulary import Decoder, chunked_loss
from distilflax.settings import Compute, Encoder, Experiment
from distilflax.text.on_disk import exclusive, replacing, writing_to
from distilflax.train.state import MASKING, purpose_key

# Sequences that the frozen encoder takes at a time; the head's result does not depend on it.
_ENCODE_ROWS = 32

# Of the regression that the fit starts from, chosen on masked words of all-MiniLM-L6-v2: the ridge
# as a part of the states' mean variance, where in standard deviations GELU begins to be the
# identity, the length of the vector that meets the word embeddings, and the count given to a word
# that was never masked.
_RIDGE = 0.1
_LIFT = 4.0
_LOGIT_SCALE = 8.0
_UNSEEN = 0.05


def fitted_head(
    experiment: Experiment,
    encoder: Encoder,
    params: dict,
    sequences: Sequences,
    table: MaskTable,
    *,
    fingerprint: str,
    say: Callable[[str], None],
) -> dict:
    """The "mlm_head" subtree for the encoder `params`, from the cache or fitted now.

    `fingerprint` stands for teacher, tokenizer and text; with the settings of masking, data and
    fit, and the seed, it names the file under `data.cache`/heads. Deterministic, and the same on
    every process of a run. Of several processes that lack the same head one fits it, and the
    others wait.

    Raises:
      UserError: `data.cache` cannot be written to, or the disk is full.
    """
    path = _cache_path(experiment, fingerprint)
    expected = models.shapes(encoder, mlm_head=True)["mlm_head"]  # tied: without a decoder
    if (cached := _read(path, expected)) is not None:
        return cached
    with (
        writing_to(path.parent, "data.cache"),
        exclusive(path.with_suffix(".lock"), "fitting this teacher's masked-LM head"),
    ):
        if (cached := _read(path, expected)) is not None:  # Somebody else was faster.
            return cached
        tokens = experiment.head_fit.tokens
        say(f"the teacher has no masked-LM head: fitting one on {tokens:,} tokens")
        rows, labels = _masked_states(experiment, encoder, params, sequences, table)
        head, accuracy = _fit(experiment, encoder, params, rows, labels)
        say(
            f"the teacher's head is fitted: it predicts {accuracy:.1%} of the words it learned from"
        )
        _write(path, head)
    return head


def _masked_states(
    experiment: Experiment,
    encoder: Encoder,
    params: dict,
    sequences: Sequences,
    table: MaskTable,
) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, " N"]]:
    """Hidden states and labels of masked positions, until `head_fit.tokens` tokens were read."""
    masking = dataclasses.replace(experiment.masking, sequences=1.0)

    @jax.jit
    def encode(params, key, batch):
        masked = mask_tokens(key, batch["input_ids"], batch["attention_mask"], table, masking)
        shown = {**batch, "input_ids": masked.input_ids}
        out = models.encode_batch(encoder, experiment.compute, params["encoder"], shown)
        states = at_positions(out["last_hidden_state"], masked.positions)
        return states.astype(jnp.float32), masked.labels, masked.weights

    batches = fitting_batches(
        sequences,
        rows=_ENCODE_ROWS,
        tokens=experiment.head_fit.tokens,
        seed=experiment.seed,
        data=experiment.data,
    )
    root = purpose_key(experiment.seed, MASKING)
    states, labels = [], []
    for number, batch in enumerate(batches):
        out = encode(params, jax.random.fold_in(root, number), batch)
        batch_states, batch_labels, weights = jax.device_get(out)
        states.append(batch_states[weights > 0])
        labels.append(batch_labels[weights > 0])
    return np.concatenate(states), np.concatenate(labels)


def _fit(
    experiment: Experiment,
    encoder: Encoder,
    params: dict,
    rows: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
) -> tuple[dict, float]:
    """(the fitted head, its accuracy over the last pass)."""
    fit = experiment.head_fit
    matrix = params["encoder"]["embeddings"]["word"]
    head = jax.device_put(_regressed_head(encoder, np.asarray(matrix), rows, labels))
    batch_rows = min(fit.batch_rows, len(rows))
    steps_per_pass = len(rows) // batch_rows
    steps = steps_per_pass * fit.passes
    optimizer = optax.adam(optax.linear_schedule(fit.learning_rate, 0.0, steps), b2=0.98)
    step = jax.jit(partial(_step, encoder, experiment.compute, optimizer), donate_argnums=(0, 1))

    matrix = jax.device_put(matrix)
    opt_state = optimizer.init(head)
    random = np.random.default_rng(experiment.seed)
    for _ in range(fit.passes):
        order = random.permutation(len(rows))[: steps_per_pass * batch_rows]
        hits_of_pass = []
        for chosen in order.reshape(steps_per_pass, batch_rows):
            head, opt_state, hits = step(head, opt_state, matrix, rows[chosen], labels[chosen])
            hits_of_pass.append(hits)
    accuracy = float(jnp.sum(jnp.stack(hits_of_pass))) / (steps_per_pass * batch_rows)
    return jax.device_get(head), accuracy


def _regressed_head(
    encoder: Encoder,
    matrix: Float[np.ndarray, "V D"],
    rows: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
) -> dict:
    """A head that linear algebra gives for nothing, to start from.

    The transform is the ridge regression from the states to the embeddings of the words that were
    masked, scaled to unit variance and lifted to where GELU is the identity; LayerNorm takes the
    lift out again. The decoder's bias is the log frequency of the words.
    """
    mean_row, mean_word = rows.mean(0, dtype=np.float64), matrix[labels].mean(0, dtype=np.float64)
    states, words = rows - mean_row, matrix[labels] - mean_word
    covariance = states.T @ states / len(rows)
    ridge = _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    kernel = np.linalg.solve(covariance + ridge, states.T @ words / len(rows))
    kernel /= max(np.std(states @ kernel), 1e-12)
    counts = np.bincount(labels, minlength=encoder.vocab_size) + _UNSEEN
    head = {
        "transform": {"kernel": kernel, "bias": _LIFT - mean_row @ kernel},
        "norm": {
            "scale": np.full(encoder.hidden_size, _LOGIT_SCALE / np.sqrt(encoder.hidden_size)),
            "bias": np.zeros(encoder.hidden_size),
        },
        "bias": np.log(counts / counts.sum()),
    }
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), head)


def _step(
    encoder: Encoder,
    compute: Compute,
    optimizer: optax.GradientTransformation,
    head: dict,
    opt_state: optax.OptState,
    matrix: Float[Array, "V D"],
    rows: Float[Array, "N D"],
    labels: Int[Array, " N"],
) -> tuple[dict, optax.OptState, Float[Array, ""]]:
    def loss(head):
        hidden = models.mlm_transform(encoder, compute, {"mlm_head": head}, rows)
        return chunked_loss(
            (cross_entropy, correct),
            Decoder(hidden, jax.lax.stop_gradient(matrix), head["bias"]),
            None,
            labels,
            jnp.ones((2, len(labels))),
            # The second function is a metric: scale 0 keeps it out of the gradient.
            jnp.array([1.0 / len(labels), 0.0]),
            CHUNK_ROWS,
        )

    grads, sums = jax.grad(loss, has_aux=True)(head)
    updates, opt_state = optimizer.update(grads, opt_state, head)
    return optax.apply_updates(head, updates), opt_state, sums[1]


def _cache_path(experiment: Experiment, fingerprint: str) -> Path:
    determined_by = [
        fingerprint,
        experiment.seed,
        dataclasses.asdict(experiment.head_fit),
        dataclasses.asdict(experiment.masking),
        experiment.data.max_length,
        experiment.compute.dtype,
    ]
    name = hashlib.sha256(json.dumps(determined_by).encode()).hexdigest()[:16]
    return Path(experiment.data.cache).expanduser() / "heads" / f"{name}.safetensors"


def _read(path: Path, expected: dict) -> dict | None:
    """The cached head; None when there is none, or none that fits."""
    try:
        head = unflatten_dict(load_file(path), sep="/")
    except (OSError, SafetensorError):
        return None
    # A damaged or foreign file is as good as none: fitting again is all that it costs.
    same = jax.tree.map(lambda leaf: leaf.shape, head) == jax.tree.map(lambda s: s.shape, expected)
    return head if same else None


def _write(path: Path, head: dict) -> None:
    """The cached head, whole or not at all; its writer holds the lock."""
    with replacing(path) as making:
        making.write_bytes(save(flatten_dict(head, sep="/")))
