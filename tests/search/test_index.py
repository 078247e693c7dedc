"""The index: what it finds beside exact search, what it keeps on disk, what it refuses."""

import inspect
import json
import shutil
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distilflax.errors import UserError
from distilflax.search import exact, index
from distilflax.text import on_disk

pytest.importorskip("faiss", reason="the extra `search`", exc_type=ImportError)

COUNT, WIDTH = 2000, 32


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(60, WIDTH))
    return unit(topics[rng.integers(60, size=COUNT)] + 0.6 * rng.normal(size=(COUNT, WIDTH)))


@pytest.fixture(scope="module")
def queries(vectors):
    rng = np.random.default_rng(1)
    return unit(vectors[rng.integers(COUNT, size=64)] + 0.05 * rng.normal(size=(64, WIDTH)))


@pytest.fixture(scope="module", params=index.KINDS)
def built(request, vectors):
    return index.build(vectors, kind=request.param, encoder="a" * 64)


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory):
    return index.save(built, tmp_path_factory.mktemp("index") / built.kind)


def recall(found, wanted):
    return np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, wanted, strict=True)])


def test_it_finds_what_exact_search_finds(built, vectors, queries):
    scores, wanted = exact.nearest(queries, vectors, 10)
    found_scores, found = built.nearest(queries, 10)
    assert recall(found, wanted) >= 0.95
    assert (np.diff(found_scores, axis=1) <= 0).all()
    np.testing.assert_allclose(found_scores[:, 0], scores[:, 0], atol=2e-2)
    assert (built.cells, built.width, len(built)) == (89, WIDTH, COUNT)


def test_every_cell_and_the_vectors_themselves_are_exact_search(built, vectors, queries, tmp_path):
    on_disk = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=vectors.shape)
    on_disk[:] = vectors
    scores, wanted = exact.nearest(queries, vectors, 10)
    found_scores, found = built.nearest(queries, 10, probes=built.cells, vectors=on_disk)
    assert np.array_equal(found, wanted)
    np.testing.assert_allclose(found_scores, scores, atol=1e-6)


def test_a_loaded_index_answers_as_the_one_that_was_saved(built, saved, queries):
    again = index.load(saved, encoder="a" * 64)
    for ours, theirs in zip(again.nearest(queries, 7), built.nearest(queries, 7), strict=True):
        assert np.array_equal(ours, theirs)
    assert {path.name for path in saved.iterdir()} == {index.MANIFEST, index.ARRAYS}
    bytes_each = {"float16": 2, "int8": 1}[built.kind] * WIDTH + 8
    assert (saved / index.ARRAYS).stat().st_size < COUNT * bytes_each + 20_000


def test_a_folder_that_is_reached_by_a_link_is_saved_to_again_and_again(vectors, tmp_path):
    link = tmp_path / "link"
    (tmp_path / "there").mkdir()
    link.symlink_to(tmp_path / "there")
    # As an index was left whose link had been taken for it.
    (tmp_path / ".there.replaced").symlink_to(tmp_path)
    for count in (9, 8, 7):
        index.save(index.build(vectors[:count]), link)
        assert len(index.load(tmp_path / "there")) == count and link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_the_same_vectors_make_the_same_index(built, vectors, queries):
    again = index.build(vectors, kind=built.kind)
    assert np.array_equal(again.nearest(queries, 5)[1], built.nearest(queries, 5)[1])


def test_few_vectors_and_many_asked_for(vectors):
    few = index.build(vectors[:3])
    scores, found = few.nearest(vectors[:1], 10, probes=99)
    assert found[0, 0] == 0 and sorted(found[0]) == [0, 1, 2] and scores[0, 0] > 0.99
    # Cells that hold fewer than were asked for.
    scores, found = few.nearest(vectors[:1], 3, probes=1)
    assert (found[0] == -1).sum() == np.isinf(scores[0]).sum() == 3 - (found[0] >= 0).sum() > 0
    assert few.nearest(vectors[:0], 5)[1].shape == (0, 3)


def test_threads_may_ask_for_different_depths_at_once(built, queries):
    wanted = {probes: built.nearest(queries, 5, probes=probes)[1] for probes in (1, 40)}
    wrong = []

    def ask(probes):
        for _ in range(10):
            if not np.array_equal(built.nearest(queries, 5, probes=probes)[1], wanted[probes]):
                wrong.append(probes)

    threads = [threading.Thread(target=ask, args=[probes]) for probes in (1, 40, 1, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not np.array_equal(wanted[1], wanted[40])


def test_what_cannot_be_an_index(vectors, tmp_path):
    for rows, options, sentence in (
        (2 * vectors, {}, "Vector 0 is not of unit length"),
        (np.full((3, 4), np.nan, np.float32), {}, "not of unit length"),
        (vectors[:0], {}, "no vectors"),
        (vectors, {"kind": "int4"}, "no kind of index"),
        (vectors, {"seed": -1}, "seed is -1 and cells are 0"),
        (vectors, {"cells": -1}, "seed is 0 and cells are -1"),
        (vectors, {"cells": 2.5}, r"seed is 0 and cells are 2\.5"),
        (vectors, {"seed": None}, "seed is None and cells are 0"),
        (vectors, {"seed": True}, "seed is True and cells are 0"),
        (vectors[0], {}, r"The vectors are given as float32 of shape \(32,\)"),
        (vectors.astype(str), {}, "The vectors are given as <U32 of shape"),
        (vectors.tolist(), {}, "The vectors are given as list"),
    ):
        with pytest.raises(UserError, match=sentence):
            inspect.unwrap(index.build)(rows, **options)
    with pytest.raises(UserError, match="is no index"):
        index.load(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="something else than an index"):
        index.save(index.build(vectors[:9]), tmp_path)


def test_queries_and_vectors_of_another_shape(built, vectors, queries):
    with pytest.raises(UserError, match="16 coordinates and the index holds vectors of 32"):
        built.nearest(queries[:, :16], 3)
    with pytest.raises(UserError, match="give those that it was built from"):
        built.nearest(queries, 3, vectors=vectors[1:])
    nearest = inspect.unwrap(index.Index.nearest)
    for given, k, options, sentence in (
        (queries[0], 3, {}, r"The queries are given as float32 of shape \(32,\)"),
        (queries, -1, {}, "k is -1"),
        (queries * np.nan, 3, {}, "Query 0 holds NaN"),
        (queries, 3, {"probes": 2.5}, r"probes is 2\.5"),
        (queries, 3, {"probes": None}, "probes is None"),
        (queries, 3, {"probes": 0}, "probes is 0"),
        (queries, 3, {"vectors": vectors.tolist()}, "The vectors are given as list"),
    ):
        with pytest.raises(UserError, match=sentence):
            nearest(built, given, k, **options)


def test_numbers_of_numpy_are_numbers(vectors):
    build, nearest = inspect.unwrap(index.build), inspect.unwrap(index.Index.nearest)
    one = build(vectors[:9], cells=np.int64(3), seed=np.uint8(2))
    other = build(vectors[:9], cells=3, seed=2)
    assert one.cells == 3
    found = nearest(one, vectors[:2], np.int32(4), probes=np.int64(2))[1]
    assert np.array_equal(found, other.nearest(vectors[:2], 4, probes=2)[1])


def test_vectors_that_hold_nan_are_refused_and_not_put_last(vectors):
    few = index.build(vectors[:9], cells=1)
    wrong = vectors[:9].copy()
    wrong[5, 0] = np.nan
    with pytest.raises(UserError, match="Query 0 and document 5 have no finite score"):
        few.nearest(vectors[:1], 3, vectors=wrong)
    # What was not found, or does not fill up, is no matter.
    few = index.build(vectors[:9], cells=9)
    scores, found = few.nearest(vectors[:1], 3, probes=1, vectors=wrong)
    assert found[0, 0] == 0 and np.isfinite(scores[found >= 0]).all()


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300])
def test_a_folder_that_cannot_be_looked_up(built, name):
    with pytest.raises(UserError, match="cannot be looked up"):
        index.load(name)
    with pytest.raises(UserError, match="cannot be looked up"):
        index.save(built, name)


def test_an_index_of_another_encoder(saved):
    with pytest.raises(UserError, match="another model"):
        index.load(saved, encoder="b" * 64)


def manifest(folder, **values):
    path = folder / index.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def arrays(folder, change):
    """Changes the arrays, and what the manifest says of their checksum with them."""
    tensors = load_file(folder / index.ARRAYS)
    change(tensors)
    save_file(tensors, folder / index.ARRAYS)
    manifest(folder, sha256=on_disk.sha256(folder / index.ARRAYS))


def flipped(folder):
    data = bytearray((folder / index.ARRAYS).read_bytes())
    data[-7] ^= 1
    (folder / index.ARRAYS).write_bytes(data)


def truncated(folder):
    data = (folder / index.ARRAYS).read_bytes()
    (folder / index.ARRAYS).write_bytes(data[: len(data) // 2])


DAMAGE = {
    "a flipped bit": (flipped, "another checksum"),
    "truncated": (truncated, "truncated"),
    "no arrays": (lambda f: (f / index.ARRAYS).unlink(), "cannot be read"),
    "not json": (lambda f: (f / index.MANIFEST).write_text("{"), "not valid JSON"),
    "absurd count": (lambda f: manifest(f, count=2**60), "does not hold the"),
    "no count": (lambda f: manifest(f, count=None), "count is None"),
    "other version": (lambda f: manifest(f, version=1), "does not read"),
    "other metric": (lambda f: manifest(f, metric="l2"), "does not read"),
    "a row beyond": (
        lambda f: arrays(f, lambda t: t["rows"].__setitem__(0, COUNT)),
        "contradict each other",
    ),
    "a row below": (
        lambda f: arrays(f, lambda t: t["rows"].__setitem__(0, -1)),
        "contradict each other",
    ),
    "more in a cell": (
        lambda f: arrays(f, lambda t: t["sizes"].__setitem__(0, 2_000_000_000)),
        "contradict each other",
    ),
    "fewer than nothing": (
        lambda f: arrays(f, lambda t: t["sizes"].__setitem__(slice(2), [-5, 10])),
        "contradict each other",
    ),
    "a centroid that is none": (
        lambda f: arrays(f, lambda t: t["centroids"].__setitem__((0, 0), np.nan)),
        "contradict each other",
    ),
    "another type": (
        lambda f: arrays(f, lambda t: t.update(rows=t["rows"].astype(np.float64))),
        "does not hold the",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_before_faiss_sees_it(name, saved, tmp_path):
    damage, sentence = DAMAGE[name]
    folder = shutil.copytree(saved, tmp_path / "index")
    damage(folder)
    with pytest.raises(UserError, match=sentence):
        index.load(folder)
