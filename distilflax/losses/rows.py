"""Terms on logits: all of them in one pass over the rows, in chunks, spread over the mesh."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from distilflax.batches.masking import at_positions
from distilflax.batches.placement import ROW_AXES
from distilflax.errors import UserError
from distilflax.losses.logits import at_temperature
from distilflax.losses.schedules import at_progress
from distilflax.losses.terms import TERMS, uses_masked
from distilflax.losses.units import masked_weights
from distilflax.losses.view import Batch, Dial, View
from distilflax.losses.vocabulary import Decoder, chunked_loss
from distilflax.settings import Term


def vocabulary_terms(
    terms: Mapping[str, Term],
    scales: Mapping[str, Float[Array, ""]],
    student: View,
    teacher: View | None,
    batch: Batch,
    progress: Float[Array, ""],
    chunk_rows: int,
    dials: Mapping[str, Dial] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """(weighted total, sums by name) of `terms`, all of which are over logits.

    When every one of them covers masked positions only, just those rows are gathered. Otherwise
    all positions pass, and the masked-only terms give the others weight zero.
    """
    if not terms:
        return jnp.zeros((), jnp.float32), {}
    masked = batch.masked
    only_masked = all(uses_masked(name, term) for name, term in terms.items())
    if only_masked:
        labels, of_masked, of_real = masked.labels, masked.weights, None
    else:
        labels, of_real = batch.original_ids, (batch.attention_mask > 0).astype(jnp.float32)
        of_masked = masked_weights(batch)
    weights = jnp.stack([of_masked if uses_masked(*named) else of_real for named in terms.items()])
    covered = jnp.any(weights != 0, axis=0)[..., None]

    def rows_of(view, whose):
        if view.words is not None:
            return view.words
        if view.transform is None:
            of = next(n for n in terms if whose == "student" or TERMS[n].needs_teacher)
            raise UserError(
                f"config.losses.{of} compares distributions over words, but the {whose} has no "
                "masked-LM head; set config.teacher.mlm_head='fit', by which both have one."
            )
        hidden = view.outputs["last_hidden_state"]
        hidden = at_positions(hidden, masked.positions) if only_masked else hidden
        # As in `units.py`: what no term covers goes in as zeros, in front of the transform, whose
        # backward pass multiplies too.
        hidden = jnp.where(covered, hidden, 0)
        return Decoder(view.transform(hidden), view.matrix, view.bias)

    compared = any(TERMS[name].needs_teacher for name in terms)
    on_words = compared and teacher.words is not None
    functions = tuple(_row_function(*named, on_words) for named in terms.items())
    numbers = tuple(_numbers(*named, dials, progress) for named in terms.items())
    total, sums = _spread_over_mesh(
        functions,
        rows_of(student, "student"),
        rows_of(teacher, "teacher") if compared else None,
        labels,
        weights,
        jnp.stack([scales[name] for name in terms]),
        numbers,
        chunk_rows,
    )
    return total, dict(zip(terms, sums, strict=True))


def _row_function(name, term, on_words):
    """(student logits, teacher logits or words, labels, *`_numbers`) -> values."""
    kind, function = TERMS[name], TERMS[name].function
    if not kind.needs_teacher:
        return lambda student, teacher, labels: function(student, None, labels, term)
    if on_words:
        return _on_words(kind.on_words, term)
    if "temperature" not in kind.options:
        return lambda student, teacher, labels: function(student, teacher, labels, term)

    def tempered(student, teacher, labels, temperature):
        return at_temperature(function, temperature, student, teacher, labels, term)

    return tempered


def _on_words(function, term):
    """Of words that were drawn at the term's temperature, the student alone is divided by it."""

    def tempered(student, teacher, labels, temperature):
        return jnp.square(temperature) * function(student / temperature, teacher, labels, term)

    return tempered


def _numbers(name, term, dials, progress):
    """What the term's function is given last: the temperature of this moment, if it has one."""
    if "temperature" not in TERMS[name].options:
        return ()
    temperature = term.temperature if dials is None else dials[name].temperature
    return (at_progress(term.temperature_schedule, progress, temperature),)


def _spread_over_mesh(functions, student, teacher, labels, weights, scales, numbers, chunk_rows):
    """`chunked_loss` where the rows are [B, P]: each device runs through its own rows.

    Left to the partitioner, the loop over chunks would cut across devices and reduce the decoder's
    gradient at every chunk; under `shard_map` it is reduced once, after the loop.
    """

    def local(student, teacher, labels, weights, scales, numbers):
        def flat(rows):
            if isinstance(rows, Decoder):
                return rows._replace(hidden=joined(rows.hidden))
            return jax.tree.map(joined, rows)

        def joined(x):
            return x.reshape(-1, *x.shape[2:])

        loss, sums = chunked_loss(
            functions,
            flat(student),
            flat(teacher),
            labels.reshape(-1),
            weights.reshape(len(functions), -1),
            scales,
            chunk_rows,
            numbers,
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
                decoder if isinstance(teacher, Decoder) else rows,
                rows,
                PartitionSpec(None, ROW_AXES),
                whole,
                whole,
            ),
            out_specs=rows,
            axis_names=set(ROW_AXES),
            check_vma=False,
        )
    loss, sums = local(student, teacher, labels, weights, scales, numbers)
    return jnp.sum(loss), jnp.sum(sums, axis=0)
