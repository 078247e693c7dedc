"""One model, and one batch, as the terms see them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distilflax.batches.masking import Masked
from distilflax.errors import UserError
from distilflax.losses.words import Words


class View(NamedTuple):
    """One model as the terms see it; `transform` leads from hidden states to the decoder's rows.

    outputs: what `models.encode` returned when asked for `losses.outputs`; matrix [V, D] and bias
    [V]: the decoder, None without a masked-LM head; projections: `params["projections"]` of a
    student that has any; words: of a teacher whose distributions were kept as a few words, those of
    the rows that the terms over logits pass through (masked slots, or all positions); pooling: how
    this model makes a sentence vector.
    """

    outputs: Mapping[str, Array | tuple[Array, ...]]
    transform: Callable[[Array], Array] | None = None
    matrix: Array | None = None
    bias: Array | None = None
    projections: Mapping = MappingProxyType({})
    words: Words | None = None
    pooling: str = "mean"

    def output(self, output: str, name: str) -> Array | tuple[Array, ...]:
        """The named output, which term `name` compares."""
        if output not in self.outputs:
            raise UserError(
                f"config.losses.{name} compares {output}, which the model did not return; ask "
                "models.encode for losses.outputs(...)."
            )
        return self.outputs[output]


class Batch(NamedTuple):
    """The tokens of a batch before they were masked, which of them are real, and the masking."""

    original_ids: Int[Array, "B L"]
    attention_mask: Int[Array, "B L"]
    masked: Masked
    segment_ids: Int[Array, "B L"] | None = None


class Sum(NamedTuple):
    """A term before the division: the sum over its units and their number, float32."""

    sum: Float[Array, ""]
    count: Float[Array, ""]

    @classmethod
    def over(cls, value: Float[Array, "*B"], real: Bool[Array, "*B"]) -> "Sum":
        """Of the units that are real; what the others hold, NaN too, does not enter."""
        return cls(jnp.sum(jnp.where(real, value, 0.0)), jnp.sum(real.astype(jnp.float32)))


class Dial(NamedTuple):
    """The numbers of a term that students trained by one program may differ in."""

    weight: Float[Array, ""]
    temperature: Float[Array, ""]
