"""Real tokens without their padding: the same outputs and gradients, whatever stands at padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.models import ragged
from distilflax.models.encoder import TransformerEncoder
from distilflax.settings import Compute

LENGTHS = np.array([5, 12, 2, 9])
MASK = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)
# With room for three more.
PLACES = jnp.asarray(np.pad(np.flatnonzero(MASK), (0, 3), constant_values=MASK.size))[None]


def inputs(at_padding=0):
    rng = np.random.default_rng(0)
    ids = np.where(MASK, rng.integers(1, 40, MASK.shape), at_padding)
    return ids, rng.integers(0, 2, MASK.shape) * MASK


@pytest.fixture(scope="module")
def outputs(bert, make_params):
    params = make_params(bert)["encoder"]

    def run(places, at_padding=0, **options):
        ids, types = map(jnp.asarray, inputs(at_padding))
        options |= {"token_type_ids": types, "real_places": places}
        apply = partial(TransformerEncoder(bert, Compute()).apply, **options)
        return jax.jit(lambda params: apply({"params": params}, ids, jnp.asarray(MASK)))(params)

    return run


def test_tokens_leave_their_rows_and_come_back():
    rows = np.random.default_rng(0).normal(size=(*MASK.shape, 3)).astype(np.float32)

    @jax.jit
    def there_and_back(rows):
        real = ragged.real_tokens(jnp.asarray(MASK), PLACES)
        tokens = ragged.tokens_of(rows, real)
        return tokens, ragged.rows_of(tokens, real)

    tokens, back = there_and_back(rows)
    assert tokens.shape == (1, PLACES.size, 3) and (tokens[0, -3:] == 0).all()
    np.testing.assert_array_equal(tokens[0, :-3], rows[MASK > 0])
    np.testing.assert_array_equal(back, rows * MASK[..., None])


def test_the_gradient_is_that_of_an_indexing():
    rows, weights = np.random.default_rng(0).normal(size=(2, *MASK.shape)).astype(np.float32)

    def through(rows):
        real = ragged.real_tokens(jnp.asarray(MASK), PLACES)
        tokens = ragged.tokens_of(rows, real)
        return jnp.sum(weights * ragged.rows_of(tokens * tokens, real))

    np.testing.assert_allclose(
        jax.jit(jax.grad(through))(rows), 2 * weights * rows * MASK, rtol=1e-6
    )


# The axis of tokens, of outputs that are of each. Scores of hidden keys mean nothing.
TOKENS = {"hidden_states": 1, "ffn_inputs": 1, "contexts": 1, "attentions": 2}
TOKENS |= {"queries": 1, "keys": 1, "values": 1}


@pytest.mark.parametrize("first_only", [False, True])
def test_every_output_is_that_of_padded_rows(outputs, first_only):
    options = {"outputs": (*TOKENS, "pooler_output"), "first_only": first_only}
    padded, found = (outputs(places, **options) for places in (None, PLACES))
    assert set(padded) == set(found) == {"last_hidden_state", "pooler_output", *TOKENS}
    for name, axis in TOKENS.items():
        for a, b in zip(padded[name], found[name], strict=True):
            assert a.shape == b.shape
            if a.shape[axis] == MASK.shape[1]:
                a, b = (np.moveaxis(x, axis, 1)[MASK > 0] for x in (a, b))
            np.testing.assert_allclose(b, a, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["pooler_output"], padded["pooler_output"], atol=1e-5)
    last = found["last_hidden_state"]
    np.testing.assert_array_equal(last, found["hidden_states"][-1])
    assert first_only or (last[MASK == 0] == 0).all()


def test_what_stands_at_padding_is_never_read(outputs):
    a, b = (outputs(PLACES, at_padding=word) for word in (0, 7))
    np.testing.assert_array_equal(a["last_hidden_state"], b["last_hidden_state"])
