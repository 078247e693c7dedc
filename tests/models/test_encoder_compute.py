"""What `settings.Compute` may change: time and memory, and values by rounding alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models
from distilflax.models import layers
from distilflax.settings import Compute

FLOAT32 = Compute()
PLAIN = Compute(attention="plain")
FUSED = Compute(attention="fused")
BFLOAT16 = Compute(dtype="bfloat16")

jitted_encode = jax.jit(models.encode, static_argnums=(0, 1), static_argnames="outputs")


def last(encoder, params, ids, mask, compute=FLOAT32):
    return jitted_encode(encoder, compute, params["encoder"], ids, mask)["last_hidden_state"]


def real_rows(hidden, mask):
    return np.asarray(hidden, np.float32)[np.asarray(mask) > 0]


def test_bfloat16_computes_in_bfloat16_near_float32(encoder, make_params, batch):
    params, (ids, mask) = make_params(encoder, mlm_head=True), batch
    full = last(encoder, params, ids, mask)
    half = last(encoder, params, ids, mask, BFLOAT16)
    assert half.dtype == jnp.bfloat16
    assert models.mlm_transform(encoder, BFLOAT16, params, half).dtype == jnp.bfloat16
    error = np.abs(real_rows(half, mask) - real_rows(full, mask))
    assert 1e-4 < error.max() < 0.2
    assert error.mean() < 0.02

    _, grads = jax.eval_shape(_gradient(encoder, BFLOAT16, batch), params)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_the_matrix_products_of_bfloat16_are_in_bfloat16(bert, make_params, batch):
    def program(compute):
        text = jax.jit(lambda p: last(bert, p, *batch, compute)).lower(make_params(bert)).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    # Attention scores come out in float32 (the softmax wants them) but are made of bfloat16.
    products = program(BFLOAT16)
    assert len(products) == 8 * bert.num_layers
    assert all(line.split(" : ")[-1].count("bf16") >= 2 for line in products)
    assert not any("bf16" in line for line in program(FLOAT32))


def _gradient(encoder, compute, batch, dropout_key=None):
    """The jitted (value, gradient) of some function of all hidden states."""
    return jax.jit(jax.value_and_grad(partial(_loss, encoder, compute, batch, dropout_key)))


def _loss(encoder, compute, batch, dropout_key, params):
    hidden = models.encode(encoder, compute, params["encoder"], *batch, dropout_key=dropout_key)[
        "last_hidden_state"
    ]
    return jnp.sum(jnp.sin(hidden))


def test_remat_changes_no_value_and_no_gradient(shallow_bert, make_params, batch):
    """With dropout, whose masks the backward pass must draw once more as they were."""
    params, key = make_params(shallow_bert), jax.random.key(7)
    loss, grads = _gradient(shallow_bert, FLOAT32, batch, key)(params)
    remat_loss, remat_grads = _gradient(shallow_bert, Compute(remat=True), batch, key)(params)
    np.testing.assert_allclose(remat_loss, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), remat_grads, grads)


@pytest.fixture(scope="module")
def deep(bert):
    """An encoder and a batch whose activations outweigh everything else."""
    tokens = jnp.ones((16, 64), jnp.int32)
    return dataclasses.replace(bert, num_layers=6, max_positions=64), (tokens, tokens)


def test_remat_keeps_one_array_a_layer_for_the_backward_pass(deep):
    encoder, batch = deep

    def kept(remat):
        loss = partial(_loss, encoder, Compute(remat=remat), batch, None)
        backward = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], models.shapes(encoder))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    hidden = 4 * 16 * 64 * encoder.hidden_size
    parameters = 4 * models.parameter_count(models.shapes(encoder))
    assert kept(True) < parameters + (encoder.num_layers + 6) * hidden < 0.2 * kept(False)


def test_remat_takes_less_memory(deep):
    encoder, batch = deep

    def temporary(remat):
        step = _gradient(encoder, Compute(remat=remat), batch)
        # XLA for the CPU drops the barriers that hold the recomputation back, and its default
        # scheduler then runs it early; one that looks at memory does not.
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        on_cpu = jax.default_backend() == "cpu"
        compiled = step.lower(models.shapes(encoder)).compile(options if on_cpu else None)
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) < 0.75 * temporary(False)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("bfloat16", 0.2)])
def test_fused_attention_equals_plain(encoder, make_params, batch, dtype, tolerance):
    params, (ids, mask) = make_params(encoder), batch

    def value(compute):
        return real_rows(last(encoder, params, ids, mask, compute), mask)

    fused = value(Compute(dtype=dtype, attention="fused"))
    np.testing.assert_allclose(
        fused, value(Compute(dtype=dtype, attention="plain")), atol=tolerance
    )


def test_fused_attention_has_the_plain_gradient(shallow_bert, make_params, batch):
    ids, mask = batch

    def gradient(compute):
        def loss(params):
            hidden = last(shallow_bert, params, ids, mask, compute)
            return jnp.sum(jnp.where(mask[..., None] > 0, jnp.sin(hidden), 0))

        return jax.jit(jax.grad(loss))(make_params(shallow_bert))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), gradient(FUSED), gradient(PLAIN)
    )


def test_gelu_keeps_the_digits_of_its_tail_in_half_precision():
    x = jnp.linspace(-4.0, -1.0, 200).astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    found = layers.ACTIVATIONS["gelu"](x)
    assert found.dtype == jnp.bfloat16
    assert float(jnp.max(jnp.abs(found.astype(jnp.float32) - exact))) < 1e-3
