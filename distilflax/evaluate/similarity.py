"""How alike the layers of two models are, whatever their widths: linear CKA, layer by layer."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from distilflax import models, settings
from distilflax.evaluate.held_out import AnyBatch
from distilflax.evaluate.model import Model, on_device
from distilflax.losses.hidden import cka_distance


def cka(
    model: Model, reference: Model, batches: Sequence[AnyBatch], compute: settings.Compute
) -> Float[np.ndarray, "M N"]:
    """Linear CKA of each hidden state of `model` with each of `reference`, the embeddings first.

    Over all real tokens of `batches`, such as `held_out.held_out_batches`, together (Kornblith et
    al. 2019, arXiv:1905.00414, equation 3); 1 is equal up to rotation and scale. Of few tokens it
    is too high: two random matrices of N rows and D columns have about D / (N + D). Give several
    times as many tokens as the models are wide. All states are in memory at once.
    """
    ours, counted = _states(model, batches, compute)
    theirs, _ = _states(reference, batches, compute)
    return np.asarray(_all_pairs(ours, theirs, counted))


def _states(
    model: Model, batches: Sequence[AnyBatch], compute: settings.Compute
) -> tuple[Float[Array, "M tokens D"], Bool[Array, "tokens"]]:
    params = on_device(model)["encoder"]
    found = [_encode(model.encoder, compute, params, batch) for batch in batches]
    real = [np.ravel(batch["attention_mask"]) > 0 for batch in batches]
    return jnp.concatenate(found, axis=1), jnp.concatenate(real)


@partial(jax.jit, static_argnums=(0, 1))
def _encode(encoder, compute, params, batch) -> Float[Array, "M tokens D"]:
    out = models.encode_batch(encoder, compute, params, batch, outputs=("hidden_states",))
    return jnp.stack([state.reshape(-1, state.shape[-1]) for state in out["hidden_states"]])


@jax.jit
def _all_pairs(
    ours: Float[Array, "M tokens D"],
    theirs: Float[Array, "N tokens E"],
    counted: Bool[Array, " tokens"],
) -> Float[Array, "M N"]:
    def alike(one, other):
        return 1.0 - cka_distance(one, other, counted, settings.Term())

    # Nested, each state's product with itself is made once and not for every pair.
    return jax.vmap(lambda one: jax.vmap(lambda other: alike(one, other))(theirs))(ours)
