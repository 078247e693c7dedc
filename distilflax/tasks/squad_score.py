"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 count them.

The two differ: 2.0 ignores gold answers that normalise to nothing, and calls two empty answers
equal in F1 too; in 1.1 they share no word, and so score 0. Figures are in percent, as there.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation (ASCII's), articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_alike(one: str, other: str) -> bool:
    """Whether both are the same after normalising, or in their letters and digits alone: MRQA's
    answers may have a hyphen where their text has a space
    (https://github.com/mrqa/MRQA-Shared-Task-2019/issues/11)."""
    return normalized(one) == normalized(other) or _bare(one) == _bare(other) != ""


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def exact(gold: str, found: str) -> float:
    """1 if both are the same after normalising."""
    return float(normalized(gold) == normalized(found))


def f1(gold: str, found: str, *, empty_is_equal: bool = True) -> float:
    """The harmonic mean of precision and recall in words, each counted as often as it stands."""
    gold_words, found_words = normalized(gold).split(), normalized(found).split()
    if empty_is_equal and not (gold_words and found_words):
        return float(gold_words == found_words)
    shared = sum((Counter(gold_words) & Counter(found_words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(found_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def best_of(golds: Sequence[str], found: str, *, version_2: bool) -> tuple[float, float]:
    """(exact, F1) against the gold answer that each is best with; no gold answer is ""."""
    if version_2:
        golds = [gold for gold in golds if normalized(gold)] or [""]
    return (
        max((exact(gold, found) for gold in golds), default=0.0),
        max((f1(gold, found, empty_is_equal=version_2) for gold in golds), default=0.0),
    )


def score(
    golds: Mapping[str, Sequence[str]], found: Mapping[str, str], *, version_2: bool
) -> dict[str, float]:
    """The scripts' figures over questions by id. `found` may lack some: 1.1 counts those as wrong
    and 2.0 leaves them out of the sum.

    2.0 has three more: over the questions with an answer, and how many of the others were left
    without.
    """
    scored = {
        name: best_of(golds[name], found[name], version_2=version_2)
        for name in golds
        if name in found
    }
    total = len(scored) if version_2 else len(golds)
    figures = {
        "exact": _percent(scored, scored, 0, total),
        "f1": _percent(scored, scored, 1, total),
    }
    if not version_2:
        return figures
    has = [name for name in scored if golds[name]]
    none = [name for name in scored if not golds[name]]
    if has:
        figures["has_answer_exact"] = _percent(scored, has, 0, len(has))
        figures["has_answer_f1"] = _percent(scored, has, 1, len(has))
    if none:
        figures["no_answer_accuracy"] = _percent(scored, none, 0, len(none))
    return figures


def _percent(scored: Mapping, names, which: int, total: int) -> float:
    return 100.0 * sum(scored[name][which] for name in names) / max(total, 1)


def best_threshold(
    golds: Mapping[str, Sequence[str]], found: Mapping[str, str], no_answer: Mapping[str, float]
) -> float:
    """The threshold: answering only where `no_answer` is at most that has the best F1.

    The search of 2.0's script (`find_best_thresh`), except that questions of one score stand or
    fall together, and that the threshold lies halfway to the next score, which is fairer to other
    data.
    """
    names = sorted(found, key=lambda name: no_answer[name])
    current = best = float(sum(not golds[name] for name in names))
    place = -1
    for i, name in enumerate(names):
        if golds[name]:
            current += best_of(golds[name], found[name], version_2=True)[1]
        elif found[name]:
            current -= 1
        # Between equal scores there is no threshold.
        last = i + 1 == len(names) or no_answer[names[i + 1]] > no_answer[name]
        if last and current > best:
            best, place = current, i
    values = [no_answer[name] for name in names]
    if place < 0:
        threshold = values[0] - 1.0
    elif place + 1 == len(values):
        threshold = values[-1] + 1.0
    else:
        threshold = (values[place] + values[place + 1]) / 2
    return threshold
