"""Sentence vectors of texts that share rows, and the nearest of vectors, as a model's files say."""

import numpy as np
from jaxtyping import Array, Float, Int

from distilflax import models
from distilflax.models import TaskHead
from distilflax.search.blocks import BLOCK
from distilflax.search.exact import at_unit_length, check_finite, nearest
from distilflax.settings import Compute, Encoder

# Up to so many scores numpy is faster than compiling a search for just these sizes.
_FEW_SCORES = 1 << 22


def packed(
    encoder: Encoder,
    compute: Compute,
    head: TaskHead,
    params: dict,
    *,
    segment_ids: Int[Array, "B L"],
    **batch: Int[Array, "B L"],
) -> Float[Array, "B S D"]:
    """What `models.task_logits` of a vector head makes of each text, where the texts share rows and
    are told apart by `segment_ids`."""
    out = models.encode(encoder, compute, params["encoder"], segment_ids=segment_ids, **batch)
    pooled = models.pool_passages(out["last_hidden_state"], segment_ids, head.pooling)
    return models.normalize(pooled) if head.normalize else pooled


def best(
    queries: Float[np.ndarray, "Q D"], documents: Float[np.ndarray, "N D"], k: int, unit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows, [Q, K], of the K = min(k, N) nearest documents, best first: of greatest
    cosine if `unit`, else of greatest inner product.

    `documents` may be a `np.memmap`: a block of them at a time is made float32.

    Raises:
      UserError: as `search.nearest` does of vectors without a finite score.
    """
    decode = at_unit_length if unit else np.asarray
    if len(queries) * len(documents) > _FEW_SCORES:
        return nearest(decode(queries), documents, k, decode=decode)
    asked, scores = decode(queries), np.empty((len(queries), len(documents)), np.float32)
    for first in range(0, len(documents), BLOCK):
        scores[:, first : first + BLOCK] = asked @ decode(documents[first : first + BLOCK]).T
    # As `nearest` has it: what is not finite comes first, and is refused.
    scores = np.where(np.isfinite(scores), scores, np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, order, axis=1)
    check_finite(scores, order)
    return scores, order
