"""The masked-LM head, and the pooling that makes one vector of a sequence."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from distilflax.models.layers import ACTIVATIONS, dense, layer_norm
from distilflax.settings import Compute, Encoder


class MaskedLMTransform(nn.Module):
    """Dense, activation, LayerNorm: what BERT does to a hidden state before it meets the words.

    The decoder itself is no module: its matrix is the word embeddings (tied), and the losses want
    matrix and hidden state apart, so that the logits of a whole batch never exist at once.
    """

    settings: Encoder
    compute: Compute

    @nn.compact
    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        transformed = dense(self.settings, self.compute, self.settings.hidden_size, "transform")(
            hidden
        )
        active = ACTIVATIONS[self.settings.hidden_act](transformed)
        normed = layer_norm(self.settings, self.compute, "norm")(active)
        self.param("bias", nn.initializers.zeros, (self.settings.vocab_size,))
        return normed


def mean_pool(
    hidden: Float[Array, "B L D"], attention_mask: Int[Array, "B L"]
) -> Float[Array, "B D"]:
    """The average over real tokens, in float32; zero for a row without any."""
    real = (attention_mask > 0)[..., None]
    # `where` and not a product with 0: a NaN at padding would come through that.
    total = jnp.sum(jnp.where(real, hidden.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(real, axis=1), 1).astype(jnp.float32)


def cls_pool(
    hidden: Float[Array, "B L D"], attention_mask: Int[Array, "B L"]
) -> Float[Array, "B D"]:
    """The first token's hidden state, in float32."""
    del attention_mask
    return hidden[:, 0].astype(jnp.float32)


POOLING = {"mean": mean_pool, "cls": cls_pool}


def passages_of(segment_ids: Int[Array, "B L"]) -> Bool[Array, "B S L"]:
    """Which tokens belong to passage 1, 2, ... S of a packed row; S = L / 2.

    A passage has at least its [CLS] and [SEP], so no row of L tokens holds more than L / 2.
    """
    numbers = jnp.arange(1, segment_ids.shape[1] // 2 + 1)
    return segment_ids[:, None, :] == numbers[None, :, None]


def pool_passages(
    hidden: Float[Array, "B L D"], segment_ids: Int[Array, "B L"], pooling: str
) -> Float[Array, "B S D"]:
    """One float32 vector for each passage of packed rows, zero for those that a row lacks.

    As a product with ones and zeros: a scatter by passage would be the slower on every device, and
    this one is a few thousandths of the encoder's work.
    """
    member = passages_of(segment_ids)
    if pooling == "cls":
        member &= ~jnp.pad(member[..., :-1], ((0, 0), (0, 0), (1, 0)))
    # `where` and not a product with 0: a NaN at padding would come through that.
    real = jnp.where((segment_ids > 0)[..., None], hidden.astype(jnp.float32), 0.0)
    # In full precision, which accelerators leave unless asked: one passage's sum is a sum.
    total = jnp.matmul(member.astype(jnp.float32), real, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(jnp.sum(member, axis=-1, keepdims=True), 1).astype(jnp.float32)


def normalize(vectors: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Unit length in the Euclidean norm, with a gradient that stays finite at zero."""
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
