"""The product of a dense layer: jax's own, but for how its gradient is summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.models.product import over_rows


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3)])
def test_product_and_gradients_are_those_of_matmul(shape):
    x, kernel, weight = drawn(*shape), drawn(3, 5, seed=1), drawn(*shape[:-1], 5, seed=2)

    @jax.jit
    def of_both(x, kernel):
        both = (over_rows, jnp.matmul)
        return [(f(x, kernel), _gradients(f, x, kernel, weight)) for f in both]

    found, wanted = of_both(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


def test_a_gradient_sums_over_one_axis():
    """Over two, batch and length, XLA's CPU backend takes a third longer."""
    x, kernel, weight = drawn(2, 4, 3), drawn(3, 5), drawn(2, 4, 5)
    program = jax.make_jaxpr(lambda *a: _gradients(over_rows, *a))(x, kernel, weight)
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3
    for product in products:
        (left, right), _ = product.params["dimension_numbers"]
        assert len(left) == len(right) == 1


def _gradients(multiply, x, kernel, weight):
    return jax.grad(lambda *a: jnp.sum(multiply(*a) * weight), argnums=(0, 1))(x, kernel)
