"""What does an index cost and find, beside looking at every vector?

    python -m experiments.time_search --vectors=vectors.npy --count=100000

The file is what `numpy.save` makes of `distilflax.load(MODEL).encode(texts)`.

Exact search, our index in both forms (`search/index.py`), and graph indexes of faiss and usearch,
those that are installed: seconds to build, size on disk, the share of the exact ten that is found,
and how much faster a query is than exact search, alone and in batches of 64. All run on one thread
and are timed in seconds of the processor, so that other work on the machine counts little; queries
take turns. Where --count is more than the file has, the others are mixtures of two of its rows;
queries are rows that are left out.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from distilflax.errors import UserError
from distilflax.evaluate.speed import take_turns
from distilflax.search import exact, index
from experiments import command

_VECTORS = flags.DEFINE_string("vectors", "", "A .npy file of unit vectors, [N, D] of float32.")
_COUNT = flags.DEFINE_integer("count", 100_000, "Vectors to search.", lower_bound=100)
_QUERIES = flags.DEFINE_integer("queries", 256, "Rows that are asked for.", lower_bound=64)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each takes its turn.", lower_bound=1)

_FOUND, _ALONE, _TOGETHER = 10, 16, 64


class Contender(NamedTuple):
    """`search` maps queries to [Q, 10] rows; `seconds` and `bytes` are of what was built for it."""

    name: str
    search: Callable[[np.ndarray], np.ndarray]
    seconds: float = 0.0
    bytes: int = 0


def run() -> None:
    if not _VECTORS.value:
        raise UserError("--vectors is missing; give a .npy file of unit vectors.")
    queries, vectors = read(Path(_VECTORS.value))
    one = Contender("exact", lambda q: exact.nearest(q, vectors, _FOUND)[1])
    wanted = one.search(queries)
    contenders = [one, *inverted(vectors)]
    for more in (faiss_graph, usearch_graphs):
        contenders += more(vectors)
    few = [partial(each, own.search, queries[:_ALONE]) for own in contenders]
    many = [partial(own.search, queries[:_TOGETHER]) for own in contenders]
    alone, together = (np.median(turns(calls), axis=0) for calls in (few, many))
    table = Table(title=f"{len(vectors):,} vectors of {vectors.shape[1]} coordinates")
    heads = ("built, s", "MB", "found", "alone, x", "in 64, x")
    for head in ("", *heads):
        table.add_column(head, justify="right" if head else "left", no_wrap=not head)
    for i, own in enumerate(contenders):
        found = own.search(queries)
        share = np.mean([len({*a} & {*b}) / _FOUND for a, b in zip(found, wanted, strict=True)])
        speed = [f"{times[0] / times[i]:.1f}" for times in (alone, together)]
        size = (f"{own.seconds:.1f}", f"{own.bytes / 1e6:.1f}") if own.bytes else ("", "")
        table.add_row(own.name, *size, f"{share:.3f}", *speed)
    Console().print(table)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Queries and vectors out of the file."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--vectors={path} is no .npy file of vectors ({error}).") from None
    if rows.ndim != 2 or len(rows) < 2 * _QUERIES.value:
        raise UserError(
            f"--vectors={path} has the shape {rows.shape}; it should be [N, D], with at least "
            f"{2 * _QUERIES.value} rows."
        )
    rows = np.array(rows[: _COUNT.value + _QUERIES.value], np.float32)
    queries, rows = np.split(rows, [_QUERIES.value])
    missing = _COUNT.value - len(rows)
    if missing > 0:
        first, second = np.random.default_rng(0).integers(len(rows), size=(2, missing))
        mixed = 0.75 * rows[first] + 0.35 * rows[second]
        rows = np.concatenate([rows, mixed / np.linalg.norm(mixed, axis=1, keepdims=True)])
    return queries, rows


def inverted(vectors: np.ndarray) -> list[Contender]:
    """Our index, in both forms and with several depths."""

    def search(q, own, probes, given=None):
        return own.nearest(q, _FOUND, probes=probes, vectors=given)[1]

    index.library().omp_set_num_threads(1)
    found = []
    for kind in index.KINDS:
        built, seconds = timed(partial(index.build, vectors, kind=kind))
        size = stored(partial(index.save, built))
        ways = {f"{n} of {built.cells} cells": {"probes": n} for n in (8, 16, 32)}
        ways["16 cells, put in order"] = {"probes": 16, "given": vectors}
        found += [
            Contender(f"{kind}, {name}", partial(search, own=built, **options), seconds, size)
            for name, options in ways.items()
        ]
    return found


def faiss_graph(vectors: np.ndarray) -> list[Contender]:
    faiss = index.library()

    def build():
        graph = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 128
        graph.add(vectors)
        return graph

    def search(q, depth):
        return graph.search(q, _FOUND, params=faiss.SearchParametersHNSW(efSearch=depth))[1]

    graph, seconds = timed(build)
    size = stored(lambda path: faiss.write_index(graph, str(path)))
    return [
        Contender(f"faiss HNSW float32, depth {n}", partial(search, depth=n), seconds, size)
        for n in (64, 128)
    ]


def usearch_graphs(vectors: np.ndarray) -> list[Contender]:
    try:
        from usearch.index import Index
    except ImportError:
        return []

    def build(kind):
        graph = Index(ndim=vectors.shape[1], metric="ip", dtype=kind)
        graph.add(np.arange(len(vectors)), vectors, threads=1)
        return graph

    def search(q, graph, depth):
        graph.expansion_search = depth
        return np.reshape(graph.search(q, _FOUND, threads=1).keys, (len(q), -1)).astype(np.int64)

    found = []
    for kind in ("f32", "f16", "i8"):
        graph, seconds = timed(partial(build, kind))
        size = stored(lambda path, own=graph: own.save(str(path)))
        found += [
            Contender(
                f"usearch {kind}, depth {n}", partial(search, graph=graph, depth=n), seconds, size
            )
            for n in (64, 128)
        ]
    return found


def timed(build: Callable) -> tuple:
    start = time.process_time()
    built = build()
    return built, time.process_time() - start


def stored(save: Callable[[Path], object]) -> int:
    """Bytes that are on disk after `save(path)`."""
    folder = Path(tempfile.mkdtemp())
    try:
        save(folder / "index")
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder)


def each(search: Callable, queries: np.ndarray) -> None:
    for query in queries:
        search(query[None])


def turns(calls: list[Callable]) -> np.ndarray:
    for call in calls:
        call()
    return take_turns(calls, _ROUNDS.value, clock=time.process_time)


if __name__ == "__main__":
    command.main(run)
