"""One post-LayerNorm Transformer block (Vaswani et al. 2017; Devlin et al. 2019)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from distilflax.models import attention
from distilflax.models.dropout import Dropout
from distilflax.models.product import product
from distilflax.models.ragged import Real, rows_of, tokens_of
from distilflax.settings import Compute, Encoder


def _gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS = {
    # BERT's GELU is the exact one; the tanh approximation ("gelu_new") differs by up to 5e-4. By
    # erf, as BERT's own code: `nn.gelu` goes by erfc, which takes a CPU three times as long. In
    # float32, since 1 + erf(x) of a negative x leaves half precision nothing of its digits.
    "gelu": lambda x: _gelu(jnp.asarray(x, jnp.float32)).astype(x.dtype),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}

# What a layer can show beside its hidden state: of its attention, and what enters its feed-forward.
ATTENTION_OUTPUTS = ("attention_scores", "attentions", "queries", "keys", "values", "contexts")
LAYER_OUTPUTS = (*ATTENTION_OUTPUTS, "ffn_inputs")


def dense(settings: Encoder, compute: Compute, features: int, name: str | None = None) -> nn.Dense:
    """A linear layer with BERT's initial values: normal kernel, zero bias, float32 parameters."""
    return nn.Dense(
        features,
        dtype=jnp.dtype(compute.dtype),
        kernel_init=nn.initializers.normal(settings.initializer_range),
        dot_general=product(settings.int8_range),
        name=name,
    )


def layer_norm(settings: Encoder, compute: Compute, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm whose statistics are float32 and two-pass: E[x^2]-E[x]^2 loses digits."""
    return nn.LayerNorm(
        epsilon=settings.layer_norm_eps,
        dtype=jnp.dtype(compute.dtype),
        use_fast_variance=False,
        name=name,
    )


class SelfAttention(nn.Module):
    """Multi-head self-attention with its output projection."""

    settings: Encoder
    compute: Compute

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "R S D"],
        mask: Bool[Array, "B 1 #L L"],
        outputs: tuple[str, ...],
        deterministic: bool,
        first_only: bool,
        real: Real | None,
    ) -> tuple[Float[Array, "R Q D"], dict[str, Array]]:
        settings, compute = self.settings, self.compute
        width = hidden.shape[-1]
        heads = (settings.num_heads, width // settings.num_heads)
        asking, mask = (hidden[:, :1], mask[:, :, :1]) if first_only else (hidden, mask)

        def of_heads(name: str, x: Array) -> Array:
            rows = rows_of(dense(settings, compute, width, name)(x), real)
            return rows.reshape(*rows.shape[:2], *heads)

        query = of_heads("query", asking)
        key, value = of_heads("key", hidden), of_heads("value", hidden)

        length = key.shape[1]
        shown = {"queries": query, "keys": key, "values": value}
        dropout = 0.0 if deterministic else settings.attention_dropout
        wanted = bool({"attentions", "attention_scores"} & set(outputs))
        fused = attention.takes_fused(compute, dropout, wanted, length, heads[1])
        if fused and not first_only:
            context = attention.fused_attention(query, key, value, mask)
        else:
            scores = attention.attention_scores(query, key)
            shown["attention_scores"] = scores
            if dropout > 0 or "attentions" in outputs:
                drop = Dropout(dropout, deterministic)
                context, probabilities = attention.shown_attention(scores, mask, value, drop)
                shown["attentions"] = probabilities
            else:
                context = attention.plain_attention(scores, mask, value)

        shown["contexts"] = context.reshape(*context.shape[:2], width)
        out = dense(settings, compute, width, "output")(tokens_of(shown["contexts"], real))
        return out, {name: shown[name] for name in outputs}


class FeedForward(nn.Module):
    """Up, activation, down."""

    settings: Encoder
    compute: Compute

    @nn.compact
    def __call__(self, hidden: Float[Array, "R S D"]) -> Float[Array, "R S D"]:
        settings, compute = self.settings, self.compute
        up = dense(settings, compute, settings.intermediate_size, "up")(hidden)
        active = ACTIVATIONS[settings.hidden_act](up)
        return dense(settings, compute, settings.hidden_size, "down")(active)


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and then LayerNorm (post-LN).

    To compare it with the papers', read it without `real` and `first_only`. Then `hidden` is
    [B, L, D]; with `real` it is one row of all T real tokens, [1, T, D], while requested outputs
    stay [B, L, ...]. With `first_only` Q = 1, the first token of each row alone, which looks at
    all; else Q = S.
    """

    settings: Encoder
    compute: Compute

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "R S D"],
        mask: Bool[Array, "B 1 #L L"],
        outputs: tuple[str, ...],
        deterministic: bool,
        first_only: bool = False,
        real: Real | None = None,
    ) -> tuple[Float[Array, "R Q D"], dict[str, Array]]:
        settings, compute = self.settings, self.compute
        drop = Dropout(settings.dropout, deterministic)

        of_attention = tuple(name for name in outputs if name in ATTENTION_OUTPUTS)
        attended, shown = SelfAttention(settings, compute, name="attention")(
            hidden, mask, of_attention, deterministic, first_only, real
        )
        hidden = hidden[:, :1] if first_only else hidden
        if settings.family == "bert":  # DistilBERT's code has no dropout behind its attention.
            attended = drop(attended)
        hidden = layer_norm(settings, compute, "attention_norm")(hidden + attended)
        if "ffn_inputs" in outputs:
            shown["ffn_inputs"] = rows_of(hidden, real)
        fed = FeedForward(settings, compute, name="ffn")(hidden)
        return layer_norm(settings, compute, "ffn_norm")(hidden + drop(fed)), shown
