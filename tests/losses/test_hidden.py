import jax
import jax.numpy as jnp
import numpy as np

from distilflax.losses.hidden import cosine_distance
from distilflax.settings import Term

TERM = Term()


def test_it_is_the_formula_and_ignores_length():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4, 5))
    dot = np.sum(student * teacher, -1)
    norms = np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
    ours = cosine_distance(
        jnp.asarray(student, jnp.float32), jnp.asarray(7 * teacher, jnp.float32), TERM
    )
    np.testing.assert_allclose(ours, 1 - dot / norms, atol=1e-6)


def test_same_direction_is_zero_and_opposite_two():
    x = jnp.array([[3.0, -4.0]])
    np.testing.assert_allclose(cosine_distance(x, 0.01 * x, TERM), 0, atol=1e-6)
    np.testing.assert_allclose(cosine_distance(x, -x, TERM), 2, atol=1e-6)


def test_a_vector_of_zeros_has_a_finite_gradient():
    zeros, ones = jnp.zeros((1, 4)), jnp.ones((1, 4))
    for student, teacher in [(zeros, ones), (ones, zeros), (zeros, zeros)]:
        grads = jax.grad(lambda s, t: jnp.sum(cosine_distance(s, t, TERM)), (0, 1))(
            student, teacher
        )
        assert all(np.isfinite(g).all() for g in grads)


def test_half_precision_is_summed_in_float32():
    # 1024 equal numbers: their sum of squares has no bfloat16 close by.
    x = jnp.full((1, 1000), 1.01, jnp.bfloat16)
    y = x.at[0, 0].set(0)
    expected = 1 - np.sqrt(999 / 1000)
    assert cosine_distance(x, y, TERM).dtype == jnp.float32
    np.testing.assert_allclose(cosine_distance(x, y, TERM), expected, rtol=1e-3)
