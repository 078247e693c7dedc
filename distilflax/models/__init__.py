"""Models as pure functions of plain dicts; flax.linen stays behind this wall.

    params = models.init(settings, key, mlm_head=True)
    out = models.encode(settings, compute, params["encoder"], input_ids, attention_mask)
    out["last_hidden_state"]

A tree of parameters is {"encoder": {...}, "mlm_head": {...}}; the head may be absent. The names
inside are those of `weights/names.py`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from distilflax.models.attention import visible
from distilflax.models.cost import encoder_flops, parameter_count, vocabulary_flops
from distilflax.models.encoder import OUTPUTS, TransformerEncoder
from distilflax.models.heads import (
    POOLING,
    MaskedLMTransform,
    normalize,
    passages_of,
    pool_passages,
)
from distilflax.models.layers import Layer
from distilflax.models.task_heads import (
    OUTPUT_ACTIVATIONS,
    PROBLEMS,
    TaskHead,
    head_shapes,
    init_head,
    task_logits,
)
from distilflax.settings import Compute, Encoder

__all__ = [
    "OUTPUTS",
    "OUTPUT_ACTIVATIONS",
    "POOLING",
    "PROBLEMS",
    "TaskHead",
    "decoder",
    "encode",
    "encode_batch",
    "encode_layer",
    "encoder_flops",
    "head_shapes",
    "init",
    "init_head",
    "mlm_transform",
    "normalize",
    "parameter_count",
    "passages_of",
    "pool",
    "pool_passages",
    "shapes",
    "task_logits",
    "vocabulary_flops",
]


def init(settings: Encoder, key: PRNGKeyArray, *, mlm_head: bool = False) -> dict:
    """Random parameters as BERT starts: normal(0.02) matrices, zero biases, unit LayerNorm.

    Returns float32 arrays: {"encoder": ...} and, with `mlm_head`, {"mlm_head": ...}.
    """
    encoder_key, head_key = jax.random.split(key)
    # Shapes in place of arrays: the forward pass itself, of which each operation would be compiled
    # apart, is not run.
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    module = TransformerEncoder(settings, Compute())
    params = {"encoder": module.lazy_init(encoder_key, ids, ids)["params"]}
    if mlm_head:
        hidden = jax.ShapeDtypeStruct((1, settings.hidden_size), jnp.float32)
        head = MaskedLMTransform(settings, Compute())
        params["mlm_head"] = head.lazy_init(head_key, hidden)["params"]
    return params


def shapes(settings: Encoder, *, mlm_head: bool = False) -> dict:
    """The tree of `init` as `jax.ShapeDtypeStruct`s: nothing is allocated."""
    return jax.eval_shape(lambda: init(settings, jax.random.key(0), mlm_head=mlm_head))


def encode(
    settings: Encoder,
    compute: Compute,
    params: dict,
    input_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
    *,
    position_ids: Int[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    token_type_ids: Int[Array, "B L"] | None = None,
    outputs: tuple[str, ...] = (),
    dropout_key: PRNGKeyArray | None = None,
) -> dict[str, Array | tuple[Array, ...]]:
    """Run the encoder whose parameters are `params` (the "encoder" subtree).

    `attention_mask` is 1 for real tokens and 0 for padding. Dropout is on exactly when a
    `dropout_key` is given. `outputs` names what is wanted beside `last_hidden_state`; see
    `TransformerEncoder` for the names and shapes.

    Raises:
      UserError: sequences longer than the positions, token types for an encoder without any, an
        output that the encoder does not have.
    """
    return TransformerEncoder(settings, compute).apply(
        {"params": params},
        input_ids,
        attention_mask,
        position_ids=position_ids,
        segment_ids=segment_ids,
        token_type_ids=token_type_ids,
        outputs=outputs,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )


def encode_batch(
    settings: Encoder,
    compute: Compute,
    params: dict,
    batch: Mapping[str, Array | np.ndarray],
    *,
    outputs: tuple[str, ...] = (),
    dropout_key: PRNGKeyArray | None = None,
) -> dict[str, Array | tuple[Array, ...]]:
    """`encode` of a batch of `batches/pipeline.py`, whose passages may be packed, or of one with
    token types."""
    return encode(
        settings,
        compute,
        params,
        batch["input_ids"],
        batch["attention_mask"],
        position_ids=batch.get("position_ids"),
        segment_ids=batch.get("segment_ids"),
        token_type_ids=batch.get("token_type_ids"),
        outputs=outputs,
        dropout_key=dropout_key,
    )


def encode_layer(
    settings: Encoder,
    compute: Compute,
    params: dict,
    hidden: Float[Array, "B L D"],
    attention_mask: Int[Array, "B L"],
    *,
    segment_ids: Int[Array, "B L"] | None = None,
    outputs: tuple[str, ...] = (),
) -> tuple[Float[Array, "B L D"], dict[str, Array]]:
    """One layer by itself, whose parameters are `params`: what it makes of the hidden state that
    enters it, and what it is asked to show (`LAYER_OUTPUTS`); without dropout."""
    mask = visible(attention_mask, segment_ids)
    return Layer(settings, compute).apply({"params": params}, hidden, mask, outputs, True)


def mlm_transform(
    settings: Encoder, compute: Compute, params: dict, hidden: Float[Array, "*B D"]
) -> Float[Array, "*B D"]:
    """The masked-LM head up to its decoder; `params` has "mlm_head"."""
    return MaskedLMTransform(settings, compute).apply(
        {"params": {k: v for k, v in params["mlm_head"].items() if k != "decoder"}}, hidden
    )


def decoder(
    params: dict,
) -> tuple[Float[Array | np.ndarray, "V D"], Float[Array | np.ndarray, " V"]]:
    """The decoder's matrix (tied to the word embeddings unless the head has its own) and bias.

    logits = mlm_transform(...) @ matrix.T + bias
    """
    head = params["mlm_head"]
    return head.get("decoder", params["encoder"]["embeddings"]["word"]), head["bias"]


def pool(
    hidden: Float[Array, "B L D"], attention_mask: Int[Array, "B L"], pooling: str
) -> Float[Array, "B D"]:
    """One float32 vector a sequence, by `mean` over real tokens or `cls`."""
    return POOLING[pooling](hidden, attention_mask)
