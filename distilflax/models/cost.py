"""What a model costs: parameters and floating-point operations, counted and not measured."""

import jax
import numpy as np

from distilflax.settings import Encoder


def parameter_count(params: dict) -> int:
    """Number of parameters in a tree of arrays (or of shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def encoder_flops(settings: Encoder, tokens: int, length: int, *, first_only: bool = False) -> int:
    """Operations of one forward pass over `tokens` tokens in sequences of `length`.

    Matrix products only, a multiply and an add counted as two: per layer and token
    8 D^2 (query, key, value, output) + 4 D F (feed-forward) + 4 L D (scores and their use). With
    `first_only` the last layer is of one token a sequence, but for the 4 D^2 of keys and values.
    """
    width, inner = settings.hidden_size, settings.intermediate_size
    per_token = 8 * width**2 + 4 * width * inner + 4 * length * width
    spared = 4 * width**2 + 4 * width * inner + 4 * length * width
    others = tokens - tokens // length if first_only else 0
    return settings.num_layers * per_token * tokens - spared * others


def vocabulary_flops(settings: Encoder, positions: int) -> int:
    """Operations of the masked-LM head over `positions`: the transform and the decoder."""
    return 2 * positions * settings.hidden_size * (settings.hidden_size + settings.vocab_size)
