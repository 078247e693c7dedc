"""Models as the losses see them: run now, or as they were kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from distilflax import losses, models
from distilflax.batches.masking import Masked, MaskTable, mask_tokens
from distilflax.losses import Sum, Taught, View
from distilflax.settings import Encoder, Experiment, Term
from distilflax.train import cached
from distilflax.train.teachers import Lesson, Pair

Batch = Mapping[str, Array]


def masked_at(
    experiment: Experiment, table: MaskTable, batch: Batch, key: PRNGKeyArray, number: Array | int
) -> Masked:
    """The batch as it is masked at step (or held-out batch) `number`; `key` is of the purpose. What
    is kept of a teacher, and what weighs gradients, has to see the very words that training sees.
    """
    own = jax.random.fold_in(key, number)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return mask_tokens(own, ids, mask, table, experiment.masking)


def view_of(
    experiment: Experiment,
    encoder: Encoder,
    params: dict,
    batch: Batch,
    masked: Masked,
    dropout_key: PRNGKeyArray | None,
    pooling: str = "mean",
) -> View:
    """One model's outputs on a masked batch: those that the active terms compare."""
    outputs = models.encode_batch(
        encoder,
        experiment.compute,
        params["encoder"],
        {**batch, "input_ids": masked.input_ids},
        outputs=losses.outputs(experiment.losses),
        dropout_key=dropout_key,
    )
    view = View(outputs, projections=params.get(losses.PROJECTIONS, {}), pooling=pooling)
    return _with_head(view, experiment, encoder, params)


def loss_of(
    experiment: Experiment,
    terms: Mapping[str, Term],
    pair: Pair,
    params: dict,
    batch: Batch,
    masked: Masked,
    taught: Sequence[Taught],
    *,
    dropout_key: PRNGKeyArray | None = None,
    **how: Any,
) -> tuple[Array, dict[str, Sum]]:
    """`losses.taught_loss`, with its options `how`, of the student with these parameters."""
    student = view_of(experiment, pair.student, params, batch, masked, dropout_key, pair.pooling)
    return losses.taught_loss(
        terms,
        student,
        taught,
        batch["input_ids"],
        batch["attention_mask"],
        masked,
        segment_ids=batch.get("segment_ids"),
        **how,
    )


def taught_views(
    experiment: Experiment, lessons: Sequence[Lesson], batch: Batch, masked: Masked
) -> tuple[Taught, ...]:
    """The teachers' outputs, which nothing is differentiated by; dropout is off.

    Where the batch carries the outputs of the one teacher (`cached.py`), nothing runs but, if terms
    on logits want the whole distribution, its head.
    """
    taught = []
    for share, encoder, params, pooling in lessons:
        frozen = jax.lax.stop_gradient(params)
        if cached.carries(batch):
            view = View(
                cached.outputs(experiment.compute, encoder, batch),
                words=cached.words(batch),
                pooling=pooling,
            )
            view = _with_head(view, experiment, encoder, frozen)
        else:
            view = view_of(experiment, encoder, frozen, batch, masked, None, pooling)
        taught.append(Taught(share, view._replace(outputs=jax.lax.stop_gradient(view.outputs))))
    return tuple(taught)


def _with_head(view: View, experiment: Experiment, encoder: Encoder, params: dict) -> View:
    if "mlm_head" not in params:
        return view

    def transform(hidden):
        return models.mlm_transform(encoder, experiment.compute, params, hidden)

    matrix, bias = models.decoder(params)
    return view._replace(transform=transform, matrix=matrix, bias=bias)
