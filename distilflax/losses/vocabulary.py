"""Losses over the vocabulary that never hold a whole batch of logits.

The logits of a batch of 32 x 128 over 30,522 words are half a gigabyte, and a distillation step
wants several such arrays (two models, softmaxes, gradients). Here the rows pass through in chunks:
a chunk's logits are made, reduced to the terms' sums, turned at once into the gradients of the
hidden states and of the decoder, and dropped. Gradients in the forward pass are what makes this
free: nothing is computed a second time, so it costs the same four matrix products as the plain
formula (student logits, teacher logits, gradient of the hidden states, gradient of the decoder).

The price is that the weights of the terms must be known before the backward pass. They are: the
config gives them, and the masks give the counts.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# (student logits [N, V], teacher logits [N, V] or None, labels [N]) -> value of each row [N]
RowFunction = Callable[
    [Float[Array, "N V"], Float[Array, "N V"] | None, Int[Array, " N"]], Float[Array, " N"]
]


class Decoder(NamedTuple):
    """Rows that are one matrix product away from being logits: hidden @ matrix.T + bias."""

    hidden: Float[Array, "N D"]
    matrix: Float[Array, "V D"]
    bias: Float[Array, " V"]

    def logits(self) -> Float[Array, "N V"]:
        """float32 logits of the rows, whatever the precision of the hidden states."""
        matrix = self.matrix.astype(self.hidden.dtype)
        product = jnp.einsum("nd,vd->nv", self.hidden, matrix, preferred_element_type=jnp.float32)
        return product + self.bias.astype(jnp.float32)


def chunked_sums(
    functions: tuple[RowFunction, ...],
    student: Decoder,
    teacher: Decoder | None,
    labels: Int[Array, " N"],
    weights: Float[Array, "F N"],
    chunk_rows: int,
) -> Float[Array, " F"]:
    """For each function f the sum over rows n of weights[f, n] * f(row n). No gradient is kept."""

    def body(sums, rows):
        return sums + _weighted(functions, *_row_logits(student, teacher, rows)), None

    rows = _into_chunks(student, teacher, labels, weights, chunk_rows)
    return jax.lax.scan(body, jnp.zeros(len(functions), jnp.float32), rows)[0]


def chunked_loss(
    functions: tuple[RowFunction, ...],
    student: Decoder,
    teacher: Decoder | None,
    labels: Int[Array, " N"],
    weights: Float[Array, "F N"],
    scales: Float[Array, " F"],
    chunk_rows: int,
) -> tuple[Float[Array, ""], Float[Array, " F"]]:
    """`sum_f scales[f] * sums[f]`, differentiable in `student`, and the sums themselves.

    Equal to the plain formula with `jax.grad`, at a fraction of its memory. Only the student gets
    a gradient: teacher, labels, weights and scales are constants.
    """
    constants = jax.lax.stop_gradient((teacher, labels, weights, scales))
    return _chunked_loss(functions, chunk_rows, student, constants)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_loss(functions, chunk_rows, student, constants):
    teacher, labels, weights, scales = constants
    sums = chunked_sums(functions, student, teacher, labels, weights, chunk_rows)
    return jnp.dot(scales, sums), sums


def _forward(functions, chunk_rows, student, constants):
    teacher, labels, weights, scales = constants
    matrix = student.matrix.astype(student.hidden.dtype)

    def body(carry, rows):
        sums, matrix_grad, bias_grad = carry
        student_logits, *rest = _row_logits(student, teacher, rows)

        def loss(logits):
            chunk_sums = _weighted(functions, logits, *rest)
            return jnp.dot(scales, chunk_sums), chunk_sums

        logits_grad, chunk_sums = jax.grad(loss, has_aux=True)(student_logits)
        narrow = logits_grad.astype(student.hidden.dtype)
        hidden_grad = jnp.einsum("nv,vd->nd", narrow, matrix, preferred_element_type=jnp.float32)
        matrix_grad += jnp.einsum("nv,nd->vd", narrow, rows[0], preferred_element_type=jnp.float32)
        carry = (sums + chunk_sums, matrix_grad, bias_grad + jnp.sum(logits_grad, axis=0))
        return carry, hidden_grad.astype(student.hidden.dtype)

    start = (
        jnp.zeros(len(functions), jnp.float32),
        jnp.zeros(student.matrix.shape, jnp.float32),
        jnp.zeros(student.bias.shape, jnp.float32),
    )
    rows = _into_chunks(student, teacher, labels, weights, chunk_rows)
    (sums, matrix_grad, bias_grad), hidden_grad = jax.lax.scan(body, start, rows)
    hidden_grad = hidden_grad.reshape(-1, hidden_grad.shape[-1])[: len(labels)]
    grads = Decoder(
        hidden_grad,
        matrix_grad.astype(student.matrix.dtype),
        bias_grad.astype(student.bias.dtype),
    )
    return (jnp.dot(scales, sums), sums), grads


def _backward(functions, chunk_rows, grads, cotangents):
    of_total, _ = cotangents
    return jax.tree.map(lambda g: (g * of_total).astype(g.dtype), grads), None


_chunked_loss.defvjp(_forward, _backward)


def _into_chunks(student, teacher, labels, weights, chunk_rows):
    """(student hidden, teacher hidden, labels, weights) with a leading axis of chunks.

    Chunks are of equal size, at most `chunk_rows`, and the last is filled up with rows of weight
    zero; dividing evenly leaves fewer of those than filling up the last of full ones.
    """
    number = len(labels)
    chunks = max(1, -(-number // chunk_rows))
    chunk_rows = -(-number // chunks)
    extra = chunks * chunk_rows - number

    def split(x):
        padded = jnp.pad(x, ((0, extra),) + ((0, 0),) * (x.ndim - 1))
        return padded.reshape(chunks, chunk_rows, *x.shape[1:])

    teacher_hidden = None if teacher is None else split(teacher.hidden)
    return split(student.hidden), teacher_hidden, split(labels), split(weights.T)


def _row_logits(student, teacher, rows):
    student_hidden, teacher_hidden, labels, weights = rows
    student_logits = student._replace(hidden=student_hidden).logits()
    if teacher is None:
        return student_logits, None, labels, weights
    return student_logits, teacher._replace(hidden=teacher_hidden).logits(), labels, weights


def _weighted(functions, student_logits, teacher_logits, labels, weights):
    """[F] weighted sums of one chunk; a NaN shows in the functions that cover its row alone."""
    values = jnp.stack([f(student_logits, teacher_logits, labels) for f in functions], axis=-1)
    return jnp.sum(jnp.where(weights != 0, values * weights, 0.0), axis=0)
