"""Semantic similarity: does the cosine of two sentences order pairs as people do?"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from distilflax.errors import UserError
from distilflax.evaluate.intervals import Comparison, compare
from distilflax.text import lines

COLUMNS = ("sentence1", "sentence2", "score")


class Pairs(NamedTuple):
    """Pairs of sentences and how alike people found them."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: Float[np.ndarray, "n"]


def read_pairs(path: str | Path, split: str = "test") -> Pairs:
    """Pairs from a TSV file, or from `SPLIT.tsv` in a folder.

    The first line names the columns, among which are `sentence1`, `sentence2` and `score`. Quotes
    are letters like any other, as in GLUE's files.

    Raises:
      UserError: no such file, missing columns, a line with another number of columns or a score
        that is not a number (with the line's number), or fewer than two pairs.
    """
    path = Path(path).expanduser()
    path = path / f"{split}.tsv" if path.is_dir() else path
    rows = lines.read(path)
    header = next(rows, ("", ""))[1].split("\t")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r}; its first line should name "
            f"{', '.join(COLUMNS)}, with tabs between."
        )
    at = [header.index(name) for name in COLUMNS]
    first, second, scores = [], [], []
    for place, line in rows:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise UserError(f"{place} has {len(cells)} columns; the first line has {len(header)}.")
        score = lines.number(cells[at[2]])
        if score is None:
            raise UserError(f"{place} has the score {cells[at[2]]!r}, which is not a number.")
        first.append(cells[at[0]])
        second.append(cells[at[1]])
        scores.append(score)
    if len(scores) < 2:
        raise UserError(f"{path} has {len(scores)} pairs; a correlation needs at least two.")
    return Pairs(tuple(first), tuple(second), np.array(scores))


def cosines(
    first: Float[np.ndarray, "n D"], second: Float[np.ndarray, "n D"]
) -> Float[np.ndarray, "n"]:
    """The cosine of each pair of unit vectors."""
    return np.einsum("nd,nd->n", first.astype(np.float64), second.astype(np.float64))


def spearman(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank.

    The measure of STS-B, because it asks for the order alone; 0 where either is constant.
    """
    return pearson(ranks(x), ranks(y))


def pearson(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Pearson's correlation; 0 where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt(np.dot(x, x) * np.dot(y, y))
    return float(np.dot(x, y) / norm) if norm else 0.0


def ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """1 for the smallest and n for the greatest; equal values share the mean of their ranks."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[which]


def compare_spearman(
    similarity: Float[np.ndarray, "n"],
    reference: Float[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
    **options: int,
) -> Comparison:
    """A model's Spearman against a reference model's, with bootstrap intervals over the pairs."""

    def both(at: Int[np.ndarray, "n"]) -> tuple[float, float]:
        return spearman(similarity[at], scores[at]), spearman(reference[at], scores[at])

    return compare(both, len(scores), **options)
