"""Hard negatives: what a model takes for an answer and nobody judged to be one.

Judgements are never complete (of the negatives that a good model puts first on MS MARCO, most are
unjudged answers: Qu et al. 2021, RocketQA, arXiv:2010.08191, section 3.2.2). What is nearer to the
query than its own positive is therefore suspect, and left alone: "positive-aware" mining with an
absolute margin (Moreira et al. 2024, NV-Retriever, arXiv:2407.15831, TopK-MarginPos).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from distilflax.search import exact


class Mined(NamedTuple):
    """One positive of a query with its negatives, the nearest first, and the cosines of all."""

    query: int
    positive: int
    negatives: tuple[int, ...]
    scores: tuple[float, ...]


def hard_negatives(
    queries: Float[np.ndarray, "Q D"],
    documents: Float[np.ndarray, "N D"],
    relevance: Sequence[Mapping[int, float]],
    *,
    number: int,
    depth: int,
    skip: int,
    margin: float,
    itself: Sequence[int],
    texts: Sequence[str],
) -> tuple[list[Mined], int]:
    """For every positive of every query its `number` nearest negatives among `depth` documents.

    Args:
      relevance: as `collection.Collection` has it; what is judged above 0 is never a negative.
      skip: so many of the nearest documents are passed over, whatever they are.
      margin: a negative scores at most its positive's score less this.
      itself: as a `Collection` has it; a query's own document is as if it were not there.
      texts: of the documents; what has the text of one judged above 0 is never a negative either.

    Returns:
      what was mined, in the order of the queries, and how many candidates the margin kept out. A
      positive may have fewer negatives than `number`, or none.
    """
    one_more = any(own >= 0 for own in itself)
    scores, found = exact.nearest(queries, documents, depth + skip + one_more)
    mined, suspects = [], 0
    for q, (judged, own_document) in enumerate(zip(relevance, itself, strict=True)):
        others = [
            (int(document), float(score))
            for document, score in zip(found[q], scores[q], strict=True)
            if document != own_document
        ]
        positives = [document for document, grade in judged.items() if grade > 0]
        answers = {texts[document] for document in positives}
        candidates = [one for one in others[skip : skip + depth] if texts[one[0]] not in answers]
        for positive in positives:
            own = float(queries[q].astype(np.float64) @ documents[positive].astype(np.float64))
            fit = [(document, score) for document, score in candidates if score <= own - margin]
            suspects += len(candidates) - len(fit)
            kept = fit[:number]
            mined.append(
                Mined(q, positive, tuple(d for d, _ in kept), (own, *(s for _, s in kept)))
            )
    return mined, suspects
