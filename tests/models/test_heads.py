import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models
from distilflax.settings import Compute

transform = jax.jit(models.mlm_transform, static_argnums=(0, 1))


def test_mean_pooling_averages_real_tokens():
    hidden = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[1, 1, 0], [1, 1, 1]])
    expected = [np.mean([[0, 1], [2, 3]], 0), np.mean([[6, 7], [8, 9], [10, 11]], 0)]
    np.testing.assert_allclose(models.pool(hidden, mask, "mean"), expected)


@pytest.mark.parametrize("garbage", [1e6, jnp.nan, jnp.inf])
def test_mean_pooling_never_reads_padding(garbage):
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    hidden = jnp.where(mask[..., None] > 0, 2.0, garbage) * jnp.ones((2, 3, 4))

    def pooled(hidden):
        return jnp.sum(models.pool(hidden, mask, "mean"))

    np.testing.assert_array_equal(models.pool(hidden, mask, "mean"), [[2] * 4, [0] * 4])
    np.testing.assert_array_equal(jax.grad(pooled)(hidden)[0, :, 0], [0.5, 0.5, 0])
    assert not np.asarray(jax.grad(pooled)(hidden)[1]).any()


def test_cls_pooling_is_the_first_token():
    hidden = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(
        models.pool(hidden, jnp.ones((2, 3), int), "cls"), [[0, 1], [6, 7]]
    )


@pytest.mark.parametrize("pooling", list(models.POOLING))
def test_pooling_is_float32_even_of_half_precision(pooling):
    # 512 ones and 512 values of 1/256: in bfloat16 the second half would be lost in the sum.
    hidden = jnp.concatenate([jnp.ones((1, 512, 1)), jnp.full((1, 512, 1), 1 / 256)], axis=1)
    pooled = models.pool(hidden.astype(jnp.bfloat16), jnp.ones((1, 1024), int), pooling)
    assert pooled.dtype == jnp.float32
    expected = {"mean": (512 + 2) / 1024, "cls": 1.0}[pooling]
    np.testing.assert_allclose(pooled, [[expected]], rtol=1e-6)


def test_normalized_vectors_have_unit_length_and_a_finite_gradient():
    vectors = jnp.array([[3.0, 4.0], [1e-6, 0.0], [0.0, 0.0]])
    unit = models.normalize(vectors)
    np.testing.assert_allclose(unit, [[0.6, 0.8], [1, 0], [0, 0]], rtol=1e-5)
    assert np.isfinite(jax.grad(lambda v: jnp.sum(models.normalize(v)))(vectors)).all()


def test_the_decoder_is_the_word_embeddings_unless_the_head_has_its_own(bert, make_params):
    params = make_params(bert, mlm_head=True)
    matrix, bias = models.decoder(params)
    assert matrix is params["encoder"]["embeddings"]["word"]
    assert bias is params["mlm_head"]["bias"]

    own = jnp.ones_like(matrix)
    untied = {**params, "mlm_head": {**params["mlm_head"], "decoder": own}}
    assert models.decoder(untied)[0] is own
    hidden = jnp.ones((2, bert.hidden_size))
    np.testing.assert_array_equal(
        *(transform(bert, Compute(), p, hidden) for p in (params, untied))
    )


def test_the_transform_takes_any_leading_shape(bert, make_params):
    params = make_params(bert, mlm_head=True)
    hidden = jax.random.normal(jax.random.key(0), (2, 5, bert.hidden_size))
    deep = transform(bert, Compute(), params, hidden)
    flat = transform(bert, Compute(), params, hidden.reshape(10, -1))
    np.testing.assert_allclose(deep.reshape(10, -1), flat, atol=1e-6)
