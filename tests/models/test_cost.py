import math

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from distilflax import models
from distilflax.models.encoder import TransformerEncoder
from distilflax.settings import Compute


def product_flops(function, *args):
    """Operations of the matrix products in the program, a multiply and an add counted as two."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                inner = math.prod(left[axis] for axis in contracted)
                total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
            total += sum(count(inner) for inner in jaxprs_in_params(equation.params))
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def test_the_operations_are_those_of_the_program(bert):
    shapes = models.shapes(bert, mlm_head=True)
    ids = jnp.ones((3, 10), jnp.int32)

    def encoder(params):
        return models.encode(bert, Compute(), params["encoder"], ids, ids)["last_hidden_state"]

    def vocabulary(params, hidden):
        matrix, bias = models.decoder(params)
        return models.mlm_transform(bert, Compute(), params, hidden) @ matrix.T + bias

    assert models.encoder_flops(bert, tokens=30, length=10) == product_flops(encoder, shapes)

    def first(params):
        encoder = TransformerEncoder(bert, Compute())
        return encoder.apply({"params": params["encoder"]}, ids, ids, first_only=True)

    alone = models.encoder_flops(bert, tokens=30, length=10, first_only=True)
    assert alone == product_flops(first, shapes)
    hidden = jax.ShapeDtypeStruct((7, bert.hidden_size), jnp.float32)
    assert models.vocabulary_flops(bert, 7) == product_flops(vocabulary, shapes, hidden)


def test_parameters_are_counted_in_arrays_and_in_shapes():
    assert models.parameter_count({"a": {"b": jnp.zeros((2, 3))}, "c": jnp.zeros(5)}) == 11
    assert models.parameter_count({"a": jax.ShapeDtypeStruct((4, 3), jnp.float32)}) == 12
