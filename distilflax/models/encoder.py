"""BERT's encoder, or DistilBERT's: one module, told apart by its settings."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from distilflax.errors import UserError, choose_from
from distilflax.models import attention, int8
from distilflax.models.dropout import Dropout
from distilflax.models.layers import (
    LAYER_OUTPUTS,
    Layer,
    dense,
    layer_norm,
)
from distilflax.models.ragged import real_tokens, rows_of, tokens_of
from distilflax.settings import Compute, Encoder

# What `TransformerEncoder` can be asked for beside `last_hidden_state`.
OUTPUTS = ("hidden_states", "pooler_output", *LAYER_OUTPUTS)


class Embeddings(nn.Module):
    """Word + position (+ token type) embeddings, LayerNorm, dropout."""

    settings: Encoder
    compute: Compute

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"] | None,
        token_type_ids: Int[Array, "B L"] | None,
        deterministic: bool,
    ) -> Float[Array, "B L D"]:
        s = self.settings
        normal = nn.initializers.normal(s.initializer_range)
        word = self.param("word", normal, (s.vocab_size, s.hidden_size))
        position = self.param("position", normal, (s.max_positions, s.hidden_size))

        embedded = int8.rows(s.int8_range, word[input_ids])
        places = slice(input_ids.shape[1]) if position_ids is None else position_ids
        embedded += int8.rows(s.int8_range, position[places])
        if s.type_vocab_size:
            token_type = self.param("token_type", normal, (s.type_vocab_size, s.hidden_size))
            embedded += token_type[0] if token_type_ids is None else token_type[token_type_ids]

        # Summed in float32: half precision would round the small positions away.
        normed = layer_norm(s, self.compute, "norm")(embedded)
        return Dropout(s.dropout, deterministic)(normed)


class TransformerEncoder(nn.Module):
    """Embeddings and `num_layers` blocks; names every output it is asked for.

    Returns a dict with `last_hidden_state` [B, L, D] and, on request,
      hidden_states: tuple of num_layers + 1 arrays [B, L, D], the embeddings first;
      attention_scores, attentions: tuples of num_layers arrays [B, H, L, L], float32;
      queries, keys, values: tuples of num_layers arrays [B, L, H, D / H];
      contexts: tuple of num_layers arrays [B, L, D], what each attention's output map is given;
      ffn_inputs: tuple of num_layers arrays [B, L, D], what each feed-forward is given;
      pooler_output: tanh(W h_CLS + b), [B, D], of encoders that have a pooler.

    With `first_only` the last layer is computed of the first token of each row alone, and
    `last_hidden_state` is [B, 1, D]: what reads no other token saves most of a layer.

    `real_places` [1, T] lists the places of the real tokens in the flattened [B, L], and B L where
    there are fewer than T. Padding is then computed by attention alone, and every output is in rows
    as without, but for what stands at padding: zeros in hidden states.
    """

    settings: Encoder
    compute: Compute

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Int[Array, "B L"],
        *,
        position_ids: Int[Array, "B L"] | None = None,
        segment_ids: Int[Array, "B L"] | None = None,
        token_type_ids: Int[Array, "B L"] | None = None,
        outputs: tuple[str, ...] = (),
        deterministic: bool = True,
        first_only: bool = False,
        real_places: Int[Array, "1 T"] | None = None,
    ) -> dict[str, Array | tuple[Array, ...]]:
        settings, compute = self.settings, self.compute
        _check_request(settings, input_ids.shape[1], token_type_ids is not None, outputs)

        mask, real = attention.visible(attention_mask, segment_ids), None
        if real_places is not None:
            real = real_tokens(attention_mask, real_places)
            if position_ids is None:
                position_ids = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
            input_ids, position_ids = tokens_of(input_ids, real), tokens_of(position_ids, real)
            token_type_ids = None if token_type_ids is None else tokens_of(token_type_ids, real)
        hidden = Embeddings(settings, compute, name="embeddings")(
            input_ids, position_ids, token_type_ids, deterministic
        )
        from_layers = tuple(name for name in LAYER_OUTPUTS if name in outputs)
        block = nn.remat(Layer, static_argnums=(3, 4, 5)) if compute.remat else Layer

        hidden_states = [rows_of(hidden, real)]
        shown: dict[str, list[Array]] = {name: [] for name in from_layers}
        for i in range(settings.num_layers):
            layer = block(settings, compute, name=f"layers_{i}")
            alone = first_only and i == settings.num_layers - 1
            if alone:
                hidden, real = rows_of(hidden, real), None
            hidden, layer_shown = layer(hidden, mask, from_layers, deterministic, alone, real)
            hidden_states.append(rows_of(hidden, real))
            for name in from_layers:
                shown[name].append(layer_shown[name])

        named = {"last_hidden_state": hidden_states[-1]}
        named |= {name: tuple(arrays) for name, arrays in shown.items()}
        if "hidden_states" in outputs:
            named["hidden_states"] = tuple(hidden_states)
        # The pooler's parameters must exist whenever the settings say so, asked for or not.
        if settings.pooler and ("pooler_output" in outputs or self.is_initializing()):
            pooler = dense(settings, compute, settings.hidden_size, "pooler")
            named["pooler_output"] = jnp.tanh(pooler(hidden_states[-1][:, 0]))
        return named


def _check_request(settings: Encoder, length: Any, types: bool, outputs: tuple[str, ...]) -> None:
    # `length` is a number, or a symbol while a program for any length is traced.
    if length > settings.max_positions:
        raise UserError(
            f"The sequences are {length} tokens long but the encoder has {settings.max_positions} "
            "positions; shorten data.max_length or the input."
        )
    if types and not settings.type_vocab_size:
        raise UserError(
            "token_type_ids were given to an encoder that has no token types (a DistilBERT); "
            "leave them out, or use an encoder with type_vocab_size > 0."
        )
    for name in outputs:
        if name not in OUTPUTS:
            raise UserError(f"{name!r} is not an encoder output; {choose_from(name, OUTPUTS)}")
    if "pooler_output" in outputs and not settings.pooler:
        raise UserError(
            "pooler_output was asked of an encoder without a pooler; use mean or CLS pooling."
        )
