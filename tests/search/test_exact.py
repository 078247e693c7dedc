import inspect

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.search import exact

QUERIES, DOCUMENTS = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)


def unit(rng, number, width=8):
    rows = rng.normal(size=(number, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 3, 7, 50, 1000])
def test_blocks_find_what_sorting_everything_finds(block):
    rng = np.random.default_rng(0)
    queries, documents = unit(rng, 11), unit(rng, 50)
    scores, found = exact.nearest(queries, documents, 5, query_block=4, document_block=block)
    everything = queries @ documents.T
    assert np.array_equal(found, np.argsort(-everything, axis=1)[:, :5])
    np.testing.assert_allclose(scores, np.sort(everything, axis=1)[:, ::-1][:, :5], atol=1e-6)


def test_padding_of_the_last_block_is_never_found():
    """Every real score is negative, so a row of zeros would win if it counted."""
    documents = np.array([[-1.0, 0.0], [-0.6, -0.8], [-0.8, 0.6]], np.float32)
    scores, found = exact.nearest(
        np.array([[1.0, 0.0]], np.float32), documents, 10, document_block=2
    )
    assert found.tolist() == [[1, 2, 0]]
    assert (scores < 0).all()


def test_of_equal_documents_the_first_wins_across_blocks():
    documents = np.tile(np.array([[1.0, 0.0]], np.float32), (9, 1))
    _, found = exact.nearest(documents[:1], documents, 4, document_block=2)
    assert found.tolist() == [[0, 1, 2, 3]]


def test_zeros_of_either_sign_are_equal():
    """An axis of zeros: -1 * 0 and 1 * 0 differ in sign alone."""
    documents = np.array([[-1.0], [1.0], [-1.0], [1.0]], np.float32)
    for signed in (1.0, -1.0):
        scores, found = exact.nearest(np.full((1, 1), signed * 0.0, np.float32), documents, 4)
        assert found.tolist() == [[0, 1, 2, 3]] and not np.signbit(scores).any()


def test_a_vector_of_zeros_has_no_length_to_be_divided_by():
    rows = np.array([[3.0, -4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(exact.at_unit_length(rows), [[0.6, -0.8], [0.0, 0.0]], rtol=1e-6)


def test_arrays_of_other_libraries_are_told_apart():
    torch = pytest.importorskip("torch")
    with pytest.raises(UserError, match=r"given as torch\.float32 of shape .*array of numpy's"):
        exact.check_vectors(torch.eye(3), "The queries")


def test_nothing_to_search_gives_nothing():
    nothing, something = np.zeros((0, 4), np.float32), np.ones((2, 4), np.float32)
    assert exact.nearest(nothing, something, 3)[1].shape == (0, 2)
    assert exact.nearest(something, nothing, 3)[1].shape == (2, 0)


def test_parts_that_are_not_on_the_device_together_find_the_same(tmp_path):
    """More blocks than are held at once, of int8, from a file that is never read whole."""
    rng = np.random.default_rng(1)
    documents = np.memmap(tmp_path / "vectors", np.int8, "w+", shape=(77, 4))
    documents[:] = rng.integers(-9, 9, documents.shape)
    queries = rng.integers(-9, 9, (5, 4)).astype(np.float32)
    scores, found = exact.nearest(queries, documents, 7, query_block=2, document_block=3)
    everything = queries @ documents.T.astype(np.float32)
    assert np.array_equal(found, np.argsort(-everything, axis=1, kind="stable")[:, :7])
    assert np.array_equal(scores, np.take_along_axis(everything, found, axis=1))


def test_few_programs_serve_queries_and_documents_of_any_number():
    exact._nearest.clear_cache()
    rng = np.random.default_rng(2)
    documents = unit(rng, 64)
    for number in range(5, 9):
        for count in (33, 50, 64):
            queries = unit(rng, number)
            scores, found = exact.nearest(queries, documents[:count], number)
            everything = queries @ documents[:count].T
            assert np.array_equal(found, np.argsort(-everything, axis=1)[:, :number])
            assert scores.shape == (number, number)
    assert exact._nearest._cache_size() == 1
    assert exact.nearest(queries, documents[:3], 99)[1].shape == (8, 3)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_vector_that_is_no_number_is_named(value):
    documents = np.array([[1.0, 0.0], [0.5, 0.5], [value, 0.0], [0.0, 1.0]], np.float32)
    with pytest.raises(UserError, match="Query 0 and document 2 have no finite score"):
        exact.nearest(documents[:2], documents, 1)


# Without the annotations, which only the tests check: who calls gets the sentence.
@pytest.mark.parametrize(
    ("queries", "documents", "k", "sentence"),
    [
        (QUERIES[:, :3], DOCUMENTS, 2, "queries have 3 coordinates and the documents 4"),
        (QUERIES[0], DOCUMENTS, 2, r"The queries are given as float32 of shape \(4,\)"),
        (QUERIES, DOCUMENTS[0], 2, r"The documents are given as float32 of shape \(4,\)"),
        (QUERIES.tolist(), DOCUMENTS, 2, "The queries are given as list; give an array"),
        (QUERIES, DOCUMENTS.astype(str), 2, "The documents are given as <U32 of shape"),
        (QUERIES, DOCUMENTS, -1, "k is -1"),
        (QUERIES, DOCUMENTS, 2.0, r"k is 2\.0"),
    ],
)
def test_what_cannot_be_searched(queries, documents, k, sentence):
    with pytest.raises(UserError, match=sentence):
        inspect.unwrap(exact.nearest)(queries, documents, k)
