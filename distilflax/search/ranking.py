"""How good a ranking is: one score a query for each metric, from ranks and judgements alone.

The figures are those of ir-measures (trec_eval), which the tests hold them to, ties included. They
are computed here because its judgements are whole numbers, where BEIR folders may have others, and
because it goes by names of queries and documents, as texts, where there are ranks already.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

# Metric: (how deep it looks, what it means).
METRICS = {
    "mrr@10": (10, "1 / rank of the first relevant document, 0 beyond rank 10"),
    "recall@1": (1, "share of the relevant documents that is ranked first"),
    "recall@10": (10, "share of the relevant documents among the first 10"),
    "recall@100": (100, "share of the relevant documents among the first 100"),
    "ndcg@10": (10, "gain of the first 10, discounted by log2(rank + 1), over the best possible"),
}
DEEPEST = max(depth for depth, _ in METRICS.values())


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
    relevant = gains > 0
    number = np.array([sum(grade > 0 for grade in grades.values()) for grades in relevance])
    number = np.maximum(number, 1)

    first = np.argmax(relevant, axis=1)
    hit = relevant.any(axis=1) & (first < 10)
    scores = {"mrr@10": np.where(hit, 1 / (first + 1), 0.0)}
    for depth in (1, 10, 100):
        scores[f"recall@{depth}"] = relevant[:, :depth].sum(axis=1) / number
    ideal = np.array([_dcg(_best(grades, 10)) for grades in relevance])
    reached = np.array([_dcg(row[:10]) for row in gains])
    scores["ndcg@10"] = np.divide(reached, ideal, out=np.zeros_like(ideal), where=ideal > 0)
    return scores


def _best(grades: Mapping[int, float], depth: int) -> Float[np.ndarray, "n"]:
    return np.array(sorted((g for g in grades.values() if g > 0), reverse=True)[:depth], np.float64)


def _dcg(gains: Float[np.ndarray, "n"]) -> float:
    return float(np.sum(gains / np.log2(np.arange(2, len(gains) + 2))))
