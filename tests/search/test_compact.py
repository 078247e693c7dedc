import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.search import compact, exact


@pytest.fixture(scope="module")
def vectors():
    rows = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    rows[:, 6:] *= 0.2
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def found(vectors, text, k=5):
    return compact.nearest(vectors[:7], compact.compress(vectors, compact.form(text)), k)


def test_float32_is_exact_search(vectors):
    pairs = zip(found(vectors, "float32"), exact.nearest(vectors[:7], vectors, 5), strict=True)
    for ours, exactly in pairs:
        np.testing.assert_array_equal(ours, exactly)


def test_int8_is_off_by_half_a_step_at_most(vectors):
    kept = compact.compress(vectors, compact.Form("int8"))
    assert kept.codes.dtype == np.int8 and kept.codes.nbytes == vectors.nbytes / 4
    assert (np.abs(kept.codes * kept.scale - vectors) <= kept.scale / 2 + 1e-6).all()
    scores, indices = found(vectors, "int8")
    wanted = np.einsum("qd,qkd->qk", vectors[:7], (kept.codes * kept.scale)[indices])
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert (indices[:, 0] == np.arange(7)).all()


def test_int8_has_a_range_for_each_coordinate(vectors):
    kept = compact.compress(vectors, compact.Form("int8"))
    np.testing.assert_allclose(kept.scale, np.abs(vectors).max(axis=0) / 127, rtol=1e-6)
    assert (np.abs(kept.codes).max(axis=0) == 127).all()


def test_a_coordinate_that_is_zero_in_all_vectors_stays_zero(vectors):
    flat = vectors.copy()
    flat[:, 3] = 0.0
    kept = compact.compress(flat, compact.Form("int8"))
    assert np.isfinite(kept.scale).all() and not kept.codes[:, 3].any()
    np.testing.assert_allclose(compact.restored(kept)[:, 3], 0.0)


def test_binary_is_the_signs(vectors):
    kept = compact.compress(vectors, compact.Form("binary"))
    assert kept.codes.shape == (60, 2)  # 12 bits
    signs = np.where(vectors > 0, 1, -1)
    assert np.array_equal(kept.decode(kept.codes), signs)
    scores, _ = found(vectors, "binary")
    every = vectors[:7] @ signs.T
    np.testing.assert_allclose(scores, -np.sort(-every, axis=1)[:, :5], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(compact.restored(kept), axis=1), 1.0, atol=1e-6)


def test_candidates_of_the_signs_are_ordered_by_int8(vectors):
    _, rough = found(vectors, "binary", 20)
    scores, indices = found(vectors, "binary>int8")
    fine = compact.restored(compact.compress(vectors, compact.Form("int8")))
    both = compact.restored(compact.compress(vectors, compact.Form("binary>int8")))
    np.testing.assert_array_equal(both, fine)  # pairs, which nothing is searched for
    for q in range(7):
        near = {int(i): float(vectors[q] @ fine[i]) for i in rough[q]}
        assert indices[q].tolist() == sorted(near, key=near.get, reverse=True)[:5]
    assert (np.diff(scores, axis=1) <= 0).all()
    # More than there are: all of them, in the order of int8.
    assert sorted(found(vectors, "binary>int8", 60)[1][0].tolist()) == list(range(60))


def test_a_width_keeps_the_first_coordinates(vectors):
    short = vectors[:, :6] / np.linalg.norm(vectors[:, :6], axis=1, keepdims=True)
    scores, indices = found(vectors, "float32:6")
    wanted = exact.nearest(short[:7], short, 5)
    np.testing.assert_array_equal(indices, wanted[1])
    np.testing.assert_allclose(scores, wanted[0], atol=1e-6)
    assert compact.form("int8:6").bytes_a_vector(12) == 6
    assert compact.form("binary>int8").bytes_a_vector(8) == 9


@pytest.mark.parametrize("text", ["int4", "int8:", "int8:x", "int8:0"])
def test_forms_that_cannot_be(text):
    with pytest.raises(UserError, match=r"is no form of vectors|is no width"):
        compact.form(text)
    with pytest.raises(UserError, match="cannot be cut to 20"):
        compact.shortened(np.ones((1, 12), np.float32), 20)


def test_vectors_that_are_compared_by_inner_product_keep_their_lengths():
    rng = np.random.default_rng(0)
    documents = (rng.normal(size=(50, 8)) * rng.uniform(1, 9, (50, 1))).astype(np.float32)
    query = rng.normal(size=(1, 8)).astype(np.float32)
    kept = compact.compress(documents, compact.form("float32:4"), unit=False)
    scores, found = compact.nearest(query, kept, 3)
    wanted = documents[:, :4] @ query[0, :4]
    assert found[0].tolist() == np.argsort(-wanted)[:3].tolist()
    np.testing.assert_allclose(scores[0], np.sort(wanted)[::-1][:3], rtol=1e-5)
