"""How much a student is like its teacher, on the same masked text."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distilflax import settings
from distilflax.errors import UserError
from distilflax.evaluate.held_out import MaskedBatch, encode_masked, masked_rows, on_device
from distilflax.evaluate.model import Model
from distilflax.losses.hidden import cosine_distance
from distilflax.losses.logits import agreement as same_word
from distilflax.losses.logits import kl
from distilflax.losses.total import CHUNK_ROWS
from distilflax.losses.vocabulary import chunked_sums
from distilflax.weights.surgery import uniform_last


class Agreement(NamedTuple):
    """Means over masked positions (`kl`, `top_1`) and over real tokens (`cosines`).

    kl: KL(teacher || student) in nats at temperature 1; None without both masked-LM heads.
    top_1: share of positions where both have the same likeliest word; None likewise.
    cosines: cosine of the hidden states at each point of `layers`.
    layers: pairs (student, teacher) of hidden states; 0 is the embeddings, i the output of layer i.
    """

    kl: float | None
    top_1: float | None
    cosines: tuple[float, ...]
    layers: tuple[tuple[int, int], ...]
    positions: int
    tokens: int


def layer_pairs(student_layers: int, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """Which hidden state of the teacher each of the student's stands for.

    The embeddings stand for the embeddings, and layer m of M for layer m N / M of N (rounded
    down), hence the last for the last: the depth at which the same share of the work is done.
    """
    above = uniform_last(teacher_layers, student_layers)
    return ((0, 0), *((m + 1, index + 1) for m, index in enumerate(above)))


def agreement(
    student: Model, teacher: Model, batches: Sequence[MaskedBatch], compute: settings.Compute
) -> Agreement:
    """How the two models agree on `batches` (of `mask_batches`).

    Raises:
      UserError: models of different width or vocabulary, which cannot be compared so.
    """
    for what in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(student.encoder, what), getattr(teacher.encoder, what)
        if ours != theirs:
            raise UserError(
                f"{student.name!r} has {what} {ours} and {teacher.name!r} {theirs}; agreement "
                "compares models of the same width and vocabulary only."
            )
    compared = (student, teacher)
    pairs = layer_pairs(student.encoder.num_layers, teacher.encoder.num_layers)
    with_heads = all(model.has_head for model in compared)
    encoders, params = tuple(m.encoder for m in compared), tuple(on_device(m) for m in compared)
    sums = [_sums(encoders, compute, pairs, with_heads, params, batch) for batch in batches]
    sums = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
    divergence, same, positions, tokens, *cosines = sums.tolist()
    if not positions:
        raise UserError(
            "The held-out batches have no masked position; raise masking.rate or give longer text."
        )
    return Agreement(
        kl=divergence / positions if with_heads else None,
        top_1=same / positions if with_heads else None,
        cosines=tuple(cosine / tokens for cosine in cosines),
        layers=pairs,
        positions=int(positions),
        tokens=int(tokens),
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sums(
    encoders: tuple[settings.Encoder, settings.Encoder],
    compute: settings.Compute,
    pairs: tuple[tuple[int, int], ...],
    with_heads: bool,
    params: tuple[dict, dict],
    batch: MaskedBatch,
) -> Float[Array, " sums"]:
    """KL, same word, masked positions, real tokens, and the cosines of each pair of layers."""
    outputs = [
        encode_masked(encoder, compute, p, batch, ("hidden_states",))
        for encoder, p in zip(encoders, params, strict=True)
    ]
    weights = batch.masked.weights.reshape(-1)
    over_words = jnp.zeros(2)
    if with_heads:
        rows = [
            masked_rows(encoder, compute, p, out["last_hidden_state"], batch)
            for encoder, p, out in zip(encoders, params, outputs, strict=True)
        ]
        over_words = chunked_sums(
            (partial(kl, term=settings.Term(temperature=1.0)), same_word),
            *rows,
            batch.masked.labels.reshape(-1),
            jnp.stack([weights, weights]),
            CHUNK_ROWS,
        )
    real = batch.attention_mask > 0
    cosines = []
    for ours, theirs in pairs:
        distance = cosine_distance(
            outputs[0]["hidden_states"][ours],
            outputs[1]["hidden_states"][theirs],
            settings.Term(),
        )
        cosines.append(jnp.sum(jnp.where(real, 1.0 - distance, 0.0)))
    return jnp.stack([*over_words, jnp.sum(weights), jnp.sum(real).astype(jnp.float32), *cosines])
