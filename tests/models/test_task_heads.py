"""Heads on the first token: of the last layer nothing else is computed, and nothing changes."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models
from distilflax.models import TaskHead
from distilflax.settings import Compute

HEADS = {
    "sequence": TaskHead("sequence", ("a", "b", "c"), dropout=0.0),
    "cls vector": TaskHead("vector", pooling="cls"),
}
IDS = jnp.arange(24).reshape(3, 8) % 20
MASK = jnp.asarray(np.arange(8) < [[8], [5], [2]], jnp.int32)


PLAIN, FUSED = Compute(), Compute(attention="fused", remat=True)
# Either head in either arithmetic, and either encoder with each of these.
ONE_OF_EACH = [
    ("bert", "sequence", PLAIN),
    ("bert", "cls vector", FUSED),
    ("distilbert", "sequence", FUSED),
    ("distilbert", "cls vector", PLAIN),
]


@pytest.mark.parametrize("encoder, name, compute", ONE_OF_EACH, indirect=["encoder"])
def test_logits_and_gradients_are_those_of_the_whole_layer(encoder, name, compute, drawn):
    head = HEADS[name]
    params = drawn(encoder, 0)
    params |= {"task_head": models.init_head(head, encoder, jax.random.key(1))}

    def ours(params):
        return models.task_logits(encoder, compute, head, params, IDS, MASK)

    def whole(params):
        """By the full hidden states and the head's own layers."""
        wanted = ("pooler_output",) if encoder.pooler else ()
        out = models.encode(encoder, Compute(), params["encoder"], IDS, MASK, outputs=wanted)
        if head.kind == "vector":
            return models.normalize(models.pool(out["last_hidden_state"], MASK, "cls"))
        layers = params["task_head"]
        read = out.get("pooler_output")
        if read is None:
            before = layers["pre_classifier"]
            first = out["last_hidden_state"][:, 0]
            read = jax.nn.relu(first @ before["kernel"] + before["bias"])
        return read @ layers["classifier"]["kernel"] + layers["classifier"]["bias"]

    def loss(f, tree):
        logits = f(tree)
        return jnp.sum(logits**2 * jnp.arange(1, 4)[:, None]), logits

    (found, logits), (wanted, expected) = (
        jax.jit(jax.grad(partial(loss, f), has_aux=True))(params) for f in (ours, whole)
    )
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), found, wanted)


def test_vectors_of_an_int8_file_share_their_scales_with_all_tokens(bert, drawn):
    """The file of an encoder computes its whole last layer, and so does what is trained for it."""
    rounded = dataclasses.replace(bert, int8_range="portable", pooler=False)
    params = drawn(rounded, 0)
    arguments = (rounded, Compute(), HEADS["cls vector"], params, IDS, MASK)
    encode = jax.jit(partial(models.encode, rounded, Compute()))
    whole = encode(params["encoder"], IDS, MASK)["last_hidden_state"]
    wanted = models.normalize(models.pool(whole, MASK, "cls"))
    found = jax.jit(partial(models.task_logits, *arguments[:3]))(*arguments[3:])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert HEADS["sequence"].first_only(rounded) and HEADS["cls vector"].first_only(bert)


def test_the_last_feed_forward_runs_for_no_other_token(bert):
    params, wide = models.shapes(bert), []
    for one in (HEADS["sequence"], dataclasses.replace(HEADS["sequence"], kind="token")):
        layers = {
            layer: {
                "kernel": jax.ShapeDtypeStruct(shape, jnp.float32),
                "bias": jax.ShapeDtypeStruct(shape[1:], jnp.float32),
            }
            for layer, shape in models.head_shapes(one, bert).items()
        }
        program = jax.make_jaxpr(
            lambda tree, key, one=one: models.task_logits(
                bert, Compute(), one, tree, IDS, MASK, dropout_key=key
            )
        )(params | {"task_head": layers}, jax.random.key(0))
        wide.append(str(program).count(f"f32[3,8,{bert.intermediate_size}]"))
    assert wide[0] * bert.num_layers == wide[1] * (bert.num_layers - 1)
