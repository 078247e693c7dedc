"""Masked words of text that was not trained on: how well models fill them in, and how alike.

Every model runs once over every batch, the reference first, and what the reference made of the
batch is what the others are held against: the same forward passes serve accuracy, perplexity and
agreement.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distilflax import models, settings
from distilflax.batches.masking import at_positions
from distilflax.errors import UserError
from distilflax.evaluate.held_out import MaskedBatch
from distilflax.evaluate.model import Model, on_device
from distilflax.losses import logits
from distilflax.losses.hidden import cosine_distance
from distilflax.losses.total import CHUNK_ROWS
from distilflax.losses.vocabulary import Decoder, chunked_sums
from distilflax.weights.surgery import uniform_last

_KL = partial(logits.kl, term=settings.Term(temperature=1.0))


class MaskedLM(NamedTuple):
    """Over all masked positions: the share filled in right, and exp of the mean cross-entropy.

    The perplexity is that of masked words given the rest of their sequence. It says nothing about
    the probability of a text, and cannot be compared with that of a left-to-right model.
    """

    accuracy: float
    perplexity: float
    cross_entropy: float
    positions: int


class Agreement(NamedTuple):
    """Means over masked positions (`kl`, `top_1`) and over real tokens (`cosines`).

    kl: KL(reference || model) in nats at temperature 1; None without both masked-LM heads, or
      where nothing was masked.
    top_1: share of positions where both have the same likeliest word; None likewise.
    cosines: cosine of the hidden states at each point of `layers`; none of another width.
    layers: pairs (model, reference) of hidden states: 0 the embeddings, i the output of layer i.
    """

    kl: float | None
    top_1: float | None
    cosines: tuple[float, ...]
    layers: tuple[tuple[int, int], ...]
    positions: int
    tokens: int


class Seen(NamedTuple):
    """What a model makes of a masked batch; `rows` are the masked positions before their logits."""

    hidden_states: tuple[Float[Array, "B L D"], ...]
    rows: Decoder | None


def masked_lm(
    compared: Sequence[Model], batches: Sequence[MaskedBatch], compute: settings.Compute
) -> list[tuple[MaskedLM | None, Agreement | None]]:
    """For each model its masked-LM figures and its agreement with the first, the reference.

    `batches` come from `held_out.mask_batches`. A model without a masked-LM head has no masked-LM
    figures, and the reference no agreement. Logits are made some rows at a time and never kept.

    Where nothing is masked (`masking.rate=0`) hidden states are all that can be compared, and where
    there is no batch, nothing.

    Raises:
      UserError: models of different vocabulary.
    """
    if not batches:
        return [(None, None)] * len(compared)
    reference, *others = compared
    for model in others:
        _check_comparable(model, reference)
    pairs = [_compared_states(model, reference) for model in compared]
    params = [on_device(model) for model in compared]
    totals: list = [0.0] * len(compared)
    for batch in batches:
        seen = None
        for i, model in enumerate(compared):
            own = _see(model.encoder, compute, params[i], batch)
            sums = _sums(pairs[i], own, seen, batch)
            seen = own if seen is None else seen
            # Waits for the batch: running ahead would hold the hidden states of several.
            totals[i] += np.asarray(sums, np.float64)
    return [
        _figures(model, None if model is reference else reference, total, layers)
        for model, total, layers in zip(compared, totals, pairs, strict=True)
    ]


def layer_pairs(layers: int, reference_layers: int) -> tuple[tuple[int, int], ...]:
    """Which hidden state of the reference each of a model's stands for.

    The embeddings stand for the embeddings, and layer m of M for layer m N / M of N (rounded
    down), hence the last for the last: the depth at which the same share of the work is done.

    A model that is deeper than its reference is compared by its embeddings and its output alone.
    """
    if layers > reference_layers:
        return ((0, 0), (layers, reference_layers))
    above = uniform_last(reference_layers, layers)
    return ((0, 0), *((m + 1, index + 1) for m, index in enumerate(above)))


def _check_comparable(model: Model, reference: Model) -> None:
    ours, theirs = model.encoder.vocab_size, reference.encoder.vocab_size
    if ours != theirs:
        raise UserError(
            f"{model.name!r} has vocab_size {ours} and {reference.name!r} {theirs}; agreement "
            "compares models of the same vocabulary only."
        )


def _compared_states(model: Model, reference: Model) -> tuple[tuple[int, int], ...]:
    """`layer_pairs`; none between widths that differ, where a cosine means nothing."""
    if model.encoder.hidden_size != reference.encoder.hidden_size:
        return ()
    return layer_pairs(model.encoder.num_layers, reference.encoder.num_layers)


@partial(jax.jit, static_argnums=(0, 1))
def _see(
    encoder: settings.Encoder, compute: settings.Compute, params: dict, batch: MaskedBatch
) -> Seen:
    out = models.encode(
        encoder,
        compute,
        params["encoder"],
        batch.masked.input_ids,
        batch.attention_mask,
        segment_ids=batch.segment_ids,
        position_ids=batch.position_ids,
        outputs=("hidden_states",),
    )
    rows = None
    if "mlm_head" in params:
        hidden = at_positions(out["last_hidden_state"], batch.masked.positions)
        hidden = models.mlm_transform(encoder, compute, params, hidden)
        rows = Decoder(hidden.reshape(-1, hidden.shape[-1]), *models.decoder(params))
    return Seen(out["hidden_states"], rows)


@partial(jax.jit, static_argnums=0)
def _sums(
    pairs: tuple[tuple[int, int], ...], own: Seen, reference: Seen | None, batch: MaskedBatch
) -> Float[Array, " sums"]:
    """Sums over a batch, zero where there is nothing to sum.

    Masked positions, cross-entropy, correct, KL, same word; real tokens, cosines of the pairs.
    """
    weights = batch.masked.weights.reshape(-1)
    over_words = jnp.zeros(4)
    if own.rows is not None:
        functions = [logits.cross_entropy, logits.correct]
        both = reference is not None and reference.rows is not None
        functions += [_KL, logits.agreement] if both else []
        sums = chunked_sums(
            tuple(functions),
            own.rows,
            reference.rows if both else None,
            batch.masked.labels.reshape(-1),
            jnp.stack([weights] * len(functions)),
            CHUNK_ROWS,
        )
        over_words = over_words.at[: len(sums)].set(sums)
    real = batch.attention_mask > 0
    cosines = []
    for ours, theirs in pairs if reference is not None else ():
        distance = cosine_distance(
            own.hidden_states[ours], reference.hidden_states[theirs], settings.Term()
        )
        cosines.append(jnp.sum(jnp.where(real, 1.0 - distance, 0.0)))
    tokens = jnp.sum(real).astype(jnp.float32)
    return jnp.stack([jnp.sum(weights), *over_words, tokens, *cosines])


def _figures(
    model: Model,
    reference: Model | None,
    total: Float[np.ndarray, " sums"],
    pairs: tuple[tuple[int, int], ...],
) -> tuple[MaskedLM | None, Agreement | None]:
    positions, loss, right, divergence, same, tokens, *cosines = total.tolist()
    masked = agreement = None
    if model.has_head and positions:
        mean = loss / positions
        # A model that is quite wrong has a perplexity beyond what a float holds.
        perplexity = math.exp(mean) if mean < 700 else math.inf
        masked = MaskedLM(right / positions, perplexity, mean, int(positions))
    if reference is not None:
        both = model.has_head and reference.has_head and positions
        agreement = Agreement(
            kl=divergence / positions if both else None,
            top_1=same / positions if both else None,
            cosines=tuple(cosine / tokens for cosine in cosines),
            layers=pairs,
            positions=int(positions),
            tokens=int(tokens),
        )
    return masked, agreement
