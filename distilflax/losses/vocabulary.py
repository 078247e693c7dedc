"""Losses over the vocabulary that never hold a whole batch of logits.

The logits of a batch of 32 x 128 over 30,522 words are half a gigabyte, and a distillation step
wants several such arrays (two models, softmaxes, gradients). Here the rows pass through in chunks:
a chunk's logits are made, reduced to the terms' sums, turned at once into the gradients of the
hidden states and of the decoder, and dropped. Gradients in the forward pass are what makes this
free: nothing is computed a second time, so it costs the same four matrix products as the plain
formula (student logits, teacher logits, gradient of the hidden states, gradient of the decoder).

The price is that the weights of the terms must be known before the backward pass. They are: the
config gives them, and the masks give the counts.

Rows that no function weighs (padding, mask slots that are not in use) are moved behind the others,
and the loop ends before the first chunk that holds nothing else: they cost no matrix product.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distilflax.losses.words import Words

# (student logits [N, V], teacher logits [N, V], its `Words` or None, labels [N], *its numbers)
# -> values [N]
RowFunction = Callable[..., Float[Array, " N"]]

# For each function the traced numbers that it is given last, such as a temperature: closed over,
# they would escape from the custom gradient where it is vectorised over several students.
Numbers = tuple[tuple[float | Float[Array, ""], ...], ...]


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
    teacher: Decoder | Words | None,
    labels: Int[Array, " N"],
    weights: Float[Array, "F N"],
    chunk_rows: int,
    numbers: Numbers = (),
) -> Float[Array, " F"]:
    """For each function f the sum over rows n of weights[f, n] * f(row n). No gradient is kept.

    A teacher given as `Words` comes to the functions as it is, a few rows at a time.
    """
    chunks = _Chunks.of(student, teacher, labels, weights, chunk_rows)

    def body(i, sums):
        return sums + _weighted(functions, numbers, *_row_logits(student, teacher, chunks.rows(i)))

    return chunks.each(body, jnp.zeros(len(functions), jnp.float32))


def chunked_loss(
    functions: tuple[RowFunction, ...],
    student: Decoder,
    teacher: Decoder | Words | None,
    labels: Int[Array, " N"],
    weights: Float[Array, "F N"],
    scales: Float[Array, " F"],
    chunk_rows: int,
    numbers: Numbers = (),
) -> tuple[Float[Array, ""], Float[Array, " F"]]:
    """`sum_f scales[f] * sums[f]`, differentiable in `student`, and the sums themselves.

    Equal to the plain formula with `jax.grad`, at a fraction of its memory. Only the student gets
    a gradient: teacher, labels, weights, scales and numbers are constants.
    """
    constants = jax.lax.stop_gradient((teacher, labels, weights, scales, numbers))
    return _chunked_loss(functions, chunk_rows, student, constants)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_loss(functions, chunk_rows, student, constants):
    teacher, labels, weights, scales, numbers = constants
    sums = chunked_sums(functions, student, teacher, labels, weights, chunk_rows, numbers)
    return jnp.dot(scales, sums), sums


def _forward(functions, chunk_rows, student, constants):
    teacher, labels, weights, scales, numbers = constants
    matrix = student.matrix.astype(student.hidden.dtype)
    chunks = _Chunks.of(student, teacher, labels, weights, chunk_rows)
    ones = jnp.ones(chunks.labels.shape[1], jnp.float32)

    def body(i, carry):
        sums, hidden_grads, matrix_grad, bias_grad = carry
        rows = chunks.rows(i)
        student_logits, *rest = _row_logits(student, teacher, rows)

        def loss(logits):
            chunk_sums = _weighted(functions, numbers, logits, *rest)
            return jnp.dot(scales, chunk_sums), chunk_sums

        logits_grad, chunk_sums = jax.grad(loss, has_aux=True)(student_logits)
        narrow = logits_grad.astype(student.hidden.dtype)
        hidden_grad = jnp.einsum("nv,vd->nd", narrow, matrix, preferred_element_type=jnp.float32)
        matrix_grad += jnp.einsum("nv,nd->vd", narrow, rows[0], preferred_element_type=jnp.float32)
        hidden_grads = hidden_grads.at[i].set(hidden_grad.astype(hidden_grads.dtype))
        # A product with ones: XLA's CPU backend takes forty times as long to sum down the columns.
        bias_grad += jnp.einsum("nv,n->v", logits_grad, ones, precision="highest")
        return sums + chunk_sums, hidden_grads, matrix_grad, bias_grad

    start = (
        jnp.zeros(len(functions), jnp.float32),
        jnp.zeros_like(chunks.student_hidden),
        jnp.zeros(student.matrix.shape, jnp.float32),
        jnp.zeros(student.bias.shape, jnp.float32),
    )
    sums, hidden_grads, matrix_grad, bias_grad = chunks.each(body, start)
    grads = Decoder(
        chunks.in_order(hidden_grads),
        matrix_grad.astype(student.matrix.dtype),
        bias_grad.astype(student.bias.dtype),
    )
    return (jnp.dot(scales, sums), sums), grads


def _backward(functions, chunk_rows, grads, cotangents):
    of_total, _ = cotangents
    return jax.tree.map(lambda g: (g * of_total).astype(g.dtype), grads), None


_chunked_loss.defvjp(_forward, _backward)


class _Chunks(NamedTuple):
    """All rows, those of any weight first, as C chunks of R, of which the first `used` count."""

    student_hidden: Float[Array, "C R D"]
    teacher: Float[Array, "C R D"] | Words | None
    labels: Int[Array, "C R"]
    weights: Float[Array, "C R F"]
    order: Int[Array, " N"]
    used: Int[Array, ""]

    @classmethod
    def of(cls, student, teacher, labels, weights, chunk_rows):
        # Of equal size, the last filled up with rows of weight zero: dividing evenly leaves fewer
        # of those than filling up the last of full ones.
        number = len(labels)
        chunks = max(1, -(-number // chunk_rows))
        chunk_rows = -(-number // chunks)
        extra = chunks * chunk_rows - number
        covered = jnp.any(weights != 0, axis=0)
        order = jnp.argsort(~covered, stable=True)

        def split(x):
            padded = jnp.pad(x[order], ((0, extra),) + ((0, 0),) * (x.ndim - 1))
            return padded.reshape(chunks, chunk_rows, *x.shape[1:])

        return cls(
            split(student.hidden),
            jax.tree.map(split, teacher.hidden if isinstance(teacher, Decoder) else teacher),
            split(labels),
            split(weights.T),
            order,
            -(-jnp.sum(covered) // chunk_rows),
        )

    def each(self, body: Callable, start: Any) -> Any:
        """What `body` makes of `start`, chunk after chunk."""
        # One by itself is no loop: its gradient of the decoder is not added to 47 MB of zeros.
        if len(self.labels) == 1:
            return body(0, start)
        return jax.lax.fori_loop(0, self.used, body, start)

    def rows(self, i):
        """(student hidden, teacher hidden or words, labels, weights) of chunk i."""
        return jax.tree.map(lambda x: x[i], self[:4])

    def in_order(self, x: Float[Array, "C R D"]) -> Float[Array, "N D"]:
        """Results of all chunks, put back where the rows came from."""
        flat = x.reshape(-1, x.shape[-1])[: len(self.order)]
        return jnp.zeros_like(flat).at[self.order].set(flat, unique_indices=True)


def _row_logits(student, teacher, rows):
    student_hidden, teacher_rows, labels, weights = rows
    student_logits = student._replace(hidden=student_hidden).logits()
    if isinstance(teacher, Decoder):
        teacher_rows = teacher._replace(hidden=teacher_rows).logits()
    return student_logits, teacher_rows, labels, weights


def _weighted(functions, numbers, student_logits, teacher_rows, labels, weights):
    """[F] weighted sums of one chunk; a NaN shows in the functions that cover its row alone."""
    values = [
        function(student_logits, teacher_rows, labels, *own)
        for function, own in itertools.zip_longest(functions, numbers, fillvalue=())
    ]
    values = jnp.stack(values, axis=-1)
    return jnp.sum(jnp.where(weights != 0, values * weights, 0.0), axis=0)
