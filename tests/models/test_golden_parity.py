"""Against what transformers computed once (tests/golden): neither torch nor transformers needed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, weights
from distilflax.settings import Compute

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def golden(request):
    with np.load(GOLDEN / f"{request.param}.npz", allow_pickle=False) as arrays:
        return weights.load(GOLDEN / request.param), dict(arrays)


# Compiled whole: one operation after the other takes many times as long.
encode = jax.jit(models.encode, static_argnums=(0, 1), static_argnames="outputs")
transform = jax.jit(models.mlm_transform, static_argnums=(0, 1))


def run(checkpoint, theirs, *, types=True, outputs=()):
    kinds = {}
    if types and "token_type_ids" in theirs:
        kinds = {"token_type_ids": jnp.asarray(theirs["token_type_ids"], jnp.int32)}
    return encode(
        checkpoint.encoder,
        Compute(),
        checkpoint.params["encoder"],
        *(jnp.asarray(theirs[name], jnp.int32) for name in ("input_ids", "attention_mask")),
        **kinds,
        outputs=outputs,
    )


def test_hidden_states_attentions_and_logits(golden):
    checkpoint, theirs = golden
    real = theirs["attention_mask"] > 0
    ours = run(checkpoint, theirs, outputs=("hidden_states", "attentions"))
    for state, expected in zip(ours["hidden_states"], theirs["hidden_states"], strict=True):
        np.testing.assert_allclose(state[real], expected[real], atol=1e-5)
    for shown, expected in zip(ours["attentions"], theirs["attentions"], strict=True):
        queries = np.broadcast_to(real[:, None, :, None], expected.shape)
        np.testing.assert_allclose(shown[queries], expected[queries], atol=1e-5)

    hidden = transform(checkpoint.encoder, Compute(), checkpoint.params, ours["last_hidden_state"])
    matrix, bias = models.decoder(checkpoint.params)
    np.testing.assert_allclose((hidden @ matrix.T + bias)[real], theirs["logits"][real], atol=1e-4)


def test_pooler_and_absent_token_types(golden):
    checkpoint, theirs = golden
    if checkpoint.model_type != "bert":
        pytest.skip("DistilBERT has neither")
    pooled = run(checkpoint, theirs, outputs=("pooler_output",))["pooler_output"]
    np.testing.assert_allclose(pooled, theirs["pooled"], atol=1e-5)
    plain = run(checkpoint, theirs, types=False)["last_hidden_state"]
    real = theirs["attention_mask"] > 0
    np.testing.assert_allclose(
        plain[real], theirs["hidden_states_without_types"][-1][real], atol=1e-5
    )
