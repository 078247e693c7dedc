"""A student that starts nearer to its teacher: the left-out layers, imitated by linear regression.

A copied layer was trained to be followed by the teacher's next one; in the student it has to stand
for all layers of the teacher up to the next copied one, a block. So it keeps its copied attention,
at which the block begins, and takes feed-forward and LayerNorms from the layer at which the block
ends. Then its two linear maps that end in a residual are refitted, first that of the attention,
towards what entered the feed-forward of the block's last layer in the teacher, then that of the
feed-forward, towards what came out of it. Kernel W and bias b are the ridge regression, from the
copied W0 and b0,

    min_{W,b} sum_tokens || x W + b - (target' - r) ||^2 + lambda || (W, b) - (W0, b0) ||^2

where x enters the map, r is its residual, and target' is the target before LayerNorm, at the mean
and scale that the unfitted layer has for that token. lambda is what serves tokens best that the fit
has not seen. Layers are fitted from the first to the last, each on what the fitted ones before it
produce. No gradient is taken; 60,000 tokens and a minute of a CPU stand for many steps of training.
The idea is that of reconstruction in post-training pruning (He et al. 2017,
arXiv:1707.06168, section 3.1.2).
"""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from distilflax import models
from distilflax.batches.pipeline import HostBatch, Sequences, fitting_batches
from distilflax.models.layers import ACTIVATIONS
from distilflax.settings import Compute, Encoder, Experiment
from distilflax.weights import Checkpoint, surgery

_ROWS = 32  # sequences run at a time; the result does not depend on it
_LEAST_SCALE = 1e-6  # of a LayerNorm; what is multiplied by less cannot be told
_HELD_OUT = 5  # of so many batches, one chooses lambda and the others fit
# Of each part of a layer, in this order, the linear map that ends in a residual.
_PARTS = (("attention", "output"), ("ffn", "down"))
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # lambda as a part of the activations' mean square


def regress(
    experiment: Experiment,
    teacher: Checkpoint,
    encoder: Encoder,
    params: dict,
    sequences: Sequences,
) -> dict:
    """`params` of the copied student with every layer refitted to stand for its block."""
    student = experiment.student
    copied = surgery.layer_indices(
        student.layer_map, teacher.encoder.num_layers, student.num_layers
    )
    ends = [first - 1 for first in (*copied[1:], teacher.encoder.num_layers)]
    batches = text_of_the_fit(experiment, sequences)
    # The teacher runs once. What it shows waits in main memory: 8 bytes x tokens x width a layer.
    hidden, shown = _run_teacher(teacher, ends, batches)
    moments = {part: jax.jit(partial(_layer_moments, encoder, part)) for part, _ in _PARTS}
    onward = jax.jit(partial(_onward, encoder))
    fitted = dict(params["encoder"])
    for number, end in enumerate(ends):
        last = teacher.params["encoder"][f"layers_{end}"]
        ended = {name: last[name] for name in ("attention_norm", "ffn", "ffn_norm")}
        layer = jax.device_put(fitted[f"layers_{number}"] | ended)
        for part, linear in _PARTS:
            targets = [after[part][number] for after in shown]
            inputs = zip(hidden, targets, batches, strict=True)
            sums = (moments[part](layer, *of_batch) for of_batch in inputs)
            refitted = _refit(layer[part][linear], sums)
            layer = layer | {part: layer[part] | {linear: refitted}}
        fitted[f"layers_{number}"] = jax.device_get(layer)
        hidden = [
            jax.device_get(onward(layer, *of_batch))
            for of_batch in zip(hidden, batches, strict=True)
        ]
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


def _run_teacher(
    teacher: Checkpoint, ends: list[int], batches: list[dict]
) -> tuple[list[Float[np.ndarray, "B L D"]], list[dict[str, list[Float[np.ndarray, "B L D"]]]]]:
    """For each batch the embeddings, and what the layers `ends` made after each of their parts."""

    @jax.jit
    def run(params, batch):
        # float32, whatever the run computes in: a regression is only as good as its moments.
        wanted = ("hidden_states", "ffn_inputs")
        out = models.encode_batch(teacher.encoder, Compute(), params, batch, outputs=wanted)
        after = {
            "attention": [out["ffn_inputs"][end] for end in ends],
            "ffn": [out["hidden_states"][end + 1] for end in ends],
        }
        return out["hidden_states"][0], after

    params = jax.device_put(teacher.params["encoder"])
    found = [jax.device_get(run(params, batch)) for batch in batches]
    return [embedded for embedded, _ in found], [after for _, after in found]


def _refit(copied: dict, moments: Iterable[tuple[Array, Array]]) -> dict:
    """The linear map {"kernel", "bias"} that takes the place of `copied`, from each batch's
    moments."""
    fit, held_out = [0.0, 0.0], [0.0, 0.0]
    for number, of_batch in enumerate(moments):
        sums = held_out if number % _HELD_OUT == 0 else fit
        for i, moment in enumerate(of_batch):
            sums[i] += np.asarray(moment, np.float64)
    before = np.concatenate([copied["kernel"], np.asarray(copied["bias"])[None]])
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


def _layer_moments(
    encoder: Encoder,
    part: str,
    layer: dict,
    hidden: Float[Array, "B L D"],
    target: Float[Array, "B L D"],
    batch: dict,
) -> tuple[Float[Array, "F1 F1"], Float[Array, "F1 D"]]:
    """The moments of the last linear map of a layer's `part`, for the `hidden` that enters it."""
    _, shown = _run_layer(encoder, layer, hidden, batch, ("contexts", "ffn_inputs"))
    real = batch["attention_mask"] > 0
    if part == "attention":
        linear, norm = layer["attention"]["output"], layer["attention_norm"]
        return _moments(shown["contexts"], linear, hidden, norm, target, real)
    ffn, entered = layer["ffn"], shown["ffn_inputs"]
    active = ACTIVATIONS[encoder.hidden_act](entered @ ffn["up"]["kernel"] + ffn["up"]["bias"])
    return _moments(active, ffn["down"], entered, layer["ffn_norm"], target, real)


def _moments(
    x: Float[Array, "B L F"],
    linear: dict,
    residual: Float[Array, "B L D"],
    norm: dict,
    target: Float[Array, "B L D"],
    real: Bool[Array, "B L"],
) -> tuple[Float[Array, "F1 F1"], Float[Array, "F1 D"]]:
    """X^T X and X^T Y over real tokens: X is `x` and a one, Y what the map should make of it for
    LayerNorm(residual + Y) to be the target."""
    before_norm = residual + x @ linear["kernel"] + linear["bias"]
    # LayerNorm forgets mean and scale, so the copied map's own are kept, the least change.
    scale = jnp.std(before_norm, axis=-1, keepdims=True)
    mean = jnp.mean(before_norm, axis=-1, keepdims=True)
    # What the norm multiplies by nothing says nothing of its input, which stays as it is.
    told = jnp.abs(norm["scale"]) > _LEAST_SCALE
    wanted = (target - norm["bias"]) / jnp.where(told, norm["scale"], 1.0) * scale + mean
    y = jnp.where(told, wanted, before_norm) - residual
    x = jnp.concatenate([x, jnp.ones_like(scale)], axis=-1)
    x, y = (jnp.where(real[..., None], array, 0.0).reshape(-1, array.shape[-1]) for array in (x, y))
    return x.T @ x, x.T @ y


def _onward(
    encoder: Encoder, layer: dict, hidden: Float[Array, "B L D"], batch: dict
) -> Float[Array, "B L D"]:
    return _run_layer(encoder, layer, hidden, batch, ())[0]


def _run_layer(
    encoder: Encoder, layer: dict, hidden: Float[Array, "B L D"], batch: dict, outputs: tuple
) -> tuple[Float[Array, "B L D"], dict]:
    return models.encode_layer(
        encoder,
        Compute(),
        layer,
        hidden,
        batch["attention_mask"],
        segment_ids=batch.get("segment_ids"),
        outputs=outputs,
    )
