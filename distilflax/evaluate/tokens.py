"""One sentence, token by token: how near a student's states are to its teacher's, and whether the
two would fill in the same word."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax import models, settings
from distilflax.errors import UserError
from distilflax.evaluate.masked_lm import layer_pairs
from distilflax.evaluate.model import Model, on_device
from distilflax.losses.hidden import cosine_distance
from distilflax.text.tokenizer import Tokenizer


class Tokens(NamedTuple):
    """What `per_token` finds, for T tokens and P pairs of hidden states.

    tokens: the sentence as the tokenizer has it, [CLS] and [SEP] included.
    layers: the pairs (model, reference) of `masked_lm.layer_pairs`.
    cosines: of the two hidden states of each pair at each token, the sentence being whole.
    words: for each token the likeliest word of (reference, model) where it alone is masked; None of
      a control token, and of a model without a masked-LM head.
    """

    tokens: tuple[str, ...]
    layers: tuple[tuple[int, int], ...]
    cosines: Float[np.ndarray, "T P"]
    words: tuple[tuple[str | None, str | None], ...]


def per_token(
    model: Model, reference: Model, tokenizer: Tokenizer, text: str, compute: settings.Compute
) -> Tokens:
    """`model` beside `reference` on one text, which is cut where their positions end.

    Raises:
      UserError: an empty text, or states of different width, between which there is no cosine.
    """
    ours, theirs = model.encoder, reference.encoder
    if ours.hidden_size != theirs.hidden_size:
        raise UserError(
            f"{model.name!r} is {ours.hidden_size} wide and {reference.name!r} "
            f"{theirs.hidden_size}, so their states have no cosine; compare them by evaluate.cka."
        )
    (ids,) = tokenizer.encode([text], min(ours.max_positions, theirs.max_positions))
    inside = np.flatnonzero(~tokenizer.special[ids])
    if not len(inside):
        raise UserError(f"{text!r} has no word that the tokenizer knows; give a sentence.")
    names = [tokenizer.fast.id_to_token(int(token)) for token in ids]
    layers = layer_pairs(ours.num_layers, theirs.num_layers)
    # One row whole, and one for each word with that word masked.
    rows = np.tile(ids, (1 + len(inside), 1))
    rows[1 + np.arange(len(inside)), inside] = tokenizer.mask_id

    states, words = [], []
    for one in (reference, model):
        hidden, best = _read(one.encoder, compute, on_device(one), rows, inside)
        states.append(hidden)  # In this order, and not by name: two seeds of an arm have one.
        likeliest = () if best is None else map(tokenizer.fast.id_to_token, best.tolist())
        words.append(dict(zip(inside.tolist(), likeliest, strict=False)))
    cosines = [
        1.0 - cosine_distance(states[1][m], states[0][n], settings.Term()) for m, n in layers
    ]
    return Tokens(
        tuple(names),
        layers,
        np.stack([np.asarray(pair) for pair in cosines], axis=-1),
        tuple(tuple(found.get(i) for found in words) for i in range(len(ids))),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _read(
    encoder: settings.Encoder,
    compute: settings.Compute,
    params: dict,
    rows: Int[Array, "R T"],
    masked: Int[Array, "W"],
) -> tuple[tuple[Float[Array, "T D"], ...], Int[Array, "W"] | None]:
    """The first row's hidden states; of each other row the likeliest word where it is masked."""
    real = jnp.ones_like(rows)
    out = models.encode(encoder, compute, params["encoder"], rows, real, outputs=("hidden_states",))
    states = tuple(state[0] for state in out["hidden_states"])
    if "mlm_head" not in params:
        return states, None
    at_masked = out["last_hidden_state"][1 + jnp.arange(len(masked)), masked]
    hidden = models.mlm_transform(encoder, compute, params, at_masked)
    matrix, bias = models.decoder(params)
    return states, jnp.argmax(hidden.astype(jnp.float32) @ matrix.T + bias, axis=-1)
