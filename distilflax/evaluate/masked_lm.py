"""How well one model fills in masked words of text that it was not trained on."""

import math
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
from distilflax.losses.logits import correct, cross_entropy
from distilflax.losses.total import CHUNK_ROWS
from distilflax.losses.vocabulary import chunked_sums


class MaskedLM(NamedTuple):
    """Over all masked positions: the share filled in right, and exp of the mean cross-entropy.

    The perplexity is that of masked words given the rest of their sequence. It says nothing about
    the probability of a text, and cannot be compared with that of a left-to-right model.
    """

    accuracy: float
    perplexity: float
    cross_entropy: float
    positions: int


def masked_lm(model: Model, batches: Sequence[MaskedBatch], compute: settings.Compute) -> MaskedLM:
    """Masked-LM accuracy and perplexity of `model` on `batches` (of `mask_batches`).

    Logits are made 256 rows at a time and never kept. Sums stay on the device until all batches
    are under way, and are added up in float64.

    Raises:
      UserError: the model has no masked-LM head, or nothing is masked.
    """
    if not model.has_head:
        raise UserError(
            f"Model {model.name!r} has no masked-LM head, so it cannot fill in masked words; fit "
            "one (teacher.mlm_head='fit') or leave this measurement out."
        )
    params = on_device(model)
    sums = [_sums(model.encoder, compute, params, batch) for batch in batches]
    loss, right, positions = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
    if not positions:
        raise UserError(
            "The held-out batches have no masked position; raise masking.rate or give longer text."
        )
    mean = float(loss / positions)
    # A model that is quite wrong has a perplexity beyond what a float holds.
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return MaskedLM(float(right / positions), perplexity, mean, int(positions))


@partial(jax.jit, static_argnums=(0, 1))
def _sums(
    encoder: settings.Encoder, compute: settings.Compute, params: dict, batch: MaskedBatch
) -> Float[Array, "3"]:
    """Sums over the masked positions of a batch: cross-entropy, correct, one."""
    hidden = encode_masked(encoder, compute, params, batch)["last_hidden_state"]
    rows = masked_rows(encoder, compute, params, hidden, batch)
    weights = batch.masked.weights.reshape(-1)
    sums = chunked_sums(
        (cross_entropy, correct),
        rows,
        None,
        batch.masked.labels.reshape(-1),
        jnp.stack([weights, weights]),
        CHUNK_ROWS,
    )
    return jnp.append(sums, jnp.sum(weights))
