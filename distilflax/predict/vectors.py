"""Token ids to sentence vectors, and the nearest of them, as a model's own files say."""

import numpy as np
from jaxtyping import Array, Float, Int

from distilflax import models
from distilflax.search.exact import at_unit_length, nearest
from distilflax.settings import Compute, Encoder
from distilflax.weights import SentenceFiles

# Up to so many scores numpy is faster than compiling a search for just these sizes.
_FEW_SCORES = 1 << 22


def one_a_row(
    encoder: Encoder,
    compute: Compute,
    sentence: SentenceFiles,
    params: dict,
    input_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
    token_type_ids: Int[Array, "B L"] | None = None,
) -> Float[Array, "B D"]:
    """The vector of each row; `params` is the "encoder" subtree."""
    out = models.encode(
        encoder, compute, params, input_ids, attention_mask, token_type_ids=token_type_ids
    )
    pooled = models.pool(out["last_hidden_state"], attention_mask, sentence.pooling)
    return models.normalize(pooled) if sentence.normalize else pooled


def packed(
    encoder: Encoder,
    compute: Compute,
    sentence: SentenceFiles,
    params: dict,
    *,
    segment_ids: Int[Array, "B L"],
    **batch: Int[Array, "B L"],
) -> Float[Array, "B S D"]:
    """The vectors of the texts that share each row, told apart by `segment_ids`."""
    out = models.encode(encoder, compute, params, segment_ids=segment_ids, **batch)
    pooled = models.pool_passages(out["last_hidden_state"], segment_ids, sentence.pooling)
    return models.normalize(pooled) if sentence.normalize else pooled


def best(
    queries: Float[np.ndarray, "Q D"], documents: Float[np.ndarray, "N D"], k: int, unit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows, [Q, K], of the K = min(k, N) nearest documents, best first: of greatest
    cosine if `unit`, else of greatest inner product."""
    decode = at_unit_length if unit else np.asarray
    if len(queries) * len(documents) > _FEW_SCORES:
        return nearest(decode(queries), documents, k, decode=decode)
    scores = decode(queries) @ decode(documents).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order
