"""The held-out batches that every model is measured on: the same sequences under the same masks."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from distilflax import settings
from distilflax.batches.masking import Masked, MaskTable, mask_tokens
from distilflax.batches.pipeline import Sequences, validation_batches

# Which sequences are drawn where there are more than asked for. It is no setting: two runs with
# different seeds must be measured on the same text to be compared.
_SAMPLE_SEED = 0


# A batch of the pipeline; one of several, each of its own length, so its axes have no names.
AnyBatch = dict[str, Int[np.ndarray, "_ _"]]


class MaskedBatch(NamedTuple):
    """A batch with its masks drawn; `masked.input_ids` is what a model is shown."""

    masked: Masked
    attention_mask: Int[Array, "B L"]
    segment_ids: Int[Array, "B L"] | None = None
    position_ids: Int[Array, "B L"] | None = None


class _Sample:
    """Some of the sequences, as the pipeline sees all of them."""

    def __init__(self, sequences: Sequences, indices: Int[np.ndarray, "n"]):
        self._sequences, self._indices = sequences, indices
        self.lengths = np.asarray(sequences.lengths)[indices]

    def gather(self, indices: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "tokens"]:
        return self._sequences.gather(self._indices[indices])

    def gather_segments(self, indices: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "tokens"]:
        return self._sequences.gather_segments(self._indices[indices])


def held_out_batches(
    sequences: Sequences, data: settings.Data, evaluation: settings.Evaluation
) -> list[AnyBatch]:
    """`evaluation.masked_lm_batches` batches of held-out sequences, the same ones each time.

    Where there are more, a fixed random sample is taken: the pass itself begins with the shortest
    sequences, so its first batches would be no fair picture of the text.

    Raises:
      UserError: there is no held-out sequence.
    """
    wanted, number = evaluation.masked_lm_batches * evaluation.batch_size, len(sequences.lengths)
    if number > wanted:
        drawn = np.random.default_rng(_SAMPLE_SEED).choice(number, wanted, replace=False)
        sequences = _Sample(sequences, np.sort(drawn))
    return list(validation_batches(sequences, batch_size=evaluation.batch_size, data=data))


def mask_batches(
    batches: Sequence[AnyBatch], key: PRNGKeyArray, table: MaskTable, masking: settings.Masking
) -> list[MaskedBatch]:
    """The batches on the device with the masks that every model will be shown.

    Batch i is masked with fold_in(key, i). Drawing once, before any model is run, is what makes
    "the same masks" true by construction.
    """
    draw = jax.jit(mask_tokens, static_argnames="masking")
    out = []
    for i, batch in enumerate(batches):
        ids, real = jax.device_put((batch["input_ids"], batch["attention_mask"]))
        masked = draw(jax.random.fold_in(key, i), ids, real, table, masking=masking)
        segments, positions = jax.device_put((batch.get("segment_ids"), batch.get("position_ids")))
        out.append(MaskedBatch(masked, real, segments, positions))
    return out
