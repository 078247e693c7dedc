"""Against transformers, live: 1e-5 for a layer, 1e-4 for a whole model, float32."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, weights
from distilflax.settings import Compute

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMPUTE = Compute()

# Layers and heads of every model that a config names, at a width of 4 a head.
SIZES = {
    "bert-base": ("bert", 12, 12),
    "distilbert-base": ("distilbert", 6, 12),
    "minilm-l6": ("bert", 6, 12),
    "minilm-l6, half": ("bert", 3, 12),
    "distilbert, one layer": ("distilbert", 1, 3),
}


def theirs(family, layers, heads, **sizes):
    """A model with a masked-LM head and random weights, biases and LayerNorms too."""
    width = 4 * heads
    sizes = {"vocab": 97, "width": width, "inner": 4 * width, "positions": 40} | sizes
    shared = {"vocab_size": sizes["vocab"], "max_position_embeddings": sizes["positions"]}
    if family == "bert":
        config = transformers.BertConfig(
            **shared,
            hidden_size=sizes["width"],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=sizes["inner"],
            attn_implementation="eager",
        )
        model = transformers.BertForPreTraining(config)
    else:
        config = transformers.DistilBertConfig(
            **shared,
            dim=sizes["width"],
            n_layers=layers,
            n_heads=heads,
            hidden_dim=sizes["inner"],
            attn_implementation="eager",
        )
        model = transformers.DistilBertForMaskedLM(config)
    generator = torch.Generator().manual_seed(layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name.lower() and name.endswith("weight")
            # A standard deviation that keeps the size of what a kernel of this width is given.
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
            parameter.normal_(float(is_norm), spread, generator=generator)
    return model.eval()


def make_inputs(vocab, length, *, types):
    rng = np.random.default_rng(length)
    lengths = np.array([length, length * 2 // 3, 2])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    inputs = {
        "input_ids": rng.integers(5, vocab, mask.shape).astype(np.int32) * mask,
        "attention_mask": mask,
    }
    if types:
        inputs["token_type_ids"] = rng.integers(0, 2, mask.shape).astype(np.int32) * mask
    return inputs


def run_theirs(model, inputs):
    with torch.no_grad():
        return model(
            **{name: torch.tensor(ids, dtype=torch.long) for name, ids in inputs.items()},
            output_hidden_states=True,
            output_attentions=True,
        )


encode = jax.jit(models.encode, static_argnums=(0, 1), static_argnames="outputs")
transform = jax.jit(models.mlm_transform, static_argnums=(0, 1))
run_layer = jax.jit(models.encode_layer, static_argnums=(0, 1))


def run_ours(checkpoint, inputs, outputs=()):
    return encode(
        checkpoint.encoder,
        COMPUTE,
        checkpoint.params["encoder"],
        **{name: jnp.asarray(ids) for name, ids in inputs.items()},
        outputs=outputs,
    )


def logits(checkpoint, hidden):
    matrix, bias = models.decoder(checkpoint.params)
    transformed = transform(checkpoint.encoder, COMPUTE, checkpoint.params, hidden)
    return np.asarray(transformed @ matrix.T + bias)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_at_tiny_width(name, tmp_path):
    family, layers, heads = SIZES[name]
    model = theirs(family, layers, heads)
    model.save_pretrained(tmp_path)
    checkpoint = weights.load(tmp_path)
    base = getattr(model, family)
    if checkpoint.encoder.pooler:
        asked = ("hidden_states", "attentions", "pooler_output")
    else:
        asked = ("hidden_states", "attentions")

    # Without token types, which then are 0, at one size alone: no other says more of that.
    for types in (False, True) if name == "minilm-l6, half" else (family == "bert",):
        inputs = make_inputs(97, 24, types=types)
        real = inputs["attention_mask"] > 0
        expected = run_theirs(model, inputs)
        ours = run_ours(checkpoint, inputs, asked)

        _assert_layers_equal(checkpoint, expected.hidden_states, inputs["attention_mask"])
        for state, their_state in zip(ours["hidden_states"], expected.hidden_states, strict=True):
            np.testing.assert_allclose(state[real], their_state.numpy()[real], atol=1e-4)
        for shown, attention in zip(ours["attentions"], expected.attentions, strict=True):
            np.testing.assert_allclose(
                np.moveaxis(shown, 1, -1)[real],
                np.moveaxis(attention.numpy(), 1, -1)[real],
                atol=1e-4,
            )
        their_logits = expected.prediction_logits if family == "bert" else expected.logits
        np.testing.assert_allclose(
            logits(checkpoint, ours["last_hidden_state"])[real],
            their_logits.numpy()[real],
            atol=1e-4,
        )
        if family == "bert":
            pooled = run_theirs(base, inputs).pooler_output.numpy()
            np.testing.assert_allclose(ours["pooler_output"], pooled, atol=1e-4)


def _assert_layers_equal(checkpoint, their_states, attention_mask):
    """Each of our layers, given what theirs was given, returns what theirs returned."""
    real = attention_mask > 0
    states = [jnp.asarray(state.numpy()) for state in their_states]
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        layer = checkpoint.params["encoder"][f"layers_{i}"]
        ours, _ = run_layer(checkpoint.encoder, COMPUTE, layer, before, attention_mask)
        np.testing.assert_allclose(ours[real], after[real], atol=1e-5, err_msg=f"layer {i}")


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_activations(activation):
    from transformers.activations import get_activation

    from distilflax.models.layers import ACTIVATIONS

    x = np.linspace(-8, 8, 2001, dtype=np.float32)
    expected = get_activation(activation)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[activation](x), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family, layers", [("bert", 12), ("distilbert", 1)])
def test_the_base_sizes(family, layers, tmp_path):
    """The larger of them whole; of the other, which is as wide, a layer."""
    model = theirs(family, layers, 12, vocab=30522, width=768, inner=3072, positions=512)
    model.save_pretrained(tmp_path)
    checkpoint = weights.load(tmp_path)
    inputs = make_inputs(30522, 48, types=family == "bert")
    real = inputs["attention_mask"] > 0
    expected = run_theirs(model, inputs)
    ours = run_ours(checkpoint, inputs, ("hidden_states",))
    _assert_layers_equal(checkpoint, expected.hidden_states, inputs["attention_mask"])
    np.testing.assert_allclose(
        ours["last_hidden_state"][real], expected.hidden_states[-1].numpy()[real], atol=1e-4
    )
    their_logits = expected.prediction_logits if family == "bert" else expected.logits
    np.testing.assert_allclose(
        logits(checkpoint, ours["last_hidden_state"])[real], their_logits.numpy()[real], atol=1e-4
    )
