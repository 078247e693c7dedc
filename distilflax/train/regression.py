"""A student that starts nearer to its teacher: the left-out layers, imitated by linear regression.

A copied layer was trained to be followed by the teacher's next one, and in the student it is
followed by a later one. So each student layer is given a target: the hidden state that entered the
next copied layer in the teacher (the last layer: the teacher's output). Its LayerNorm is that of
the teacher's layer that made the target, and the kernel W and bias b of its last linear map are the
ridge regression, from the copied W0 and b0,

    min_{W,b} sum_tokens || a W + b - (target' - r) ||^2 + lambda || (W, b) - (W0, b0) ||^2

where r enters the feed-forward (and is its residual), a are its activations, and target' is the
target before LayerNorm, at the mean and scale that the copied layer has for that token. lambda is
what serves tokens best that the fit has not seen. Layers are fitted from the first to the last,
each on what the fitted ones before it produce. No gradient is taken; 30,000 tokens and half a
minute of a CPU stand for many steps of training. The idea is that
of reconstruction in post-training pruning (He et al. 2017, arXiv:1707.06168, section 3.1.2).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distilflax import models
from distilflax.batches.pipeline import HostBatch, Sequences, fitting_batches
from distilflax.models.layers import ACTIVATIONS
from distilflax.settings import Compute, Encoder, Experiment
from distilflax.weights import Checkpoint, surgery

_ROWS = 32  # sequences run at a time; the result does not depend on it
_HELD_OUT = 5  # of so many batches, one chooses lambda and the others fit
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # lambda as a part of the activations' mean square


def regress(
    experiment: Experiment,
    teacher: Checkpoint,
    encoder: Encoder,
    params: dict,
    sequences: Sequences,
) -> dict:
    """`params` of the copied student with every layer's `ffn/down` and `ffn_norm` refitted."""
    student = experiment.student
    copied = surgery.layer_indices(
        student.layer_map, teacher.encoder.num_layers, student.num_layers
    )
    targets = (*copied[1:], teacher.encoder.num_layers)  # index into the teacher's hidden states
    batches = text_of_the_fit(experiment, sequences)
    # The teacher runs once. Its targets wait in main memory: tokens x width x 4 bytes for a layer.
    wanted = _targets(teacher, targets, batches)
    fitted = dict(params["encoder"])
    for layer, target in enumerate(targets):
        name, imitated = f"layers_{layer}", f"layers_{target - 1}"
        norm = teacher.params["encoder"][imitated]["ffn_norm"]
        fitted[name] = fitted[name] | {"ffn_norm": norm}
        down = _refit(encoder, fitted, layer, batches, [states[layer] for states in wanted])
        fitted[name] = fitted[name] | {"ffn": fitted[name]["ffn"] | {"down": down}}
    return params | {"encoder": fitted}


def text_of_the_fit(experiment: Experiment, sequences: Sequences) -> list[HostBatch]:
    """The batches that a student is fitted on before its first step."""
    return list(
        fitting_batches(
            sequences,
            rows=_ROWS,
            tokens=experiment.student.regression_tokens,
            seed=experiment.seed,
            data=experiment.data,
        )
    )


def _targets(
    teacher: Checkpoint, targets: tuple[int, ...], batches: list[dict]
) -> list[list[Float[np.ndarray, "B L D"]]]:
    """For each batch the teacher's hidden states that `targets` names."""

    @jax.jit
    def run(params, batch):
        states = _encode(teacher.encoder, params, batch, ("hidden_states",))["hidden_states"]
        return [states[target] for target in targets]

    params = jax.device_put(teacher.params["encoder"])
    return [jax.device_get(run(params, batch)) for batch in batches]


def _refit(
    encoder: Encoder,
    params: dict,
    layer: int,
    batches: list[dict],
    targets: list[Float[np.ndarray, "B L D"]],
) -> dict:
    """The new `ffn/down` of one layer: {"kernel", "bias"}."""
    down = params[f"layers_{layer}"]["ffn"]["down"]
    upto = dataclasses.replace(encoder, num_layers=layer + 1)

    @jax.jit
    def moments(params, batch, target):
        entered = _encode(upto, params, batch, ("ffn_inputs",))["ffn_inputs"][layer]
        return _moments(encoder, params[f"layers_{layer}"], entered, target, batch)

    on_device = jax.device_put(params)
    fit, held_out = [0.0, 0.0], [0.0, 0.0]
    for number, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        sums = held_out if number % _HELD_OUT == 0 else fit
        for i, moment in enumerate(moments(on_device, batch, target)):
            sums[i] += np.asarray(moment, np.float64)
    before = np.concatenate([down["kernel"], np.asarray(down["bias"])[None]])
    after = before + _ridge_change(before, fit, held_out)
    return {"kernel": after[:-1].astype(np.float32), "bias": after[-1].astype(np.float32)}


def _ridge_change(
    before: Float[np.ndarray, "F1 D"], fit: Sequence[np.ndarray], held_out: Sequence[np.ndarray]
) -> Float[np.ndarray, "F1 D"]:
    """What the ridge regression adds to `before`, lambda by the error on `held_out`; both are
    moments (X^T X, X^T Y)."""

    def error(change):
        """||X (before + change) - Y||^2 but for a constant."""
        after = before + change
        return np.sum(after * (held_out[0] @ after - 2 * held_out[1]))

    best = min(_RIDGES, key=lambda ridge: error(_change(before, *fit, ridge)))
    # With lambda chosen, all tokens count.
    return _change(before, fit[0] + held_out[0], fit[1] + held_out[1], best)


def _change(
    before: Float[np.ndarray, "F1 D"],
    square: Float[np.ndarray, "F1 F1"],
    cross: Float[np.ndarray, "F1 D"],
    ridge: float,
) -> Float[np.ndarray, "F1 D"]:
    """The regression's change for one ridge, by its normal equations."""
    weight = ridge * np.trace(square) / len(square) * np.eye(len(square))
    return np.linalg.solve(square + weight, cross - square @ before)


def _moments(
    encoder: Encoder,
    layer: dict,
    entered: Float[Array, "B L D"],
    target: Float[Array, "B L D"],
    batch: dict,
) -> tuple[Float[Array, "F1 F1"], Float[Array, "F1 D"]]:
    """X^T X and X^T Y over real tokens: X the activations and a one, Y what they should become."""
    ffn, norm = layer["ffn"], layer["ffn_norm"]
    active = ACTIVATIONS[encoder.hidden_act](entered @ ffn["up"]["kernel"] + ffn["up"]["bias"])
    before_norm = entered + active @ ffn["down"]["kernel"] + ffn["down"]["bias"]
    # LayerNorm forgets mean and scale, so the copied layer's own are kept, the least change.
    scale = jnp.std(before_norm, axis=-1, keepdims=True)
    mean = jnp.mean(before_norm, axis=-1, keepdims=True)
    wanted = (target - norm["bias"]) / norm["scale"] * scale + mean - entered
    real = (batch["attention_mask"] > 0)[..., None]
    x = jnp.where(real, jnp.concatenate([active, jnp.ones_like(scale)], axis=-1), 0.0)
    y = jnp.where(real, wanted, 0.0)
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    return x.T @ x, x.T @ y


def _encode(encoder: Encoder, params: dict, batch: dict, outputs: tuple[str, ...] = ()) -> dict:
    # float32, whatever the run computes in: a regression is only as good as its moments.
    return models.encode(
        encoder,
        Compute(),
        params,
        batch["input_ids"],
        batch["attention_mask"],
        position_ids=batch.get("position_ids"),
        segment_ids=batch.get("segment_ids"),
        outputs=outputs,
    )
