"""The units of terms on hidden states, attention and sentence vectors: what goes into a term's
function, and which of the values that come out of it count.

Whatever a unit that does not count holds, it goes in as zeros. Taking it out of the values would be
too late: 0 * NaN is NaN, and the backward pass multiplies.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distilflax import models
from distilflax.batches.masking import at_positions
from distilflax.losses.layers import layer_pairs
from distilflax.losses.projections import project
from distilflax.losses.terms import TERMS, unit
from distilflax.losses.view import Batch, View
from distilflax.models.attention import visible
from distilflax.settings import Term


def term_values(
    name: str, term: Term, student: View, teacher: View, batch: Batch, progress: Float[Array, ""]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(values, weights) of a term that is not over logits; the mean over its pairs of layers, or
    at `progress` of the run the part of it that is due (`Term.turns`)."""
    values, weights = _OVER[TERMS[name].over](name, term, student, teacher, batch)
    return _over_layers(values, term, progress), weights.astype(jnp.float32)


def _hidden(name, term, student, teacher, batch):
    counted, pairs = _states(name, term, student, teacher, batch)
    return [TERMS[name].function(*pair, term) for pair in pairs], counted


def _matrix(name, term, student, teacher, batch):
    counted, pairs = _states(name, term, student, teacher, batch)
    values = [TERMS[name].function(*pair, counted, term) for pair in pairs]
    return values, jnp.any(counted)


def _pooled(name, term, student, teacher, batch):
    counted, *vectors = _vectors(name, term, student, teacher, batch)
    return [TERMS[name].function(*vectors, term)], counted


def _pairs(name, term, student, teacher, batch):
    counted, *vectors = _vectors(name, term, student, teacher, batch)
    return [TERMS[name].function(*vectors, counted, term)], counted


def _scores(name, term, student, teacher, batch):
    seen = _seen(batch)
    ours, theirs = (view.output("attention_scores", name) for view in (student, teacher))
    values = [
        TERMS[name].function(
            *(jnp.where(seen, scores, 0.0) for scores in (ours[i], theirs[j])), seen, term
        )
        for i, j in _layer_pairs(name, term, len(ours), len(theirs))
    ]
    return values, _counted_tokens(name, term, batch)


def _relations(name, term, student, teacher, batch):
    seen = _seen(batch)
    real = (batch.attention_mask > 0)[..., None, None]
    values = []
    for vectors in term.between:
        ours, theirs = (view.output(vectors, name) for view in (student, teacher))
        pairs = _layer_pairs(name, term, len(ours), len(theirs))
        values.append(
            [
                TERMS[name].function(
                    *(jnp.where(real, x, 0) for x in (ours[i], theirs[j])), seen, term
                )
                for i, j in pairs
            ]
        )
    added_up = [sum(of_pair) for of_pair in zip(*values, strict=True)]
    return added_up, _counted_tokens(name, term, batch)


# By `Kind.over`: to the values of each pair of layers, and which of them count.
_OVER = {
    "hidden": _hidden,
    "matrix": _matrix,
    "scores": _scores,
    "relations": _relations,
    "pooled": _pooled,
    "pairs": _pairs,
}


def _states(name, term, student, teacher, batch):
    """Which positions count [B, P], and the states there [B, P, D] for each pair of layers."""
    counted, selected = _positions(term, batch)
    if term.layers == "final":
        pairs = [[view.output("last_hidden_state", name) for view in (student, teacher)]]
    else:
        ours, theirs = (view.output("hidden_states", name) for view in (student, teacher))
        # hidden_states[0] is the embeddings, which `layer_pairs` counts as -1.
        pairs = [
            [ours[i + 1], theirs[j + 1]]
            for i, j in _layer_pairs(name, term, len(ours) - 1, len(theirs) - 1)
        ]
    compared = []
    for number, (own, other) in enumerate(pairs):
        own, other = (jnp.where(counted[..., None], selected(h), 0) for h in (own, other))
        compared.append((project(student.projections, name, term, number, own), other))
    return counted, compared


def _positions(term, batch):
    """(which count [B, P], the function that takes their states out of [B, L, D])."""
    mask = batch.attention_mask
    if term.positions == "real":
        return mask > 0, lambda hidden: hidden
    if term.positions == "masked":
        masked = batch.masked
        return masked.weights > 0, lambda hidden: at_positions(hidden, masked.positions)
    pooling = "cls" if term.positions == "cls" else "mean"
    counted = counted_sequences(mask, batch.segment_ids)
    return counted, lambda hidden: _sentence_vectors(hidden, batch, pooling)


def _vectors(name, term, student, teacher, batch):
    """Which sequences count [N], and the sentence vectors [N, D] of both sides."""
    counted = counted_sequences(batch.attention_mask, batch.segment_ids).reshape(-1)
    own, other = (
        _sentence_vectors(
            view.output("last_hidden_state", name),
            batch,
            view.pooling if term.pooling == "own" else term.pooling,
        )
        for view in (student, teacher)
    )
    own, other = (
        jnp.where(counted[:, None], vectors.reshape(len(counted), -1), 0)
        for vectors in (own, other)
    )
    return counted, project(student.projections, name, term, 0, own), other


def counted_sequences(
    attention_mask: Int[Array, "B L"], segment_ids: Int[Array, "B L"] | None
) -> Bool[Array, "B S"]:
    """Which of a row's sequences there are: one, or where passages are packed up to L / 2."""
    if segment_ids is None:
        return jnp.any(attention_mask > 0, axis=1)[:, None]
    return jnp.any(models.passages_of(segment_ids), axis=-1)


def _sentence_vectors(hidden, batch, pooling) -> Float[Array, "B S D"]:
    if batch.segment_ids is None:
        return models.pool(hidden, batch.attention_mask, pooling)[:, None]
    return models.pool_passages(hidden, batch.segment_ids, pooling)


def _counted_tokens(name, term, batch) -> Bool[Array, "B L"]:
    if unit(name, term) == "masked":
        return masked_weights(batch) > 0
    return batch.attention_mask > 0


def masked_weights(batch: Batch) -> Float[Array, "B L"]:
    """1 at the positions that the masking drew."""
    rows = jnp.arange(len(batch.original_ids))[:, None]
    zeros = jnp.zeros(batch.original_ids.shape, jnp.float32)
    return zeros.at[rows, batch.masked.positions].max(batch.masked.weights)


def _seen(batch) -> Bool[Array, "B 1 L L"]:
    """Which keys each real query may look at."""
    queries = (batch.attention_mask > 0)[:, None, :, None]
    return visible(batch.attention_mask, batch.segment_ids) & queries


def _layer_pairs(name, term, student_layers, teacher_layers):
    place = f"config.losses.{name}.layers"
    return layer_pairs(term.layers, student_layers, teacher_layers, place)


def _over_layers(values, term, progress):
    """The mean over the pairs of layers; where they take turns, the share of the one due in it."""
    if not term.turns:
        return sum(values) / len(values)
    due = jnp.floor(progress / term.turns * len(values))
    return sum(jnp.where(due == i, value, 0.0) for i, value in enumerate(values)) / len(values)
