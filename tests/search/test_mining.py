import numpy as np

from distilflax.search import mining

# Cosines with the query: 1, 0.96, 0.9, 0.8, 0.6, 0.
DOCUMENTS = np.array([[c, np.sqrt(1 - c * c)] for c in (1, 0.96, 0.9, 0.8, 0.6, 0)], np.float32)
QUERY = np.array([[1.0, 0.0]], np.float32)


def mine(relevance, **options):
    usual = {
        "number": 2,
        "depth": 100,
        "skip": 0,
        "margin": 0.05,
        "itself": (-1,),
        "texts": "abcdef",
    }
    return mining.hard_negatives(QUERY, DOCUMENTS, [relevance], **usual | options)


def test_what_is_nearer_than_the_positive_is_suspect():
    mined, suspects = mine({2: 1.0}, margin=0.0)
    assert [one.negatives for one in mined] == [(3, 4)] and suspects == 2
    np.testing.assert_allclose(mined[0].scores, (0.9, 0.8, 0.6), atol=1e-6)
    assert mine({2: 1.0}, margin=0.2)[0][0].negatives == (4, 5)
    assert mine({2: 1.0}, margin=-1.0)[0][0].negatives == (0, 1)


def test_what_answers_is_no_negative_and_what_was_judged_not_to_is_one():
    mined, _ = mine({0: 2.0, 3: 1.0, 1: 0.0}, margin=0.01)
    assert [(one.positive, one.negatives) for one in mined] == [(0, (1, 2)), (3, (4, 5))]


def test_a_copy_of_what_answers_is_no_negative():
    """Not judged, or judged not to answer, it lies below another positive less the margin."""
    texts = ("a", "b", "b", "c", "b", "d")
    for unsaid in ({}, {2: 0.0}):
        mined, suspects = mine({0: 1.0, 1: 1.0, **unsaid}, margin=0.05, texts=texts)
        assert [(one.positive, one.negatives) for one in mined] == [(0, (3, 5)), (1, (3, 5))]
        assert suspects == 0


def test_a_query_s_own_document_is_as_if_it_were_not_there():
    assert mine({2: 1.0}, margin=-1.0, itself=(0,))[0][0].negatives == (1, 3)
    assert mine({2: 1.0}, margin=-1.0, itself=(0,), depth=2, skip=1)[0][0].negatives == (3,)
    mined, suspects = mine({2: 1.0}, margin=0.0, itself=(0,))
    assert mined[0].negatives == (3, 4) and suspects == 1


def test_depth_and_skip_are_counted_from_the_nearest():
    assert mine({0: 1.0}, margin=0.0, depth=2)[0][0].negatives == (1,)
    assert mine({0: 1.0}, margin=0.0, skip=3)[0][0].negatives == (3, 4)
    assert mine({0: 1.0}, margin=0.0, depth=2, skip=2)[0][0].negatives == (2, 3)
