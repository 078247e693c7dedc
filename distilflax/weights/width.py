"""A narrower student: fewer coordinates, heads and feed-forward neurons, fitted without a gradient.

The hidden state is read through coordinates that are kept, S, and never rotated:

    x ~ x[S] T + c        T, c: least squares on a text, T the identity on the kept ones

Kernels that write the state keep the columns S, kernels that read it become T K (bias b + c K), T
and c being those of the state that they read. S are the pivots of a Cholesky factorisation of the
states' covariance, which is a pivoted QR of the states themselves: an interpolative decomposition
(Chee et al. 2021, arXiv:2108.00065, who prune neurons by it). Neurons of a feed-forward are chosen
and stood in for in the same way, each weighed by what the layer's output makes of it.

Why not the leading singular vectors, as SliceGPT (Ashkboos et al. 2024, arXiv:2401.15024) does for
models with RMSNorm in front of each layer? BERT's LayerNorm comes after the sum and its scale is on
the residual stream, where no rotation commutes with it: rotated, not even a student of full width
would be its teacher. A choice of coordinates commutes with scale and bias. What is left is that
mean and variance are those of S; each norm's scale and bias are refitted for that, by one line
through (S normalised by itself, what the model had there) for each coordinate.

Exact, up to rounding: a student of full width. Approximate: all that T leaves out; the spread that
a token's own mean and variance have around that line; a tied decoder, which loses the coordinates
that the embeddings lose. Heads that stay keep their size, or get a smaller one by the singular
values of x Wq Wk' x' and of x Wv Wo over the text, which are exact where the products have no
higher rank; of heads that go, the mean of what they wrote stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import lapack

from distilflax import models
from distilflax.models.layers import ACTIVATIONS
from distilflax.settings import Compute, Encoder

# Of the mean variance: what least squares adds to the kept ones' own, which are nearly dependent
# (a normalised state adds up to a constant).
_RIDGE = 1e-5
# A scale so small carries nothing, and cannot be divided by.
_LEAST_SCALE = 1e-6


class Moments(NamedTuple):
    """Of some vectors over the tokens of a text, float64."""

    mean: Float[np.ndarray, " N"]
    covariance: Float[np.ndarray, "N N"]


class StandIn(NamedTuple):
    """How the kept coordinates of a vector stand in for all: x ~ x[kept] @ matrix + offset."""

    kept: Int[np.ndarray, " n"]
    matrix: Float[np.ndarray, "n N"]
    offset: Float[np.ndarray, " N"]


def narrow(
    encoder: Encoder, params: Mapping, narrower: Encoder, batches: Iterable[Mapping[str, Any]]
) -> dict:
    """The parameters of `narrower` out of those of `encoder`, with which it shares its layers.

    `narrower` has at most the width, heads, width of a head and neurons of `encoder`;
    `surgery.student_encoder` sees to that. `batches` are host batches of the text that the fit is
    made on (`input_ids`, `attention_mask` [B, L], and what packed rows have beside them); some ten
    tokens for each coordinate are enough. A masked-LM head is narrowed with the encoder.
    """
    batches = list(batches)
    fewer_neurons = narrower.intermediate_size < encoder.intermediate_size
    states, neurons, transformed = all_moments(encoder, params, batches, fewer_neurons)
    kept = choose(
        sum(m.covariance / max(np.trace(m.covariance), 1e-30) for m in states),
        narrower.hidden_size,
    )
    norms = iter(_refitted_norms(encoder, params, kept, batches))
    read = [stand_in(moments, kept) for moments in states]

    old = params["encoder"]
    tables = {name: table[:, kept] for name, table in old["embeddings"].items() if name != "norm"}
    new: dict = {"embeddings": tables | {"norm": next(norms)}}
    for i in range(encoder.num_layers):
        layer, entered, between = old[f"layers_{i}"], 2 * i, 2 * i + 1
        spread = _taken(states[entered], kept)
        new[f"layers_{i}"] = {
            "attention": _attention(
                layer["attention"], encoder.num_heads, narrower, read[entered], spread
            ),
            "attention_norm": next(norms),
            "ffn": _feed_forward(
                layer["ffn"],
                neurons[i] if fewer_neurons else None,
                narrower.intermediate_size,
                read[between],
            ),
            "ffn_norm": next(norms),
        }
    out = {"encoder": new}
    if "mlm_head" in params:
        head = params["mlm_head"]
        out["mlm_head"] = {
            "transform": _columns(reading(head["transform"], read[-1]), kept),
            "norm": next(norms),
            "bias": head["bias"],
        }
        if "decoder" in head:
            # No embedding that others use too: it may read the state as every other kernel does.
            own = stand_in(transformed, kept)
            out["mlm_head"]["decoder"] = head["decoder"] @ own.matrix.T
            out["mlm_head"]["bias"] = head["bias"] + head["decoder"] @ own.offset
    return jax.tree.map(lambda leaf: np.array(leaf, np.float32), out)


def choose(covariance: Float[np.ndarray, "N N"], size: int) -> Int[np.ndarray, " size"]:
    """The `size` coordinates, rising, that are the first pivots: each the one of which the others
    before it explain the least."""
    _, pivots, _, _ = lapack.dpstrf(covariance, tol=0.0)
    return np.sort(pivots[:size] - 1)


def stand_in(moments: Moments, kept: Int[np.ndarray, " n"]) -> StandIn:
    """The least squares of all coordinates from the kept ones, which stand for themselves."""
    mean, covariance = moments
    left_out = np.setdiff1d(np.arange(len(mean)), kept)
    matrix = np.zeros((len(kept), len(mean)))
    matrix[np.arange(len(kept)), kept] = 1.0
    own = _ridged(covariance[np.ix_(kept, kept)])
    matrix[:, left_out] = np.linalg.solve(own, covariance[np.ix_(kept, left_out)])
    return StandIn(kept, matrix, mean - mean[kept] @ matrix)


def _attention(layer, heads, narrower, read, spread):
    """The four maps of an attention; `spread` are the moments of the kept coordinates."""
    query, key, value = (reading(layer[name], read) for name in ("query", "key", "value"))
    output = _columns(layer["output"], read.kept)
    size, new_size = layer["query"]["kernel"].shape[1] // heads, _head_size(narrower)
    # Rows of x R' have the identity for a covariance: norms of R K are those over the text.
    root = np.linalg.cholesky(_ridged(spread.covariance)).T

    columns = [slice(h * size, (h + 1) * size) for h in range(heads)]
    weight = [np.linalg.norm(root @ value["kernel"][:, c] @ output["kernel"][c]) for c in columns]
    staying = np.sort(np.argsort(weight, kind="stable")[heads - narrower.num_heads :])
    bias = output["bias"]
    for gone in np.setdiff1d(np.arange(heads), staying):
        c = columns[gone]
        # The weights of an attention add up to 1, so a constant value goes through it unchanged.
        mean = spread.mean @ value["kernel"][:, c] + value["bias"][c]
        bias = bias + mean @ output["kernel"][c]

    parts = []
    for h in staying:
        own = [_columns(linear, columns[h]) for linear in (query, key, value)]
        own.append({"kernel": output["kernel"][columns[h]]})
        if new_size < size:
            *own, constant = _smaller_head(*own, new_size, spread, root)
            bias = bias + constant
        parts.append(own)
    query, key, value, output = zip(*parts, strict=True)
    side_by_side = [
        {name: np.concatenate([part[name] for part in linear], -1) for name in ("kernel", "bias")}
        for linear in (query, key, value)
    ]
    rows = np.concatenate([part["kernel"] for part in output])
    names = ("query", "key", "value")
    return dict(zip(names, side_by_side, strict=True)) | {"output": {"kernel": rows, "bias": bias}}


def _smaller_head(query, key, value, output, size, spread, root):
    """(query, key, value, output, what the output's bias gains) of one head, cut to `size`.

    Scores (x Wq + bq) (y Wk + bk)' are compared as a form in (x, 1) and y; bk moves all scores of a
    query alike and the softmax does not see it. They are divided by the root of the head's size,
    which is another one now.
    """
    old_size, width = query["kernel"].shape[1], len(root)
    # (x, 1) has the root [[R, 0], [mean, 1]]: its square is the second moment.
    with_one = np.zeros((width + 1, width + 1))
    with_one[:width, :width], with_one[width] = root, [*spread.mean, 1.0]
    asking = np.vstack([query["kernel"], query["bias"]])
    ours, theirs = _low_rank(with_one @ asking, root @ key["kernel"], size)
    scale = (size / old_size) ** 0.25
    asking = np.linalg.solve(with_one, ours) * scale
    answering = np.linalg.solve(root, theirs) * scale

    given, written = _low_rank(root @ value["kernel"], output["kernel"].T, size)
    given, written = np.linalg.solve(root, given), written.T
    before = (spread.mean @ value["kernel"] + value["bias"]) @ output["kernel"]
    return (
        {"kernel": asking[:-1], "bias": asking[-1]},
        {"kernel": answering, "bias": np.zeros(size)},
        {"kernel": given, "bias": np.zeros(size)},
        {"kernel": written},
        before - spread.mean @ given @ written,
    )


def _low_rank(left, right, rank):
    """(a, b) of `rank` columns with a b' nearest to left right' (Eckart and Young 1936)."""
    (q_left, r_left), (q_right, r_right) = np.linalg.qr(left), np.linalg.qr(right)
    u, s, vt = np.linalg.svd(r_left @ r_right.T)
    share = np.sqrt(s[:rank])
    return q_left @ u[:, :rank] * share, q_right @ vt[:rank].T * share


def _feed_forward(layer, neurons, size, read):
    """Up and down with `size` neurons, the others stood in for by those; `neurons` None: all."""
    up, down = reading(layer["up"], read), _columns(layer["down"], read.kept)
    if neurons is None:
        return {"up": up, "down": down}
    weight = np.linalg.norm(layer["down"]["kernel"], axis=1)
    kept = choose(neurons.covariance * weight * weight[:, None], size)
    return {"up": _columns(up, kept), "down": reading(down, stand_in(neurons, kept))}


def reading(linear, read: StandIn):
    """The map from the kept coordinates that stands for `linear` from all of them."""
    kernel = np.asarray(linear["kernel"], np.float64)
    return {"kernel": read.matrix @ kernel, "bias": linear["bias"] + read.offset @ kernel}


def _columns(linear, columns):
    return {"kernel": linear["kernel"][:, columns], "bias": linear["bias"][columns]}


def _taken(moments, kept):
    return Moments(moments.mean[kept], moments.covariance[np.ix_(kept, kept)])


def _ridged(covariance):
    return covariance + _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def _head_size(encoder: Encoder) -> int:
    return encoder.hidden_size // encoder.num_heads


def all_moments(
    encoder: Encoder, params: Mapping, batches: Sequence[Mapping], with_neurons: bool
) -> tuple[list[Moments], list[Moments], Moments | None]:
    """Moments of every state (after the embeddings, then after each attention and feed-forward), of
    every layer's neurons if asked for (of all moments they take the most work), and of what the
    decoder reads (None without a head)."""

    @jax.jit
    def sums(params, batch):
        states, neurons, transformed = _run(encoder, params, batch)
        real = batch["attention_mask"] > 0
        wanted = (*states, *transformed, *(neurons if with_neurons else ()))
        return [_sums(x, real) for x in wanted]

    found = [_moments(*total) for total in _added(sums, params, batches)]
    count, heads = 2 * encoder.num_layers + 1, int("mlm_head" in params)
    transformed = found[count] if heads else None
    return found[:count], found[count + heads :], transformed


def _refitted_norms(
    encoder: Encoder, params: Mapping, kept: Int[np.ndarray, " n"], batches: Sequence[Mapping]
) -> list[dict]:
    """{"scale", "bias"} [n] for every norm of the model, in the order of its states."""
    norms = [params["encoder"]["embeddings"]["norm"]]
    for i in range(encoder.num_layers):
        layer = params["encoder"][f"layers_{i}"]
        norms += [layer["attention_norm"], layer["ffn_norm"]]
    if "mlm_head" in params:
        norms.append(params["mlm_head"]["norm"])

    @jax.jit
    def sums(params, norms, batch):
        states, _, transformed = _run(encoder, params, batch)
        real = (batch["attention_mask"] > 0)[..., None]
        return [
            _line_sums(x, norm, kept, real, encoder.layer_norm_eps)
            for x, norm in zip((*states, *transformed), norms, strict=True)
        ]

    totals = _added(partial(sums, params), norms, batches)
    return [_line(*total, norm, kept) for total, norm in zip(totals, norms, strict=True)]


def _added(sums, argument, batches):
    """`sums(argument, batch)` over all batches, in float64 on the host: nothing else lasts."""
    argument, totals = jax.device_put(argument), None
    for batch in batches:
        found = jax.device_get(sums(argument, {name: jnp.asarray(x) for name, x in batch.items()}))
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        totals = jax.tree.map(np.add, totals, found) if totals else found
    return totals


def _run(
    encoder: Encoder, params: Mapping, batch: Mapping[str, Array]
) -> tuple[list[Array], list[Array], list[Array]]:
    """(every state [B, L, D], every layer's neurons [B, L, F], what the decoder reads if any).

    The states: after the embeddings, then for each layer after its attention and after its
    feed-forward. In float32, whatever the run computes in: least squares want digits.
    """
    wanted = ("hidden_states", "ffn_inputs")
    out = models.encode_batch(encoder, Compute(), params["encoder"], batch, outputs=wanted)
    after = out["hidden_states"][0]
    states, neurons = [after], []
    for i, between in enumerate(out["ffn_inputs"]):
        after = out["hidden_states"][i + 1]
        states += [between, after]
        up = params["encoder"][f"layers_{i}"]["ffn"]["up"]
        neurons.append(ACTIVATIONS[encoder.hidden_act](between @ up["kernel"] + up["bias"]))
    head = "mlm_head" in params
    transformed = [models.mlm_transform(encoder, Compute(), params, after)] if head else []
    return states, neurons, transformed


def _sums(x: Float[Array, "B L N"], real: Array) -> tuple[Array, Array, Array]:
    x = jnp.where(real[..., None], x, 0.0).reshape(-1, x.shape[-1])
    square = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(real), jnp.sum(x, axis=0), square


def _moments(count, total, square) -> Moments:
    mean = total / count
    return Moments(mean, square / count - np.outer(mean, mean))


def _line_sums(x, norm, kept, real, eps):
    """What the line through (S normalised by itself, x[S]) is made of, for each coordinate."""
    scale = jnp.where(jnp.abs(norm["scale"]) > _LEAST_SCALE, norm["scale"], jnp.inf)
    # Before its scale and bias a normalised state is what entered the norm, but for a mean and a
    # factor, which the narrower norm takes out again.
    own = ((x - norm["bias"]) / scale)[..., kept]
    own -= jnp.mean(own, axis=-1, keepdims=True)
    own *= jax.lax.rsqrt(jnp.mean(jnp.square(own), axis=-1, keepdims=True) + eps)
    wanted = x[..., kept]
    return [
        jnp.sum(jnp.where(real, part, 0.0), axis=(0, 1))
        for part in (jnp.ones_like(own), own, wanted, own * own, own * wanted)
    ]


def _line(count, own, wanted, square, product, norm, kept):
    own, wanted = own / count, wanted / count
    variance = square / count - own**2
    # A coordinate that never changes has no line: as it was.
    scale = np.where(
        variance > 1e-8,
        (product / count - own * wanted) / np.maximum(variance, 1e-8),
        np.asarray(norm["scale"], np.float64)[kept],
    )
    return {"scale": scale, "bias": wanted - scale * own}
