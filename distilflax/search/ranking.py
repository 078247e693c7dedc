"""How good a ranking is: one score a query for each metric, from ranks and judgements alone.

The figures are those of ir-measures (trec_eval), which the tests hold them to, ties included. They
are computed here because its judgements are whole numbers, where BEIR folders may have others, and
because it goes by names of queries and documents, as texts, where there are ranks already.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

# KIND@DEPTH: what it means.
METRICS = {
    "mrr@10": "1 / rank of the first relevant document, 0 beyond rank 10",
    "recall@1": "share of the relevant documents that is ranked first",
    "recall@10": "share of the relevant documents among the first 10",
    "recall@100": "share of the relevant documents among the first 100",
    "ndcg@10": "gain of the first 10, discounted by log2(rank + 1), over the best possible",
}
DEEPEST = max(int(metric.partition("@")[2]) for metric in METRICS)


def score(
    found: Int[np.ndarray, "Q K"], relevance: Sequence[Mapping[int, float]]
) -> dict[str, Float[np.ndarray, "Q"]]:
    """Each metric of `METRICS` for every query.

    `found` are documents by rank, best first; K should be `DEEPEST`, or all documents where there
    are fewer. `relevance` maps each query's judged documents to their grades; a grade above 0 is
    relevant, and the grade itself is the gain of nDCG (linear, as trec_eval's `ndcg_cut`).

    A query without any relevant document scores 0 everywhere: leave it out beforehand.
    """
    gains = np.zeros(found.shape, np.float64)
    for q, grades in enumerate(relevance):
        gains[q] = [max(grades.get(int(document), 0), 0) for document in found[q]]
    scores = {}
    for metric in METRICS:
        kind, _, depth = metric.partition("@")
        scores[metric] = _KINDS[kind](gains, relevance, int(depth))
    return scores


def _mrr(gains: Float[np.ndarray, "Q K"], relevance: Sequence, depth: int):
    relevant = gains[:, :depth] > 0
    return np.where(relevant.any(axis=1), 1 / (np.argmax(relevant, axis=1) + 1), 0.0)


def _recall(gains: Float[np.ndarray, "Q K"], relevance: Sequence, depth: int):
    number = np.array([sum(grade > 0 for grade in grades.values()) for grades in relevance])
    return (gains[:, :depth] > 0).sum(axis=1) / np.maximum(number, 1)


def _ndcg(gains: Float[np.ndarray, "Q K"], relevance: Sequence, depth: int):
    ideal = np.array([_dcg(_best(grades, depth)) for grades in relevance])
    reached = np.array([_dcg(row[:depth]) for row in gains])
    return np.divide(reached, ideal, out=np.zeros_like(ideal), where=ideal > 0)


_KINDS = {"mrr": _mrr, "recall": _recall, "ndcg": _ndcg}


def _best(grades: Mapping[int, float], depth: int) -> Float[np.ndarray, "n"]:
    return np.array(sorted((g for g in grades.values() if g > 0), reverse=True)[:depth], np.float64)


def _dcg(gains: Float[np.ndarray, "n"]) -> float:
    return float(np.sum(gains / np.log2(np.arange(2, len(gains) + 2))))
