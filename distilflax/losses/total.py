"""The algebra: which units a term covers, its (sum, count), and the one division of the total.

    loss = sum_t  weight_t * multiplier_t(progress) * sum_t / count_t

with sum_t and count_t over the whole global batch. Counts depend on the masks alone, so they are
known before any micro-batch is run (`counts`), and accumulating gradients of `sum_t / count_t`
over micro-batches gives exactly the gradient of the whole batch. (Not of terms that compare the
sequences of a batch with each other, which `checks.py` therefore refuses to split.)
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distilflax.batches.masking import Masked
from distilflax.losses.checks import check_no_teacher
from distilflax.losses.rows import vocabulary_terms
from distilflax.losses.schedules import at_progress
from distilflax.losses.terms import TERMS, active, unit
from distilflax.losses.units import counted_sequences, term_values
from distilflax.losses.view import Batch, Dial, Sum, View
from distilflax.settings import Term

# 304 rows of 30,522 float32 logits are 37 MB, and some eight such buffers live at once: under an
# eighth of the plain formula's memory at 32 x 128. Fewer rows make the matrix products slower (a
# CPU reaches 51 GFLOP/s on 128 rows, 86 on 304).
CHUNK_ROWS = 304


def counts(
    losses: Mapping[str, Term],
    attention_mask: Int[Array, "B L"],
    masked: Masked,
    segment_ids: Int[Array, "B L"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """How many units each active term has: tokens, masked tokens, sequences, or one batch.

    Passages that are packed into one row are sequences of their own.
    """
    sequences = counted_sequences(attention_mask, segment_ids)
    units = {
        "real": jnp.sum(attention_mask > 0),
        "masked": jnp.sum(masked.weights),
        "sequences": jnp.sum(sequences),
        "batch": jnp.any(sequences),
    }
    return {
        name: units[unit(name, term)].astype(jnp.float32) for name, term in active(losses).items()
    }


def multiplier(term: Term, progress: Float[Array, ""]) -> Float[Array, ""]:
    """The schedule's factor of the weight at `progress` (0 to 1) of the run."""
    return jnp.asarray(at_progress(term.schedule, progress, 1.0), jnp.float32)


def total_loss(
    losses: Mapping[str, Term],
    student: View,
    teacher: View | None,
    original_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
    masked: Masked,
    *,
    progress: Float[Array, ""],
    segment_ids: Int[Array, "B L"] | None = None,
    normalizers: Mapping[str, Float[Array, ""]] | None = None,
    chunk_rows: int = CHUNK_ROWS,
    dials: Mapping[str, Dial] | None = None,
) -> tuple[Float[Array, ""], dict[str, Sum]]:
    """The weighted loss of a batch and each term's `Sum`, differentiable in the student.

    `segment_ids` tell packed passages apart. `normalizers` are the
    `counts` of the whole batch when this is one micro-batch of several; without them the batch's
    own counts divide. `dials` take the place of the terms' own weights and temperatures (of terms
    over logits): traced numbers, so that one program serves several choices of them.

    Raises:
      UserError: a term compares what a model did not return, words without a masked-LM head, or
        what a teacher says where there is none.
    """
    terms = active(losses)
    if teacher is None:
        check_no_teacher(terms)
    else:
        teacher = teacher._replace(outputs=jax.lax.stop_gradient(teacher.outputs))
    batch = Batch(original_ids, attention_mask, masked, segment_ids)
    own = counts(terms, attention_mask, masked, segment_ids)
    divide_by = own if normalizers is None else normalizers
    weights = {
        name: term.weight if dials is None else dials[name].weight for name, term in terms.items()
    }
    scales = {
        name: weight * multiplier(terms[name], progress) / jnp.maximum(divide_by[name], 1.0)
        for name, weight in weights.items()
    }
    total, sums = vocabulary_terms(
        {name: term for name, term in terms.items() if TERMS[name].over == "logits"},
        scales,
        student,
        teacher,
        batch,
        progress,
        chunk_rows,
        dials,
    )
    for name, term in terms.items():
        if TERMS[name].over == "logits":
            continue
        values, counted = term_values(name, term, student, teacher, batch, progress)
        sums[name] = jnp.sum(values * counted)
        total += scales[name] * sums[name]
    return total, {name: Sum(jax.lax.stop_gradient(sums[name]), own[name]) for name in terms}
