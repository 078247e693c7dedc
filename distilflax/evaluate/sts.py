"""Semantic similarity: does the cosine of two sentences order pairs as people do?"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from distilflax.errors import UserError
from distilflax.evaluate.intervals import Comparison, compare
from distilflax.tasks import records
from distilflax.tasks.records import Faults
from distilflax.text import lines

COLUMNS = ("sentence1", "sentence2", "score")
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


class Pairs(NamedTuple):
    """Pairs of sentences and how alike people found them."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: Float[np.ndarray, "n"]


def read_pairs(path: str | Path, split: str = "test") -> Pairs:
    """Pairs from a file, or from `SPLIT.tsv` (.csv, .jsonl, .parquet; compressed too) in a folder.

    Its columns are `sentence1`, `sentence2` and `score`, among others. Quotes in a TSV are letters
    like any other, as in GLUE's files.

    Raises:
      UserError: no such file, missing columns, a line with another number of columns or a score
        that is not a number (with the line's number), or fewer than two pairs.
    """
    path = lines.local(path)
    if path.is_dir():
        there = (lines.packed_or_not(path / f"{split}{suffix}") for suffix in _SUFFIXES)
        path = next((one for one in there if one.is_file()), path / f"{split}.tsv")
    first, second, scores = [], [], []
    for record in records.read(path, Faults()):
        missing = next((name for name in COLUMNS if name not in record.values), None)
        if missing is not None:
            where = path if record.headed else record.place
            raise UserError(
                f"{where} has no column {missing!r}; it should have {', '.join(COLUMNS)} (there "
                f"are: {', '.join(record.values):.80})."
            )
        one, other = (records.text(record, name, name) for name in COLUMNS[:2])
        score = lines.number(str(record.values["score"]))
        if score is None:
            raise UserError(
                f"{record.place} has the score {record.values['score']!r:.40}, which is not a "
                "number."
            )
        first.append(one)
        second.append(other)
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
) -> Comparison:
    """A model's Spearman against a reference model's, with bootstrap intervals over the pairs."""

    def both(at: Int[np.ndarray, "n"]) -> tuple[float, float]:
        return spearman(similarity[at], scores[at]), spearman(reference[at], scores[at])

    return compare(both, len(scores))
