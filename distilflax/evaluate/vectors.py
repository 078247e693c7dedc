"""Texts to sentence vectors: few compiled shapes, little padding, the order kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax import models, settings
from distilflax.batches.pipeline import collate
from distilflax.batches.plan import validation_plan
from distilflax.errors import UserError
from distilflax.evaluate.model import Model, on_device
from distilflax.tasks import batches
from distilflax.text.tokenizer import Tokenizer
from distilflax.weights import SentenceFiles

# Lengths that texts are padded to. Each is compiled once for an architecture, so they are few;
# they are closer where most sentences are.
_BUCKETS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
_TOKENIZED_AT_ONCE = 4096
_MEAN = SentenceFiles()


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts as ids, one after the other: text i is tokens[offsets[i] : offsets[i + 1]]."""

    tokens: Int[np.ndarray, "tokens"]
    offsets: Int[np.ndarray, "n_and_1"]

    @property
    def lengths(self) -> Int[np.ndarray, "n"]:
        """Tokens of each text, special ones included."""
        return np.diff(self.offsets)

    def gather(self, indices: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "some"]:
        """The ids of the texts at `indices`, one after the other."""
        return np.concatenate(
            [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in indices] or [[]]
        ).astype(np.int32)


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> Texts:
    """Every text as [CLS] ids [SEP], cut to `max_length` tokens in all."""
    ids = []
    # In parts: a tokenizer's own record of a text takes a hundred times the room of its ids.
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        ids += tokenizer.encode(texts[start : start + _TOKENIZED_AT_ONCE], max_length)
    offsets = np.cumsum([0, *map(len, ids)])
    return Texts(np.concatenate(ids), offsets)


def embed(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    compute: settings.Compute,
    max_length: int,
    batch_size: int = 32,
    sentence: SentenceFiles = _MEAN,
) -> Float[np.ndarray, "n D"]:
    """One float32 vector for each text, in the order of the texts, pooled as `sentence` says and
    of unit length where vectors are compared so.

    Texts are cut to `max_length` tokens, special ones included. They are run from the shortest to
    the longest in batches of `batch_size` (of long ones less, `tasks.batches.rows_at`), each padded
    to one of a few lengths, the last one with empty rows: an architecture compiles once for each
    length, whatever the texts.

    Raises:
      UserError: no text, a `max_length` beyond the model's positions, or vectors that are not
        finite.
    """
    if max_length > model.encoder.max_positions:
        raise UserError(
            f"Texts of {max_length} tokens were asked of {model.name!r}, which has "
            f"{model.encoder.max_positions} positions; lower the length (in a config, "
            "evaluation.retrieval_length)."
        )
    if not texts:
        raise UserError("There is no text to make vectors of; the list is empty.")
    ids = tokenize(tokenizer, texts, max_length)
    buckets = batches.buckets(max_length, _BUCKETS)
    params = on_device(model)["encoder"]
    rows_at = partial(batches.rows_at, most=batch_size)
    plan = validation_plan(ids.lengths, batch_size=batch_size, buckets=buckets, rows_at=rows_at)
    computed = []
    for part in plan:
        batch = collate(ids, part.indices, rows_at(part.length), part.length)
        computed.append(
            sentence_vectors(
                model.encoder,
                compute,
                sentence.pooling,
                sentence.unit,
                params,
                batch["input_ids"],
                batch["attention_mask"],
            )
        )
    vectors = np.empty((len(texts), model.encoder.hidden_size), np.float32)
    for part, rows in zip(plan, jax.device_get(computed), strict=True):
        vectors[part.indices] = rows[: len(part.indices)]
    if not np.isfinite(vectors).all():
        raise UserError(
            f"{model.name!r} makes vectors that are not finite; its weights are damaged or its "
            "training diverged."
        )
    return vectors


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sentence_vectors(
    encoder: settings.Encoder,
    compute: settings.Compute,
    pooling: str,
    unit: bool,
    params: dict,
    input_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
) -> Float[Array, "B D"]:
    """Token ids to vectors, of unit length if `unit`; `params` is the "encoder" subtree."""
    out = models.encode(encoder, compute, params, input_ids, attention_mask)
    vectors = models.pool(out["last_hidden_state"], attention_mask, pooling)
    return models.normalize(vectors) if unit else vectors
