"""How much the heads and the feed-forward neurons of a model matter, by the gradient of a mask.

Michel et al. 2019 (arXiv:1905.10650, equation 2): a head whose output is multiplied by a mask xi
matters as much as the loss changes with it, I = E_text |dL / d xi| at xi = 1. Molchanov et al. 2017
(arXiv:1611.06440) have the same of neurons, the first-order Taylor of taking one away. A mask in
front of rows W of a kernel has the gradient <W, dL / dW>, so no model needs to have masks.

The loss wants no labels: L = -log p(y | text), y drawn from the model's own answer: a label or a
word of its distribution, and for vectors and numbers a normal one around them. It is what the
model's own output, and not a data set, says of a change (the Fisher information; Theis et al. 2018,
arXiv:1801.05787, prune by it).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from distilflax.export import samples
from distilflax.export.subject import Subject, forward


class Importance(NamedTuple):
    """Of every head and every neuron of each layer, at least 0."""

    heads: Float[np.ndarray, "layers H"]
    neurons: Float[np.ndarray, "layers F"]


def measure(subject: Subject, texts: Sequence[str], seed: int = 0) -> Importance:
    """The mean over the texts of |dL / d mask|."""
    gradient, params = masks_gradient(subject), jax.device_put(subject.params)
    key, total, count = jax.random.key(seed), None, 0
    for batch in samples.unpadded(subject, texts):
        for ids, mask, kinds in zip(*batch, strict=True):
            fill = samples.filling(subject, len(ids))
            row = [jnp.asarray(np.pad(x, (0, fill))[None], jnp.int32) for x in (ids, mask, kinds)]
            found = gradient(params, jax.random.fold_in(key, count), *row[: len(subject.inputs)])
            found = [np.abs(np.asarray(x, np.float64)) for x in jax.device_get(found)]
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
            count += 1
    return Importance(*(part / count for part in total))


def masks_gradient(
    subject: Subject,
) -> Callable[..., tuple[Float[Array, "layers H"], Float[Array, "layers F"]]]:
    """The function of (params, key, input_ids, attention_mask, token_type_ids?) to dL / d mask of
    heads and of neurons."""
    run, encoder = forward(subject), subject.encoder
    layers = [f"layers_{i}" for i in range(encoder.num_layers)]

    def gradient(params: dict, key: PRNGKeyArray, *given: Array):
        def loss(kernels):
            answers = run(_with_kernels(params, kernels), *given)
            return surprise(subject, answers, given[1], key)

        kernels = {name: _kernels(params["encoder"][name]) for name in layers}
        slopes = jax.grad(loss)(kernels)
        products = jax.tree.map(lambda kernel, slope: (kernel * slope).sum(axis=1), kernels, slopes)
        heads = [products[name]["output"].reshape(encoder.num_heads, -1).sum(1) for name in layers]
        return jnp.stack(heads), jnp.stack([products[name]["down"] for name in layers])

    return jax.jit(gradient)


def surprise(
    subject: Subject, answers: Mapping[str, Array], attention_mask: Array, key: PRNGKeyArray
) -> Float[Array, ""]:
    """-log p(y | text) up to a constant, for y drawn from the answers; a mean over real tokens."""
    names = list(answers)
    if "sentence_embedding" in names:
        names = ["sentence_embedding"]  # what the model is for
    real = attention_mask.astype(bool)
    head = subject.checkpoint.head
    total = jnp.zeros(())
    for i, name in enumerate(names):
        answer, drawn = answers[name], jax.random.fold_in(key, i)
        if name == "logits" and head is not None and head.problem == "multi":
            total += _binary(answer, drawn).sum(-1).mean()
        elif name == "logits" and not (head is not None and head.problem == "regression"):
            each = _categorical(answer, drawn)
            total += _mean(each, real) if each.ndim == 2 else each.mean()
        elif name in ("start_logits", "end_logits"):
            total += _categorical(jnp.where(real, answer, -1e9), drawn).mean()
        else:
            noise = jax.random.normal(drawn, answer.shape)
            each = (answer * noise).sum(-1)
            total += _mean(each, real) if each.ndim == 2 else each.mean()
    return total


def _categorical(logits: Float[Array, "*B N"], key: PRNGKeyArray) -> Float[Array, "*B"]:
    drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]


def _binary(logits: Float[Array, "*B N"], key: PRNGKeyArray) -> Float[Array, "*B N"]:
    yes = jax.random.bernoulli(key, jax.nn.sigmoid(jax.lax.stop_gradient(logits)))
    return -jax.nn.log_sigmoid(jnp.where(yes, logits, -logits))


def _mean(each: Float[Array, "B L"], real: Array) -> Float[Array, ""]:
    return jnp.where(real, each, 0.0).sum() / real.sum()


def _kernels(layer: dict) -> dict[str, Array]:
    """Those whose rows are the outputs of heads and of neurons."""
    return {
        "output": layer["attention"]["output"]["kernel"],
        "down": layer["ffn"]["down"]["kernel"],
    }


def _with_kernels(params: dict, kernels: dict[str, dict[str, Array]]) -> dict:
    encoder = dict(params["encoder"])
    for name, found in kernels.items():
        attention, ffn = encoder[name]["attention"], encoder[name]["ffn"]
        output = {**attention["output"], "kernel": found["output"]}
        down = {**ffn["down"], "kernel": found["down"]}
        encoder[name] = {
            **encoder[name],
            "attention": {**attention, "output": output},
            "ffn": {**ffn, "down": down},
        }
    return {**params, "encoder": encoder}
