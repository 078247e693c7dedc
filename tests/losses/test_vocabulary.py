from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.test_util import check_grads

from distilflax.losses import logits
from distilflax.losses.total import CHUNK_ROWS
from distilflax.losses.vocabulary import Decoder, chunked_loss, chunked_sums
from distilflax.settings import Term


def _kl(student, teacher, labels):
    return logits.kl(student, teacher, labels, Term(temperature=2.0))


def _mse(student, teacher, labels):
    return logits.squared_error(student, teacher, labels, Term())


ALL = (_kl, logits.cross_entropy, _mse)
ALONE = (logits.cross_entropy,)


def inputs(rows, functions=ALL, width=5, words=11):
    rng = np.random.default_rng(rows)

    def decoder():
        shapes = (rows, width), (words, width), (words,)
        return Decoder(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))

    weights = rng.integers(0, 3, (len(functions), rows)) * 0.5
    teacher = None if functions == ALONE else decoder()
    return (
        decoder(),
        teacher,
        jnp.asarray(rng.integers(0, words, rows), jnp.int32),
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(rng.uniform(0.1, 1, len(functions)), jnp.float32),
    )


def plain_loss(functions, student, teacher, labels, weights, scales):
    """The formula, with all logits at once."""
    theirs = None if teacher is None else teacher.logits()
    values = jnp.stack([f(student.logits(), theirs, labels) for f in functions])
    sums = jnp.sum(weights * values, axis=1)
    return jnp.dot(scales, sums), sums


def both(functions, chunk_rows):
    chunked = partial(chunked_loss, functions, chunk_rows=chunk_rows)
    plain = partial(plain_loss, functions)
    return (jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (chunked, plain))


def assert_equal(ours, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-5} | tolerance
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), ours, expected)


@pytest.mark.parametrize("functions", [ALL, ALONE], ids=["with a teacher", "alone"])
@pytest.mark.parametrize("rows, chunk_rows", [(1, 4), (7, 3), (8, 4), (5, 100)])
def test_chunks_equal_the_plain_formula(functions, rows, chunk_rows):
    chunked, plain = both(functions, chunk_rows)
    arguments = inputs(rows, functions)
    assert_equal(chunked(*arguments), plain(*arguments))
    (_, sums), _ = plain(*arguments)
    only_sums = jax.jit(chunked_sums, static_argnums=(0, 5))(functions, *arguments[:4], chunk_rows)
    assert_equal(only_sums, sums)


def test_no_rows_are_a_loss_of_zero():
    chunked, _ = both(ALL, 4)
    (loss, sums), grads = chunked(*inputs(0))
    assert loss == 0 and not sums.any()
    assert grads.hidden.shape == (0, 5) and not grads.matrix.any()


def test_the_gradient_scales_with_what_comes_after():
    arguments = inputs(7)

    def cubed(student):
        return chunked_loss(ALL, student, *arguments[1:], 4)[0] ** 3

    def plain_cubed(student):
        return plain_loss(ALL, student, *arguments[1:])[0] ** 3

    student = arguments[0]
    ours, expected = (jax.jit(jax.grad(f))(student) for f in (cubed, plain_cubed))
    assert_equal(ours, expected, rtol=1e-4)


def test_the_gradient_is_the_slope():
    student, *constants = inputs(5)
    check_grads(
        jax.jit(lambda s: 0.1 * chunked_loss(ALL, s, *constants, 2)[0]),
        (student,),
        order=1,
        modes=("rev",),
        eps=1e-2,
        atol=2e-2,
        rtol=2e-2,
    )


def test_tied_embeddings_get_the_sum_of_both_gradients():
    student, *constants = inputs(7)
    ids = jnp.arange(7) % 11

    def through(loss):
        def tied(table):
            decoder = Decoder(jnp.tanh(table[ids]), table, student.bias)
            return loss(ALL, decoder, *constants)[0]

        return jax.jit(jax.grad(tied))(student.matrix)

    chunked = partial(chunked_loss, chunk_rows=4)
    assert_equal(through(chunked), through(plain_loss))

    def untied(table, decoder_table):
        decoder = Decoder(jnp.tanh(table[ids]), decoder_table, student.bias)
        return chunked(ALL, decoder, *constants)[0]

    as_input, as_decoder = jax.jit(jax.grad(untied, (0, 1)))(student.matrix, student.matrix)
    assert np.abs(as_input).max() > 0.1 and np.abs(as_decoder).max() > 0.1
    assert_equal(through(chunked), as_input + as_decoder)


def test_only_the_student_gets_a_gradient():
    student, teacher, labels, weights, scales = inputs(7)

    def loss(teacher, weights, scales):
        return chunked_loss(ALL, student, teacher, labels, weights, scales, 4)[0]

    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(teacher, weights, scales)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_a_nan_in_a_row_that_counts_is_not_hidden():
    student, teacher, labels, weights, scales = inputs(7)
    broken = student._replace(hidden=student.hidden.at[3].set(jnp.nan))
    chunked, _ = both(ALL, 4)
    (loss, _), _ = chunked(broken, teacher, labels, weights + 1, scales)
    assert np.isnan(loss)


def test_half_precision_hidden_states_keep_float32_sums_and_decoder():
    arguments = inputs(13)
    student, teacher = (d._replace(hidden=d.hidden.astype(jnp.bfloat16)) for d in arguments[:2])
    chunked, plain = both(ALL, 4)
    (loss, sums), grads = chunked(student, teacher, *arguments[2:])
    assert loss.dtype == sums.dtype == grads.matrix.dtype == grads.bias.dtype == jnp.float32
    assert grads.hidden.dtype == jnp.bfloat16
    (expected, _), expected_grads = plain(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=0.02)
    largest = np.abs(expected_grads.matrix).max()
    np.testing.assert_allclose(grads.matrix, expected_grads.matrix, atol=0.03 * largest)


def _largest_array(jaxpr):
    own = [v.aval.size for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "size")]
    inner = [_largest_array(j) for e in jaxpr.eqns for j in jaxprs_in_params(e.params)]
    return max([0, *own, *inner])


def _full_size(width):
    """Shapes of a batch of 32 x 128 over BERT's vocabulary: half a gigabyte a logits array."""
    rows, words, functions = 32 * 128, 30522, ALL[:2]
    float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    decoder = Decoder(float32((rows, width)), float32((words, width)), float32((words,)))
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    arguments = (decoder, decoder, labels, float32((2, rows)), float32((2,)))
    return both(functions, CHUNK_ROWS), arguments


def test_no_array_is_as_large_as_the_logits():
    (chunked, plain), arguments = _full_size(16)
    logits_size = 32 * 128 * 30522
    assert _largest_array(jax.make_jaxpr(plain)(*arguments).jaxpr) >= logits_size
    assert _largest_array(jax.make_jaxpr(chunked)(*arguments).jaxpr) <= logits_size / 8


def test_temporary_memory_is_an_eighth_of_the_plain_formulas():
    (chunked, plain), arguments = _full_size(768)

    def temporary(function):
        # Compiled, never run.
        return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert 8 * temporary(chunked) <= temporary(plain)
