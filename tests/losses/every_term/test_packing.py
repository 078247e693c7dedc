"""Passages packed into one row count as the passages alone: attention, and sentence vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import losses
from distilflax.batches.masking import Masked
from distilflax.settings import Term

ATTENTION = {name for name, kind in losses.TERMS.items() if kind.over in ("scores", "relations")}
# By position in a dict of their own, since one term may be tried in several ways.
CHOICES = (
    {name: Term(1.0) for name in sorted(ATTENTION)}
    | {"sentence": Term(1.0), "cosine": Term(1.0, positions="cls")},
    {"sentence": Term(1.0, pooling="cls"), "hidden_mse": Term(1.0, positions="pooled")},
)
LENGTHS, TOTAL, HEADS = (4, 2), 7, 2  # and one of padding


def model(seed):
    """(packed, alone): what one layer shows of both passages, in a row and in rows of their own."""
    rng = np.random.default_rng(seed)
    vectors = {
        name: rng.normal(size=(1, TOTAL, HEADS, 3)) for name in ("queries", "keys", "values")
    }
    scores = rng.normal(size=(1, HEADS, TOTAL, TOTAL))
    hidden = rng.normal(size=(1, TOTAL, 5))
    starts = np.cumsum((0, *LENGTHS[:-1]))

    def rows(x, *axes):
        """Each passage's part of `x` along `axes`, filled up to the longest."""
        parts = []
        for start, length in zip(starts, LENGTHS, strict=True):
            part = x
            for axis in axes:
                part = np.take(part, range(start, start + length), axis)
                fill = [(0, max(LENGTHS) - length if i == axis else 0) for i in range(x.ndim)]
                part = np.pad(part, fill)
            parts.append(part)
        return np.concatenate(parts)

    packed = vectors | {"attention_scores": scores, "last_hidden_state": hidden}
    alone = {name: rows(x, 1) for name, x in (vectors | {"last_hidden_state": hidden}).items()}
    return packed, alone | {"attention_scores": rows(scores, 2, 3)}


def view(arrays):
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    layered = {name: (x,) for name, x in outputs.items() if name != "last_hidden_state"}
    return losses.View(layered | {"last_hidden_state": outputs["last_hidden_state"]})


def sums(terms, student, teacher, mask, segments):
    ids = jnp.ones(mask.shape, jnp.int32)
    nothing = Masked(ids, ids[:, :1] * 0, ids[:, :1], jnp.zeros((len(mask), 1)))

    def total():
        return losses.total_loss(
            terms,
            view(student),
            view(teacher),
            ids,
            mask,
            nothing,
            progress=jnp.zeros(()),
            segment_ids=segments,
        )

    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(total, compiler_options=quickly)()[1]


@pytest.mark.parametrize("terms", CHOICES, ids=lambda terms: "+".join(terms))
def test_packed_passages_count_as_the_passages_alone(terms):
    (student, student_alone), (teacher, teacher_alone) = model(0), model(1)
    segments = jnp.array([[1] * 4 + [2] * 2 + [0]], jnp.int32)
    packed = sums(terms, student, teacher, (segments > 0).astype(jnp.int32), segments)
    mask = jnp.asarray(np.arange(4) < np.array(LENGTHS)[:, None], jnp.int32)
    alone = sums(terms, student_alone, teacher_alone, mask, None)
    for name in terms:
        assert packed[name].count == alone[name].count == (6 if name in ATTENTION else 2)
        np.testing.assert_allclose(packed[name].sum, alone[name].sum, rtol=1e-5, err_msg=name)


def test_what_stands_on_padding_enters_no_vector():
    (student, _), (teacher, _) = model(0), model(1)
    segments = jnp.array([[1] * 4 + [2] * 2 + [0]], jnp.int32)
    mask = (segments > 0).astype(jnp.int32)
    clean = sums(CHOICES[1], student, teacher, mask, segments)
    student["last_hidden_state"][:, -1] = np.nan
    for name, dirty in sums(CHOICES[1], student, teacher, mask, segments).items():
        assert dirty.sum == clean[name].sum, name
