"""The figures of classification and tagging, by the libraries that the field takes them from.

scikit-learn, scipy and seqeval are the extra `tasks`: nothing else of this project needs them.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from distilflax.errors import UserError


@contextlib.contextmanager
def _needs_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"The figures of a task need {error.name}: pip install 'distilflax[tasks]'."
        ) from None


def classes(
    truth: Int[np.ndarray, "n"] | Sequence[str],
    found: Int[np.ndarray, "n"] | Sequence[str],
    positive: str | None = None,
) -> dict[str, float]:
    """Accuracy, F1 averaged over the classes, Matthews' correlation, and F1 of the `positive`
    class where one is named."""
    with _needs_extra():
        from sklearn import metrics
    truth, found = np.asarray(truth), np.asarray(found)
    figures = {
        "accuracy": float(np.mean(truth == found)),
        "macro_f1": float(metrics.f1_score(truth, found, average="macro", zero_division=0)),
        "matthews": float(metrics.matthews_corrcoef(truth, found)),
    }
    if positive is not None:
        both = (truth == positive, found == positive)
        figures["f1"] = float(metrics.f1_score(*both, zero_division=0))
    return figures


def label_sets(
    truth: Bool[np.ndarray, "n labels"], found: Bool[np.ndarray, "n labels"]
) -> dict[str, float]:
    """F1 over all labels together (micro) and averaged over them, and the share all right."""
    with _needs_extra():
        from sklearn import metrics
    # Of one column alone scikit-learn would count its being absent as another label.
    columns = list(range(truth.shape[1]))
    given = (truth.ravel(), found.ravel(), [True]) if len(columns) == 1 else (truth, found, columns)

    def f1(average: str) -> float:
        truth, found, labels = given
        score = metrics.f1_score(truth, found, labels=labels, average=average, zero_division=0)
        return float(score)

    return {
        "micro_f1": f1("micro"),
        "macro_f1": f1("macro"),
        "accuracy": float(np.mean(np.all(truth == found, axis=1))),
    }


def roc_area(truth: Bool[np.ndarray, "n"], found: Float[np.ndarray, "n"]) -> float:
    """The area under the ROC: how often what is true scores above what is not; both are there."""
    with _needs_extra():
        from sklearn import metrics
    return float(metrics.roc_auc_score(truth, found))


def numbers(truth: Float[np.ndarray, "n"], found: Float[np.ndarray, "n"]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, 0 where either side is constant."""
    with _needs_extra():
        from scipy import stats
    constant = len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(found) == 0
    pearson = 0.0 if constant else float(stats.pearsonr(truth, found).statistic)
    spearman = 0.0 if constant else float(stats.spearmanr(truth, found).statistic)
    return {"pearson": pearson, "spearman": spearman, "combined": (pearson + spearman) / 2}


def means(
    figures: dict[str, Float[np.ndarray, "n"]], at: Int[np.ndarray, "draw"] | slice = slice(None)
) -> dict[str, float]:
    """Of figures that each query has, of those `at` some indices."""
    return {name: float(values[at].mean()) for name, values in figures.items()}


def entities(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall of whole entities as conlleval counts them, by seqeval."""
    with _needs_extra():
        from seqeval import metrics
    truth, found = [list(tags) for tags in truth], [list(tags) for tags in found]
    options = {"zero_division": 0}
    return {
        "f1": float(metrics.f1_score(truth, found, **options)),
        "precision": float(metrics.precision_score(truth, found, **options)),
        "recall": float(metrics.recall_score(truth, found, **options)),
        "accuracy": float(metrics.accuracy_score(truth, found)),
    }


def entity_counts(
    truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> Int[np.ndarray, "n 5"]:
    """For each sentence: entities that are right, found and true; words that are right, and all."""
    with _needs_extra():
        from seqeval.metrics.sequence_labeling import get_entities
    counts = []
    for ours, theirs in zip(found, truth, strict=True):
        chosen, true = set(get_entities(list(ours))), set(get_entities(list(theirs)))
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        counts.append((len(chosen & true), len(chosen), len(true), same, len(theirs)))
    return np.array(counts, np.int64).reshape(-1, 5)


def entities_of_counts(counts: Int[np.ndarray, "5"]) -> dict[str, float]:
    """`entities` of the sentences whose counts were added up."""
    right, chosen, true, same, words = map(int, counts)
    return {
        "f1": 2 * right / max(chosen + true, 1),
        "precision": right / max(chosen, 1),
        "recall": right / max(true, 1),
        "accuracy": same / max(words, 1),
    }
