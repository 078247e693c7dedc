"""Does an export compute what the model does? Measured on real texts, at real tokens alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from distilflax.errors import UserError
from distilflax.export.samples import Batch

# What every export becomes when it is opened: a batch in, float32 arrays by name out.
Run = Callable[[Batch], Mapping[str, np.ndarray]]

EXACT = 1e-4  # what a whole model in float32 may differ by
LEAST_COSINE = 0.95
LEAST_AGREEMENT = 0.9

_SPANS = ("start_logits", "end_logits")


def compare(
    reference: Run, run: Run, batches: Iterable[Batch], problem: str = ""
) -> dict[str, dict[str, float]]:
    """For each output how far `run` is from `reference`; `problem` is `Subject.problem`.

    max_difference and mean_difference of single numbers; least_cosine and mean_cosine between the
    vectors (of a token or of a text), or for logits of one number `_concordance` over all texts in
    the place of both; relative_error, the squared differences as a part of the
    squared numbers; and where an output decides something, agreement: the share
    of equal decisions (the label, all labels of a text where it may have several, the word, the
    place of a span's end, the nearest other text), and close_agreement, which lets pass those that
    the reference itself holds equal within `EXACT`.
    """
    parts: dict[str, list[_Part]] = {}
    for batch in batches:
        for name, found in _parts(reference, run, batch, problem):
            parts.setdefault(name, []).append(found)
    return {name: _figures(name, found) for name, found in parts.items()}


def check(figures: Mapping[str, Mapping[str, float]], what: str, *, exact: bool, **least) -> None:
    """Refuse an export that computes something else.

    Args:
      figures: of `compare`.
      what: the format, for the sentence.
      exact: whether float32 arithmetic on the same weights is claimed.
      least: `cosine` (mean) and `agreement`, of an export that is not exact.

    Raises:
      UserError: with the first figure that is out of bounds.
    """
    for name, figure in figures.items():
        if not np.isfinite(figure["max_difference"]):
            raise _failed(what, f"{name} has values that are not finite")
        # So written that a figure that is no number fails, too.
        if exact and not figure["max_difference"] <= EXACT:
            raise _failed(
                what, f"{name} differs by {figure['max_difference']:.2g} (at most {EXACT})"
            )
        if exact and not figure.get("close_agreement", 1.0) >= 1.0:
            raise _failed(what, f"{name} decides otherwise in {1 - figure['close_agreement']:.1%}")
        if exact:
            continue
        if not figure["mean_cosine"] >= least["cosine"]:
            raise _failed(
                what,
                f"the mean cosine of {name} is {figure['mean_cosine']:.3f} (at least "
                f"{least['cosine']}, --least_cosine)",
            )
        if not figure.get("agreement", 1.0) >= least["agreement"]:
            raise _failed(
                what,
                f"{name} decides alike in {figure['agreement']:.1%} of the cases (at least "
                f"{least['agreement']:.0%}, --least_agreement)",
            )


def _failed(what: str, reason: str) -> UserError:
    return UserError(
        f"The {what} export does not compute what the model does: {reason}; no file was left."
    )


class _Part(NamedTuple):
    """What is kept of some vectors [n, D]; the vectors are not: a word's logits are 30,522 numbers.

    Attributes:
      numbers: how many were compared.
      largest, total: of the absolute differences.
      error, squares: the sums of the squared differences and of the squared numbers.
      cosines: [n] between the two of a vector; none of single numbers.
      same, close: [n] as `_decisions` has them; none where nothing is decided.
      vectors: both sides, where the decision is between texts, and of single numbers.
    """

    numbers: int
    largest: float
    total: float
    error: float
    squares: float
    cosines: np.ndarray
    same: np.ndarray
    close: np.ndarray
    vectors: tuple[np.ndarray, np.ndarray] | None


def _parts(reference: Run, run: Run, batch: Batch, problem: str) -> Iterator[tuple[str, _Part]]:
    """The names of outputs, and how far vectors of theirs are apart; raises as `compare` does."""
    wanted, found = reference(batch), run(batch)
    missing = set(wanted) - set(found)
    if missing:
        raise UserError(f"The export lacks the output {missing.pop()}; it was left out.")
    for name, array in wanted.items():
        other = np.asarray(found[name], np.float32)
        if other.shape != array.shape:
            raise UserError(
                f"The export's {name} has the shape {other.shape} instead of {array.shape}."
            )
        for a, b in _rows(name, array, other, batch.attention_mask > 0):
            yield name, _part(name, a, b, problem)


def _rows(name: str, wanted: np.ndarray, found: np.ndarray, real: np.ndarray) -> Iterable[tuple]:
    """Pairs of vectors [n, D]: of a text's real tokens, of texts, or for spans one of each text."""
    if name in _SPANS:
        for a, b, keep in zip(wanted, found, real, strict=True):
            yield a[keep][None], b[keep][None]
    elif wanted.ndim == 3:
        # A text at a time: what is computed of the vectors takes several times their room.
        for a, b, keep in zip(wanted, found, real, strict=True):
            yield a[keep], b[keep]
    else:
        yield wanted, found


def _part(name: str, wanted: np.ndarray, found: np.ndarray, problem: str) -> _Part:
    difference = np.abs(wanted - found)
    number = _is_number(name, wanted)
    same = close = np.zeros(0, bool)
    if name == "logits" and problem == "multi":
        same, close = _label_sets(wanted, found)
    elif name not in ("sentence_embedding", "last_hidden_state") and wanted.shape[-1] > 1:
        same, close = _decisions(wanted, found)
    return _Part(
        numbers=difference.size,
        largest=float(difference.max(initial=0.0)),
        total=float(difference.sum(dtype=np.float64)),
        error=float(np.square(difference, dtype=np.float64).sum()),
        squares=float(np.square(wanted, dtype=np.float64).sum()),
        cosines=np.zeros(0) if number else _cosine(wanted, found),
        same=same,
        close=close,
        vectors=(wanted, found) if number or name == "sentence_embedding" else None,
    )


def _figures(name: str, parts: list[_Part]) -> dict[str, float]:
    cosines, same, close = (
        np.concatenate([getattr(part, key) for part in parts])
        for key in ("cosines", "same", "close")
    )
    both = ()
    if parts[0].vectors is not None:
        both = [np.concatenate(side) for side in zip(*(p.vectors for p in parts), strict=True)]
    if both and _is_number(name, both[0]):
        cosines = np.array([_concordance(*both)])
    figures = {
        # Python's own max passes over a NaN that does not come first.
        "max_difference": float(np.max([part.largest for part in parts])),
        "mean_difference": sum(part.total for part in parts) / sum(part.numbers for part in parts),
        "relative_error": sum(part.error for part in parts)
        / max(sum(part.squares for part in parts), 1e-30),
        "least_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
    }
    if name == "sentence_embedding":
        same, close = _neighbours(*both)
    if len(same):
        figures |= {"agreement": float(same.mean()), "close_agreement": float(close.mean())}
    return figures


def _is_number(name: str, array: np.ndarray) -> bool:
    """Whether a row is a single number, a regression's or a cross-encoder's score: the cosine of
    two of them is the product of their signs."""
    return name == "logits" and array.shape[-1] == 1


def _concordance(wanted: np.ndarray, found: np.ndarray) -> float:
    """How alike two columns of numbers [n, 1] are: 1 if equal, 0 if `found` tells nothing of
    `wanted` (Lin 1989, "A concordance correlation coefficient to evaluate reproducibility").

    It is the correlation, lowered by what the columns differ in mean and in spread: with a and b
    the columns less the mean of `wanted`, 1 - |a - b|^2 / (|a|^2 + |b|^2), which of vectors of one
    length is their cosine. What is within `EXACT` counts as equal. Of scores that are all the same,
    as of a single text, there is no spread to go by: a and b are then the columns as they are.
    """
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    centre = wanted.mean() if np.ptp(wanted) > 2 * EXACT else 0.0
    sizes = np.square(wanted - centre).sum() + np.square(found - centre).sum()
    # NumPy's maximum, unlike Python's, leaves a NaN one.
    apart = np.maximum(np.square(wanted - found).sum() - wanted.size * EXACT**2, 0.0)
    return float(1 - apart / np.maximum(sizes, 1e-30))


def _neighbours(wanted: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_decisions` between all texts: which other one is nearest to each."""
    # A text that comes twice counts once, and none is its own neighbour.
    first = ~np.tril(_similarities(wanted) > 1 - 1e-5, -1).any(axis=1)
    itself = np.eye(int(first.sum()), dtype=bool)
    wanted, found = (np.where(itself, -1.0, _similarities(side[first])) for side in (wanted, found))
    return _decisions(wanted, found)


def _decisions(wanted: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row's greatest is the same; and whether it is one that is as good."""
    chosen = found.argmax(axis=-1)
    reached = np.take_along_axis(wanted, chosen[:, None], axis=-1)[:, 0]
    return chosen == wanted.argmax(axis=-1), reached >= wanted.max(axis=-1) - 2 * EXACT


def _label_sets(wanted: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_decisions` of labels that are each there or not, at logits above 0: whether a text's are
    all the same, and whether all but those that the reference itself is undecided on."""
    same = (wanted > 0) == (found > 0)
    return same.all(axis=-1), (same | (np.abs(wanted) <= EXACT)).all(axis=-1)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    product = lengths[0] * lengths[1]
    # Two vectors of zeros are alike, zeros and others are not; what holds a NaN stays NaN.
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    return np.where(both_zero, 1.0, (a * b).sum(axis=-1) / np.maximum(product, 1e-30))


def _similarities(vectors: np.ndarray) -> np.ndarray:
    """Cosines between texts."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit @ unit.T
