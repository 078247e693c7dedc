"""Search in many vectors: index libraries beside exact search, taking turns in one process.

    pip install usearch faiss-cpu
    python -m experiments.time_search --vectors=some.npy --number=100000 --json=out.json

`--vectors` are real ones, [n, D]; where `--number` is more than they are, others are made of them:
a random pair of real vectors, mixed at random and with a little noise, of unit length. The queries
are made in the same way and are none of the documents. Recall is that of the ten exact neighbours;
queries a second are the median over rounds in which all contenders search once, in turns, on
`--threads` threads, a batch of queries at once. hnswlib has no wheel on PyPI, so it is not among
them.
"""

import time
from collections.abc import Callable

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from distilflax.errors import UserError
from distilflax.search import nearest
from distilflax.train import machine
from experiments import command

_VECTORS = flags.DEFINE_string("vectors", None, "A .npy file of vectors, [n, D].")
_NUMBER = flags.DEFINE_integer("number", 100_000, "Documents to search.", lower_bound=100)
_QUERIES = flags.DEFINE_integer("queries", 500, "Queries at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often every contender searches.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 2, "Of each library.", lower_bound=1)
_LINKS = flags.DEFINE_integer("links", 16, "M of both graphs.", lower_bound=2)
_BUILD = flags.DEFINE_integer("build", 100, "efConstruction of both graphs.", lower_bound=1)
_WIDTHS = flags.DEFINE_list("widths", ["32", "64", "128"], "efSearch that are tried.")
_JSON = flags.DEFINE_string("json", "", "Write every figure there.")

K = 10
Search = Callable[[np.ndarray], np.ndarray]


def run() -> None:
    documents, queries = _made(command.required(_VECTORS), _NUMBER.value, _QUERIES.value)
    console = Console()
    contenders: dict[str, tuple[Search, float]] = {
        "exact": (lambda asked: nearest(asked, documents, K)[1], 0.0)
    }
    for name, build in (("usearch", _usearch), ("faiss", _faiss)):
        start = time.perf_counter()
        try:
            searches = build(documents)
        except ImportError:
            console.print(f"{name} is not installed, and is left out")
            continue
        seconds = time.perf_counter() - start
        contenders |= {f"{name} ef={ef}": (search, seconds) for ef, search in searches.items()}
    found = {name: search(queries) for name, (search, _) in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(_ROUNDS.value):
        for name, (search, _) in contenders.items():
            start = time.perf_counter()
            search(queries)
            taken[name].append(time.perf_counter() - start)
    figures = {
        name: {
            "recall@10": float(
                np.mean([_share(*pair) for pair in zip(rows, found["exact"], strict=True)])
            ),
            "queries_per_second": len(queries) / float(np.median(taken[name])),
            "build_seconds": contenders[name][1],
        }
        for name, rows in found.items()
    }
    table = Table(title=f"{len(documents):,} x {documents.shape[1]}, {len(queries):,} queries")
    for column in ("", "recall@10", "queries/s", "times exact", "build, s"):
        table.add_column(column, justify="right" if column else "left")
    base = figures["exact"]["queries_per_second"]
    for name, one in figures.items():
        speed = one["queries_per_second"]
        cells = (f"{one['recall@10']:.4f}", f"{speed:,.0f}", f"{speed / base:.2f}")
        table.add_row(name, *cells, f"{one['build_seconds']:.0f}")
    console.print(table)
    if _JSON.value:
        settings = {name: flags.FLAGS[name].value for name in ("number", "links", "build")}
        command.write_json(
            _JSON.value,
            {"figures": figures, "settings": settings, "machine": machine.describe()},
        )


def _made(path, number: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        real = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"--vectors: {path} cannot be read ({error}); give a .npy file.") from None
    if real.ndim != 2 or len(real) < 2:
        raise UserError(f"--vectors: {path} is {real.shape}; it should be [n, D].")
    rng = np.random.default_rng(0)
    wanted = max(0, number - len(real)) + queries
    share = rng.uniform(0.2, 0.8, (wanted, 1)).astype(np.float32)
    first, second = rng.integers(len(real), size=(2, wanted))
    noise = rng.normal(size=(wanted, real.shape[1])).astype(np.float32) * 0.02
    mixed = share * real[first] + (1 - share) * real[second] + noise
    every = np.concatenate([real[:number], mixed])
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    return every[:-queries], every[-queries:]


def _usearch(documents: np.ndarray) -> dict[int, Search]:
    from usearch.index import Index

    index = Index(
        ndim=documents.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=_LINKS.value,
        expansion_add=_BUILD.value,
    )
    index.add(np.arange(len(documents)), documents, threads=_THREADS.value)

    def search(asked: np.ndarray, ef: int) -> np.ndarray:
        index.expansion_search = ef
        return index.search(asked, K, threads=_THREADS.value).keys.astype(np.int64)

    return {int(ef): lambda asked, ef=int(ef): search(asked, ef) for ef in _WIDTHS.value}


def _faiss(documents: np.ndarray) -> dict[int, Search]:
    import faiss

    faiss.omp_set_num_threads(_THREADS.value)
    index = faiss.IndexHNSWFlat(documents.shape[1], _LINKS.value, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD.value
    index.add(documents)

    def search(asked: np.ndarray, ef: int) -> np.ndarray:
        index.hnsw.efSearch = ef
        return index.search(asked, K)[1]

    return {int(ef): lambda asked, ef=int(ef): search(asked, ef) for ef in _WIDTHS.value}


def _share(found: np.ndarray, truth: np.ndarray) -> float:
    return len(set(found.tolist()) & set(truth.tolist())) / len(truth)


if __name__ == "__main__":
    command.main(run)
