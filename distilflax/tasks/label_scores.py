"""Figures of labels in some hundred draws of the same examples, as a bootstrap asks for them.

Labels are numbered once, and a draw is counted: how often each is true, found, and both. All of
`scores.classes` and `scores.label_sets` follows from these three, without a table of labels by
labels for each draw.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from distilflax.tasks import scores

# The examples at these indices, one more than once, to their figures.
Figures = Callable[[Int[np.ndarray, "draw"]], dict[str, float]]


def of_one(
    truth: Sequence[str], predictions: Sequence[dict], positive: str | None, outside: str = ""
) -> Figures:
    """`scores.classes` of a label for each example, and `scope` where `outside` names a class."""
    found = [prediction["label"] for prediction in predictions]
    number = {name: i for i, name in enumerate(dict.fromkeys([*truth, *found, positive]))}
    true_n, found_n = (np.array([number[name] for name in side], int) for side in (truth, found))

    def figures(at: Int[np.ndarray, "draw"]) -> dict[str, float]:
        true, found = true_n[at], found_n[at]
        sides = (true[true == found], true, found)
        counts = [np.bincount(side, minlength=len(number)) for side in sides]
        f1, seen = _f1(*counts), counts[1] + counts[2] > 0
        drawn = {
            "accuracy": float(np.mean(true == found)),
            "macro_f1": float(f1[seen].mean()),
            "matthews": _matthews(*counts),
        }
        if positive is not None:
            drawn["f1"] = float(f1[number[positive]])
        if outside:
            drawn |= scope(outside, [truth[i] for i in at], [predictions[i] for i in at])
        return drawn

    return figures


def of_sets(
    labels: Sequence[str], truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> Figures:
    """`scores.label_sets` of any number of `labels` for each example; but of the labels that are
    true of some example, the average leaves out those that are neither true nor found in a draw.

    As 0, which they are for scikit-learn, rare ones would put the draws below the figure that they
    are of: a perfect model's were all below its 1. What is true of no example at all is 0 in that
    figure, and is the same share of the average in every draw.
    """
    true, found = marks(labels, truth, found)
    same, occurs = np.all(true == found, axis=1), true.any(axis=0)
    # (Example, label) where there is one: few of all, so that a draw need not look at all.
    flat = [np.flatnonzero(side) for side in (true & found, true, found)]
    sides = [np.divmod(side, len(labels)) for side in flat]

    def figures(at: Int[np.ndarray, "draw"]) -> dict[str, float]:
        times = np.bincount(at, minlength=len(same))
        counts = [np.bincount(of, times[row], minlength=len(labels)) for row, of in sides]
        both, true, found = counts
        counted = _f1(*counts)[occurs & (true + found > 0)]
        return {
            "micro_f1": float(2 * both.sum() / max(true.sum() + found.sum(), 1)),
            "macro_f1": float(occurs.mean() * counted.mean()) if len(counted) else 0.0,
            "accuracy": float(same[at].mean()),
        }

    return figures


def marks(
    labels: Sequence[str], truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> Bool[np.ndarray, "2 n labels"]:
    """Which of `labels` each example has, and which it is said to have."""
    number = {name: i for i, name in enumerate(labels)}
    both = np.zeros((2, len(truth), len(labels)), bool)
    for rows, sets in zip(both, (truth, found), strict=True):
        for row, names in zip(rows, sets, strict=True):
            row[[number[name] for name in names]] = True
    return both


def scope(outside: str, truth: Sequence[str], predictions: Sequence[dict]) -> dict[str, float]:
    """Accuracy on what is in scope, with a rejection counted as wrong and without rejecting;
    recall and precision of the class `outside`, "out of scope", and how well the score tells both
    apart whatever the threshold (the area under the ROC: Hendrycks and Gimpel 2017)."""
    found = np.array([prediction["label"] for prediction in predictions])
    closed = np.array([p.get("nearest", p["label"]) for p in predictions])
    truth = np.array(truth)
    is_outside, rejected = truth == outside, found == outside
    figures = {}
    if (~is_outside).any():
        figures["in_scope_accuracy"] = float(np.mean((found == truth)[~is_outside]))
        figures["closed_accuracy"] = float(np.mean((closed == truth)[~is_outside]))
    if is_outside.any():
        figures["out_of_scope_recall"] = float(np.mean(rejected[is_outside]))
        precision = float(np.mean(is_outside[rejected])) if rejected.any() else 0.0
        figures["out_of_scope_precision"] = precision
    if is_outside.any() and not is_outside.all():
        sure = np.array([prediction["score"] for prediction in predictions])
        figures["out_of_scope_auroc"] = scores.roc_area(~is_outside, sure)
    return figures


def _f1(
    both: Num[np.ndarray, "k"], true: Num[np.ndarray, "k"], found: Num[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
    """Of each label; 0 where there is nothing."""
    return 2 * both / np.maximum(true + found, 1)


def _matthews(
    both: Int[np.ndarray, "k"], true: Int[np.ndarray, "k"], found: Int[np.ndarray, "k"]
) -> float:
    """Matthews' correlation of k classes (Gorodkin 2004); 0 where a side is of one class."""
    # As floats: the product below, of 70,000 examples, is more than integers of 64 bits hold.
    true, found, total = true.astype(float), found.astype(float), float(true.sum())
    of_true, of_found = total**2 - true @ true, total**2 - found @ found
    if of_true * of_found == 0:
        return 0.0
    return float((both.sum() * total - true @ found) / np.sqrt(of_true * of_found))
