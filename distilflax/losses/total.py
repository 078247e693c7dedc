"""The algebra: which units a term covers, its (sum, count), and the one division of the total.

    loss = sum_t  weight_t * multiplier_t(progress) * sum_t / count_t

with sum_t and count_t over the whole global batch. Counts depend on the masks alone, so they are
known before any micro-batch is run (`counts`), and accumulating gradients of `sum_t / count_t`
over micro-batches gives exactly the gradient of the whole batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from distilflax import models
from distilflax.batches.masking import Masked, at_positions
from distilflax.batches.placement import ROW_AXES
from distilflax.losses.terms import TERMS, active, uses_masked
from distilflax.losses.vocabulary import Decoder, chunked_loss
from distilflax.settings import Term

# 304 rows of 30,522 float32 logits are 37 MB, and some eight such buffers live at once: under an
# eighth of the plain formula's memory at 32 x 128. Fewer rows make the matrix products slower (a
# CPU reaches 51 GFLOP/s on 128 rows, 86 on 304).
CHUNK_ROWS = 304


class View(NamedTuple):
    """One model as the terms see it; `transform` leads from hidden states to the decoder's rows.

    outputs: what `models.encode` returned; matrix [V, D] and bias [V]: the decoder, None without a
    masked-LM head.
    """

    outputs: Mapping[str, Array | tuple[Array, ...]]
    transform: Callable[[Array], Array] | None = None
    matrix: Array | None = None
    bias: Array | None = None


class Sum(NamedTuple):
    """A term before the division: the sum over its units and their number, float32."""

    sum: Float[Array, ""]
    count: Float[Array, ""]


def counts(
    losses: Mapping[str, Term], attention_mask: Int[Array, "B L"], masked: Masked
) -> dict[str, Float[Array, ""]]:
    """How many units each active term has in the batch: tokens, masked tokens or sequences."""
    units = {
        "real": jnp.sum(attention_mask > 0),
        "masked": jnp.sum(masked.weights),
        "sequences": jnp.sum(jnp.any(attention_mask > 0, axis=1)),
    }
    return {
        name: units[_unit(name, term)].astype(jnp.float32) for name, term in active(losses).items()
    }


def multiplier(term: Term, progress: Float[Array, ""]) -> Float[Array, ""]:
    """The schedule's factor of the weight at `progress` (0 to 1) of the run."""
    if not term.schedule:
        return jnp.ones((), jnp.float32)
    at, value = zip(*term.schedule, strict=True)
    return jnp.interp(progress, jnp.asarray(at), jnp.asarray(value))


def total_loss(
    losses: Mapping[str, Term],
    student: View,
    teacher: View | None,
    original_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
    masked: Masked,
    *,
    progress: Float[Array, ""],
    normalizers: Mapping[str, Float[Array, ""]] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Float[Array, ""], dict[str, Sum]]:
    """The weighted loss of a batch and each term's `Sum`, differentiable in the student.

    `normalizers` are the `counts` of the whole batch when this is one micro-batch of several;
    without them the batch's own counts divide.
    """
    terms = active(losses)
    if teacher is not None:
        teacher = teacher._replace(outputs=jax.lax.stop_gradient(teacher.outputs))
    own = counts(terms, attention_mask, masked)
    divide_by = own if normalizers is None else normalizers
    scales = {
        name: term.weight * multiplier(term, progress) / jnp.maximum(divide_by[name], 1.0)
        for name, term in terms.items()
    }
    total, sums = _vocabulary_terms(
        {name: term for name, term in terms.items() if TERMS[name].over == "logits"},
        scales,
        student,
        teacher,
        (original_ids, attention_mask, masked),
        chunk_rows,
    )
    for name, term in terms.items():
        if TERMS[name].over == "logits":
            continue
        values, weights = _direct_term(name, term, student, teacher, attention_mask, masked)
        sums[name] = jnp.sum(values * weights)
        total += scales[name] * sums[name]
    return total, {name: Sum(jax.lax.stop_gradient(sums[name]), own[name]) for name in terms}


def _unit(name: str, term: Term) -> str:
    if TERMS[name].over == "pooled":
        return "sequences"
    return "masked" if uses_masked(name, term) else "real"


def _direct_term(name, term, student, teacher, attention_mask, masked):
    """Values and weights of a term on hidden states or sentence vectors."""
    states = [view.outputs["last_hidden_state"] for view in (student, teacher)]
    if TERMS[name].over == "pooled":
        states = [models.pool(h, attention_mask, term.pooling) for h in states]
        weights = jnp.any(attention_mask > 0, axis=1)
    elif uses_masked(name, term):
        states = [at_positions(h, masked.positions) for h in states]
        weights = masked.weights
    else:
        weights = attention_mask > 0
    # Whatever a unit that does not count holds, it goes in as zeros. Taking it out of the values
    # would be too late: 0 * NaN is NaN, and the backward pass multiplies.
    states = [jnp.where(weights[..., None] > 0, h, 0) for h in states]
    return TERMS[name].function(*states, term), weights.astype(jnp.float32)


def _vocabulary_terms(terms, scales, student, teacher, batch, chunk_rows):
    """(weighted total, sums by name) of the terms on logits, all in one pass over the rows.

    When every one of them covers masked positions only, just those rows are gathered. Otherwise
    all positions pass, and the masked-only terms give the others weight zero.
    """
    if not terms:
        return jnp.zeros((), jnp.float32), {}
    original_ids, attention_mask, masked = batch
    only_masked = all(uses_masked(name, term) for name, term in terms.items())
    if only_masked:
        labels, masked_weights, real_weights = masked.labels, masked.weights, None
    else:
        labels, real_weights = original_ids, (attention_mask > 0).astype(jnp.float32)
        rows = jnp.arange(len(labels))[:, None]
        masked_weights = jnp.zeros_like(real_weights).at[rows, masked.positions].max(masked.weights)
    weights = jnp.stack(
        [masked_weights if uses_masked(*named) else real_weights for named in terms.items()]
    )
    covered = jnp.any(weights != 0, axis=0)[..., None]

    def rows_of(view):
        if view is None:
            return None
        hidden = view.outputs["last_hidden_state"]
        hidden = at_positions(hidden, masked.positions) if only_masked else hidden
        # As in `_direct_term`: what no term covers goes in as zeros, in front of the transform,
        # whose backward pass multiplies too.
        hidden = jnp.where(covered, hidden, 0)
        return Decoder(view.transform(hidden), view.matrix, view.bias)

    compared = any(TERMS[name].needs_teacher for name in terms)
    total, sums = _spread_over_mesh(
        tuple(partial(_row_values, name, term) for name, term in terms.items()),
        rows_of(student),
        rows_of(teacher) if compared else None,
        labels,
        weights,
        jnp.stack([scales[name] for name in terms]),
        chunk_rows,
    )
    return total, dict(zip(terms, sums, strict=True))


def _row_values(name, term, student_logits, teacher_logits, labels):
    return TERMS[name].function(student_logits, teacher_logits, labels, term)


def _spread_over_mesh(functions, student, teacher, labels, weights, scales, chunk_rows):
    """`chunked_loss` where the rows are [B, P]: each device runs through its own rows.

    Left to the partitioner, the loop over chunks would cut across devices and reduce the decoder's
    gradient at every chunk; under `shard_map` it is reduced once, after the loop.
    """

    def local(student, teacher, labels, weights, scales):
        def flat(decoder):
            hidden = decoder.hidden
            return decoder._replace(hidden=hidden.reshape(-1, hidden.shape[-1]))

        loss, sums = chunked_loss(
            functions,
            flat(student),
            None if teacher is None else flat(teacher),
            labels.reshape(-1),
            weights.reshape(len(functions), -1),
            scales,
            chunk_rows,
        )
        return loss[None], sums[None]

    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape.get(axis, 1) > 1 for axis in ROW_AXES):
        rows, whole = PartitionSpec(ROW_AXES), PartitionSpec()
        decoder = Decoder(rows, whole, whole)
        local = jax.shard_map(
            local,
            in_specs=(
                decoder,
                None if teacher is None else decoder,
                rows,
                PartitionSpec(None, ROW_AXES),
                whole,
            ),
            out_specs=rows,
            axis_names=set(ROW_AXES),
            check_vma=False,
        )
    loss, sums = local(student, teacher, labels, weights, scales)
    return jnp.sum(loss), jnp.sum(sums, axis=0)
