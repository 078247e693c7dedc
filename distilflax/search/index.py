"""An index for collections that are too large to look at whole: faiss's inverted file.

Unit vectors are divided into cells around centroids (k-means over the sphere); a query looks into
the `probes` cells whose centroids are nearest (Sivic and Zisserman 2003; as in faiss, Douze et al.
2024, arXiv:2401.08281). Vectors are kept as float16, or as int8 within the range of each
coordinate. `search` may put what was found in order again by the vectors themselves.

    index = build(vectors, encoder=model.fingerprint)      # a np.memmap will do
    save(index, "my_index")
    scores, found = load("my_index", encoder=model.fingerprint).nearest(queries, 10)

Chosen by what a library's file may do to its reader (below), and by what it costs to build. Of
1,500 vectors of short sentences by all-MiniLM-L6-v2, in processor seconds of one rough round, 32 of
77 cells find 98.1% of the exact ten (int8 97.8%) and are 1.9 (1.3) times as fast as exact search in
batches of 64; faiss's graph finds 99.5% and is 1.1 times as fast, usearch's in float16 99.8% and
0.7. Graphs took 0.2 to 0.5 s to build, cells less than 0.05. Larger collections were not measured
here, and want more `probes`: measure on your own vectors before you choose.

    python -m experiments.time_search --vectors=VECTORS.npy --count=1500 --queries=64 --rounds=1

A folder holds plain arrays and what they are:

    index.json           count, width, kind, metric, the encoder, the arrays' checksum
    index.safetensors    centroids [cells, D], sizes [cells], rows [N], codes [N, bytes], ranges

and not the file of a library, whose readers have trusted the sizes and links in it
(facebookresearch/faiss/issues/5400, chroma-core/chroma/issues/7002 of usearch, nmslib/hnswlib/
issues/673). An inverted file can be put together out of arrays that were checked before.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real, UInt8
from safetensors import SafetensorError, safe_open

from distilflax import json_file
from distilflax.errors import UserError, choose_from
from distilflax.search import blocks
from distilflax.search.compact import OVERSAMPLED
from distilflax.search.exact import at_unit_length, check_finite, check_vectors, checked_k
from distilflax.text import on_disk
from distilflax.text.lines import local
from distilflax.weights import tensor_file, whole_folder

KINDS = ("float16", "int8")
METRIC = "cosine"
MANIFEST, ARRAYS = "index.json", "index.safetensors"
# Counts up when a reader of older indexes would be wrong about newer ones.
VERSION = 2
PROBES = 32

# What k-means reads: so many vectors a cell, so many times. faiss asks for 39 at least.
_SAMPLE, _ROUNDS = 48, 10
_TYPES = {"centroids": "F32", "sizes": "I32", "rows": "I64", "codes": "U8", "ranges": "F32"}


@dataclass(frozen=True, eq=False)
class Arrays:
    """An index as plain arrays. Rows are in the order of their cells, one cell after the other.

    codes: the bytes of each vector, in cells' order: float16, or a step of `ranges` a coordinate.
    ranges: [2, D] least and extent of each coordinate for int8, [0, D] for float16.
    """

    centroids: Float[np.ndarray, "cells D"]
    sizes: Int[np.ndarray, "cells"]
    rows: Int[np.ndarray, "N"]
    codes: UInt8[np.ndarray, "N bytes"]
    ranges: Float[np.ndarray, "r D"]


class Index:
    """Made by `build` or `load`; searched by any number of threads."""

    def __init__(self, lists: Any, kind: str, encoder: str):
        """`lists` is a faiss.IndexIVFScalarQuantizer that owns its centroids."""
        self._lists, self.kind, self.encoder = lists, kind, encoder

    def __len__(self) -> int:
        return self._lists.ntotal

    @property
    def width(self) -> int:
        """Coordinates of a vector."""
        return self._lists.d

    @property
    def cells(self) -> int:
        return self._lists.nlist

    def nearest(
        self,
        queries: Float[np.ndarray, "Q D"],
        k: int,
        *,
        probes: int = PROBES,
        vectors: Real[np.ndarray, "N D"] | None = None,
    ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
        """Scores and rows of K = min(k, N) vectors of great cosine, best first.

        More `probes` find more and take longer; all `cells` of them are exact search, up to the
        form that vectors are kept in. Where the cells hold fewer than K, -inf and row -1 fill up.

        `vectors` are those that the index was built from, in the same order (a memmap, say), of
        any length: the best `compact.OVERSAMPLED` times K are then put in order by these.

        Raises:
          UserError: queries or vectors that are not those of the index, a k below 0, probes below
            1, or NaN in a query or in vectors that were found.
        """
        check_vectors(queries, "The queries")
        k = checked_k(k)
        if not is_whole(probes, 1):
            raise UserError(
                f"probes is {probes!r:.20}, and says how many cells are looked into; give 1, 2 or "
                "more."
            )
        if queries.shape[1] != self.width:
            raise UserError(
                f"The queries have {queries.shape[1]} coordinates and the index holds vectors of "
                f"{self.width}; make them with the model that the index was built with."
            )
        if vectors is not None:
            check_vectors(vectors, "The vectors")
            if vectors.shape != (len(self), self.width):
                raise UserError(
                    f"The vectors are {vectors.shape[0]} of {vectors.shape[1]} coordinates and the "
                    f"index holds {len(self)} of {self.width}; give those that it was built from."
                )
        k = min(k, len(self))
        if not len(queries) or k < 1:
            return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
        asked = np.ascontiguousarray(queries, np.float32)
        wrong = np.flatnonzero(~np.isfinite(asked).all(axis=1))
        if len(wrong):
            raise UserError(f"Query {wrong[0]} holds NaN or an infinite number; leave it out.")
        many = k if vectors is None else min(OVERSAMPLED * k, len(self))
        # Given with each call and not set on the index, which other threads may be searching.
        options = library().SearchParametersIVF(nprobe=int(min(probes, self.cells)))
        scores, found = self._lists.search(asked, many, params=options)
        if vectors is not None:
            scores = _scored(asked, found, vectors)
        # Before they are put in order: NaN would come last, and pass for a poor find.
        check_finite(np.where(found < 0, 0, scores), found)
        if vectors is not None:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, found = (np.take_along_axis(x, order, axis=1) for x in (scores, found))
        return np.where(found < 0, -np.inf, scores).astype(np.float32), found

    def arrays(self) -> Arrays:
        """A copy of everything that it knows."""
        faiss, lists = library(), self._lists.invlists
        sizes = np.array([lists.list_size(cell) for cell in range(self.cells)], np.int32)
        rows = np.empty(len(self), np.int64)
        codes = np.empty((len(self), lists.code_size), np.uint8)
        end = 0
        for cell, size in enumerate(map(int, sizes)):
            begin, end = end, end + size
            if size:
                rows[begin:end] = faiss.rev_swig_ptr(lists.get_ids(cell), size)
                flat = faiss.rev_swig_ptr(lists.get_codes(cell), size * lists.code_size)
                codes[begin:end] = flat.reshape(size, -1)
        centroids = self._lists.quantizer.reconstruct_n(0, self.cells)
        ranges = faiss.vector_to_array(self._lists.sq.trained).reshape(-1, self.width)
        return Arrays(centroids, sizes, rows, codes, ranges)


def build(
    vectors: Real[np.ndarray, "N D"],
    *,
    encoder: str = "",
    kind: str = "float16",
    cells: int = 0,
    seed: int = 0,
    scale: bool = False,
) -> Index:
    """An index of unit vectors, which may be a `np.memmap`: they are read in blocks.

    Beside the index itself (N x D numbers of 2 bytes, or of 1) it takes a block, and a sample of
    48 vectors a cell. The same vectors and seed give the same index.

    Args:
      encoder: what made the vectors, such as `Predictor.fingerprint`.
      kind: "float16" or "int8".
      cells: how many; 0 takes 2 * sqrt(N).
      scale: take vectors of other lengths, divided by these.

    Raises:
      UserError: no faiss, an unknown kind, a seed or cells below 0, no vectors, or vectors that
        are no rows of numbers or not of unit length.
    """
    faiss = library()
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of index; {choose_from(kind, KINDS)}")
    check_vectors(vectors, "The vectors")
    if not is_whole(seed, 0, 2**31 - 2) or not is_whole(cells, 0):
        raise UserError(
            f"seed is {seed!r:.20} and cells are {cells!r:.20}; give a seed from 0 to {2**31 - 2} "
            "and 0 cells or more."
        )
    seed, cells = int(seed), int(cells)
    number, width = vectors.shape
    if not number or not width:
        raise UserError("There are no vectors to build an index of; give one at least.")
    cells = max(1, min(cells or round(2 * math.sqrt(number)), number))
    lists = _empty(kind, width, cells)
    # Without it faiss warns on standard error of collections that are small for their cells.
    lists.cp.min_points_per_centroid = 1
    lists.cp.max_points_per_centroid = _SAMPLE
    lists.cp.spherical, lists.cp.niter, lists.cp.seed = True, _ROUNDS, seed + 1
    some = np.random.default_rng(seed).choice(number, min(number, _SAMPLE * cells), replace=False)
    # In order: a memmap is read from its beginning to its end.
    lists.train(blocks.checked(vectors, np.sort(some), scale))
    if kind == "int8":
        # What the sample did not show would be cut off.
        faiss.copy_array_to_vector(blocks.ranges(vectors, scale).ravel(), lists.sq.trained)
    for first in range(0, number, blocks.BLOCK):
        lists.add(blocks.checked(vectors, slice(first, first + blocks.BLOCK), scale, first))
    return Index(lists, kind, encoder)


def save(index: Index, folder: str | Path) -> Path:
    """Writes the folder, whole or not at all; one that holds an index is replaced.

    Raises:
      UserError: the disk does not take it, or the folder holds something else.
    """
    folder = local(folder)
    own = {MANIFEST, ARRAYS}
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= own):
        raise UserError(f"{folder} holds something else than an index; give a new folder.")
    with whole_folder.written(folder) as new:
        tensor_file.write(new / ARRAYS, vars(index.arrays()))
        manifest = {
            "version": VERSION,
            "metric": METRIC,
            "kind": index.kind,
            "count": len(index),
            "width": index.width,
            "cells": index.cells,
            "encoder": index.encoder,
            "sha256": on_disk.sha256(new / ARRAYS),
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        on_disk.sync(new / MANIFEST)
    return folder


def load(folder: str | Path, *, encoder: str = "") -> Index:
    """The index in `folder`; everything is checked before faiss is given it.

    `encoder`, where it is given, is what must have made the vectors.

    Raises:
      UserError: no faiss, no index, one of another encoder, or files that are not as they were
        written.
    """
    folder = local(folder)
    library()
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no index: it has no {MANIFEST}; give the folder of one.")
    manifest, where = json_file.read(folder / MANIFEST), str(folder / MANIFEST)
    version, kind, metric = (manifest.get(key) for key in ("version", "kind", "metric"))
    if version != VERSION or kind not in KINDS or metric != METRIC:
        raise UserError(
            f"{where} is of version {version!r:.20}, kind {kind!r:.20} and metric {metric!r:.20}, "
            "which this package does not read; build the index again."
        )
    count, width, cells = (
        json_file.integer(manifest, key, where, least=1) for key in ("count", "width", "cells")
    )
    made_by = str(manifest.get("encoder") or "")
    check_encoder(made_by, encoder, str(folder))
    arrays = _read(folder / ARRAYS, kind, count, width, cells, manifest.get("sha256"))
    return Index(_filled(arrays, kind), kind, made_by)


def check_encoder(made_by: str, encoder: str, name: str = "The index") -> None:
    """Raises a UserError unless both are the same, where both are known."""
    if made_by and encoder and made_by != encoder:
        raise UserError(
            f"{name} was built from the vectors of another model ({made_by[:12]}, not "
            f"{encoder[:12]}); build it again with this one."
        )


def _read(path: Path, kind: str, count: int, width: int, cells: int, sha256: object) -> Arrays:
    """The arrays of a file whose header, sizes, checksum and values are as they must be."""
    shapes = {
        "centroids": (cells, width),
        "sizes": (cells,),
        "rows": (count,),
        "codes": (count, width * (2 if kind == "float16" else 1)),
        "ranges": (0 if kind == "float16" else 2, width),
    }
    found = {name: (e.dtype, e.shape) for name, e in tensor_file.read_header(path).items()}
    if found != {name: (_TYPES[name], shape) for name, shape in shapes.items()}:
        raise UserError(
            f"{path} does not hold the {count} vectors of {width} coordinates that {MANIFEST} "
            "tells of; copy or build the index again."
        )
    if on_disk.sha256(path) != sha256:
        raise UserError(
            f"{path} is not the file that {MANIFEST} describes (another checksum); copy or build "
            "the index again."
        )
    try:
        with safe_open(path, framework="np") as file:
            arrays = Arrays(**{name: file.get_tensor(name) for name in shapes})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    if (
        (arrays.sizes < 0).any()
        or arrays.sizes.sum(dtype=np.int64) != count
        or (arrays.rows < 0).any()
        or (arrays.rows >= count).any()
        or not np.isfinite(arrays.centroids).all()
        or not np.isfinite(arrays.ranges).all()
    ):
        raise UserError(f"{path} has arrays that contradict each other; build the index again.")
    return arrays


def _filled(arrays: Arrays, kind: str) -> Any:
    """faiss's index of these arrays."""
    faiss = library()
    cells, width = arrays.centroids.shape
    index = _empty(kind, width, cells)
    index.quantizer.add(arrays.centroids)
    faiss.copy_array_to_vector(arrays.ranges.ravel(), index.sq.trained)
    index.is_trained = True
    begin = 0
    for cell, size in enumerate(map(int, arrays.sizes)):
        if size:
            ids, codes = arrays.rows[begin : begin + size], arrays.codes[begin : begin + size]
            index.invlists.add_entries(cell, size, faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        begin += size
    index.ntotal = begin
    return index


def _empty(kind: str, width: int, cells: int) -> Any:
    faiss = library()
    kinds = faiss.ScalarQuantizer
    code = {"float16": kinds.QT_fp16, "int8": kinds.QT_8bit}[kind]
    centroids = faiss.IndexFlatIP(width)
    # Not residuals: the codes of a vector are then the same in whatever cell it is.
    index = faiss.IndexIVFScalarQuantizer(
        centroids, width, cells, code, faiss.METRIC_INNER_PRODUCT, False
    )
    # faiss frees the centroids with the index, and Python must not free them before.
    centroids.this.disown()
    index.own_fields = True
    return index


def _scored(
    queries: Float[np.ndarray, "Q D"],
    found: Int[np.ndarray, "Q K"],
    vectors: Real[np.ndarray, "N D"],
) -> Float[np.ndarray, "Q K"]:
    scores = np.empty(found.shape, np.float32)
    for q, rows in enumerate(found):
        scores[q] = at_unit_length(vectors[rows]) @ queries[q]
    return np.where(found < 0, -np.inf, scores)


def is_whole(value: Any, least: int, most: int | float = math.inf) -> bool:
    """Whether it is a whole number, Python's or numpy's, from `least` to `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and bool(least <= value <= most)


def library() -> ModuleType:
    """faiss; raises a UserError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            "An index needs faiss, which is not installed; pip install 'distilflax[search]', or "
            "search exactly."
        ) from None
    return faiss
