"""How sure a classifier is, and below what it should rather not answer."""

import numpy as np
from jaxtyping import Bool, Float


def best_threshold(
    confidence: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"], outside: Bool[np.ndarray, "n"]
) -> float:
    """The threshold below which to reject, for the most right answers: those that are right and
    kept, and those that are outside and rejected. Of equally good ones the greatest, at most 1; 0
    rejects nothing."""
    order = np.argsort(confidence, kind="stable")
    confidence, right, outside = confidence[order], right[order], outside[order]
    lost = np.concatenate([[0], np.cumsum(right & ~outside)])
    won = np.concatenate([[0], np.cumsum(outside)])
    # Rejecting the k least sure is possible where the next one is surer than they are; rejecting
    # all of them, where none is of 1.
    possible = np.concatenate([[True], np.diff(confidence) > 0, confidence[-1:] < 1])
    gain = np.where(possible, won - lost, -len(confidence) - 1)
    k = len(gain) - 1 - int(gain[::-1].argmax())
    if k == 0:
        return 0.0
    below, above = confidence[k - 1], confidence[k] if k < len(confidence) else 1.0
    # Between two that are next to each other there is no middle: it may be rounded to `below`.
    return float(max((below + above) / 2, np.nextafter(below, above)))


def sigmoid(logits: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """In the precision of its argument, and without overflow."""
    return (1 + np.tanh(logits / 2)) / 2


def softmax(logits: Float[np.ndarray, "*n N"]) -> Float[np.ndarray, "*n N"]:
    """Over the last axis, in float64."""
    logits = logits.astype(np.float64)
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
