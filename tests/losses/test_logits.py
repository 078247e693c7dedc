import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.losses import logits
from distilflax.settings import Term

LABELS = jnp.array([3, 0, 8, 8])


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [jnp.asarray(3 * rng.normal(size=(4, 9)), jnp.float32) for _ in range(2)]


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_kl_is_the_formula_with_t_squared(rows, temperature):
    student, teacher = rows
    log_q, log_p = (log_softmax(np.asarray(x, np.float64) / temperature) for x in rows)
    expected = temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    ours = logits.at_temperature(logits.kl, temperature, student, teacher, LABELS, Term())
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_t_squared_keeps_the_size_of_the_gradient(rows):
    def size(temperature):
        def total(student):
            soft = logits.at_temperature(logits.kl, temperature, student, rows[1], LABELS, Term())
            return jnp.sum(soft)

        return float(jnp.linalg.norm(jax.grad(total)(rows[0])))

    # Without the factor this ratio would be 1/100.
    assert 0.9 < size(100.0) / size(10.0) < 1.1


def test_kl_of_equals_is_zero_and_so_is_its_gradient(rows):
    value, grad = jax.value_and_grad(lambda s: jnp.sum(logits.kl(s, rows[1], LABELS, Term())))(
        rows[1]
    )
    assert value == 0
    np.testing.assert_allclose(grad, 0, atol=1e-7)


def test_kl_knows_who_is_the_teacher(rows):
    student, teacher = rows
    forward = logits.kl(student, teacher, LABELS, Term())
    assert (forward > 0).all()
    assert np.abs(forward - logits.kl(teacher, student, LABELS, Term())).max() > 0.1


@pytest.mark.parametrize("function", [logits.kl, logits.cross_entropy])
def test_large_logits_do_not_overflow_and_a_shift_changes_nothing(rows, function):
    student, teacher = rows
    near = function(student, teacher, LABELS, Term())
    far = function(student + 300.0, teacher - 300.0, LABELS, Term())
    np.testing.assert_allclose(far, near, atol=2e-3)
    assert np.isfinite(function(1e4 * student, 1e4 * teacher, LABELS, Term())).all()


def test_cross_entropy_is_minus_the_labels_log_probability(rows):
    expected = -log_softmax(rows[0])[np.arange(4), np.asarray(LABELS)]
    np.testing.assert_allclose(
        logits.cross_entropy(rows[0], None, LABELS, Term()), expected, rtol=1e-5
    )


def test_squared_error_sums_over_words(rows):
    expected = np.sum((np.asarray(rows[0], np.float64) - np.asarray(rows[1])) ** 2, axis=-1)
    np.testing.assert_allclose(logits.squared_error(*rows, LABELS, Term()), expected, rtol=1e-5)


def test_correct_and_agreement_count_likeliest_words():
    student = jnp.eye(3)
    teacher = jnp.array([[9.0, 1, 1], [9, 1, 1], [1, 1, 9]])
    labels = jnp.array([0, 1, 0])
    assert logits.correct(student, None, labels).tolist() == [1, 1, 0]
    assert logits.agreement(student, teacher, labels).tolist() == [1, 0, 1]
