import math

import numpy as np
import pytest

from distilflax.search import exact, ranking


def scored(found, *relevance):
    scores = ranking.score(np.array(found), relevance)
    assert scores.keys() == ranking.METRICS.keys()
    return {name: values.tolist() for name, values in scores.items()}


def test_reciprocal_rank_is_that_of_the_first_relevant_document():
    scores = scored([[3, 1, 2, 0], [0, 1, 2, 3]], {2: 1.0, 0: 1.0}, {0: 1.0})
    assert scores["mrr@10"] == pytest.approx([1 / 3, 1.0])


def test_reciprocal_rank_is_zero_beyond_rank_ten():
    found = [list(range(12))]
    assert scored(found, {9: 1.0})["mrr@10"] == [0.1]
    assert scored(found, {10: 1.0})["mrr@10"] == [0.0]


def test_recall_divides_by_all_relevant_documents():
    scores = scored([[0, 1, 2]], {0: 1.0, 2: 1.0, 9: 1.0, 8: 1.0, 1: 0.0})
    assert scores["recall@1"] == [0.25]
    assert scores["recall@10"] == [0.5]


def test_recall_looks_as_deep_as_it_says():
    found = [list(range(120))]
    for rank, depths in ((1, {1, 10, 100}), (2, {10, 100}), (10, {10, 100}), (11, {100})):
        scores = scored(found, {rank - 1: 1.0})
        assert {depth for depth in (1, 10, 100) if scores[f"recall@{depth}"] == [1.0]} == depths
    assert scored(found, {99: 1.0, 100: 1.0})["recall@100"] == [0.5]


def test_ndcg_has_linear_gain_and_log2_discount():
    # Grades 0, 3, 1 at ranks 1, 2, 3; the best order would be 3, 2, 1 with document 7 unfound.
    reached = 3 / math.log2(3) + 1 / math.log2(4)
    best = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    scores = scored([[5, 6, 4]], {6: 3.0, 4: 1.0, 7: 2.0})
    assert scores["ndcg@10"] == pytest.approx([reached / best])


def test_ideal_of_ndcg_is_cut_at_ten_as_the_ranking_is():
    perfect = {i: 1.0 for i in range(25)}
    assert scored([list(range(25))], perfect)["ndcg@10"] == pytest.approx([1.0])


def test_negative_grades_are_neither_relevant_nor_a_penalty():
    scores = scored([[0, 1]], {0: -1.0, 1: 1.0})
    assert scores["mrr@10"] == [0.5]
    assert scores["ndcg@10"] == pytest.approx([1 / math.log2(3)])


def test_query_without_relevant_documents_scores_zero():
    assert all(values == [0.0] for values in scored([[0, 1]], {1: 0.0}).values())


@pytest.mark.parity
def test_agrees_with_sentence_transformers():
    pytest.importorskip("torch")
    evaluators = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    rng = np.random.default_rng(0)
    found = np.stack([rng.permutation(40) for _ in range(12)])
    relevance = [{int(d): 1.0 for d in rng.choice(40, rng.integers(1, 6), False)} for _ in found]
    evaluator = evaluators.InformationRetrievalEvaluator(
        {str(q): "" for q in range(len(found))},
        {str(d): "" for d in range(40)},
        {str(q): {str(d) for d in grades} for q, grades in enumerate(relevance)},
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[10],
        precision_recall_at_k=[1, 10, 100],
        map_at_k=[100],
    )
    results = [
        [{"corpus_id": str(d), "score": -float(rank)} for rank, d in enumerate(row)]
        for row in found
    ]
    theirs = evaluator.compute_metrics(results)
    ours = {name: values.mean() for name, values in ranking.score(found, relevance).items()}
    assert ours["mrr@10"] == pytest.approx(theirs["mrr@k"][10])
    assert ours["ndcg@10"] == pytest.approx(theirs["ndcg@k"][10])
    for depth in (1, 10, 100):
        assert ours[f"recall@{depth}"] == pytest.approx(theirs["recall@k"][depth])


def test_agrees_with_ir_measures_on_ties_grades_and_documents_that_are_not_found():
    """trec_eval's own code, below ir-measures: it sorts by score, and equal scores by name from the
    last to the first. So are documents named here, for among equals exact search finds the first.
    """
    measures = pytest.importorskip("ir_measures")
    rng = np.random.default_rng(0)
    documents = np.eye(6, dtype=np.float32)[rng.integers(0, 6, 150)]  # six directions: many ties
    queries = rng.normal(size=(40, 6)).astype(np.float32)
    found_scores, found = exact.nearest(queries, documents, ranking.DEEPEST)
    assert (np.diff(found_scores, axis=1) == 0).any()
    # Of 150 documents 100 are found: some that are relevant are not among them.
    relevance = [
        {int(d): float(rng.integers(0, 4)) for d in rng.choice(150, 20, False)} | {q: 2.0}
        for q in range(len(queries))
    ]
    assert any(
        set(grades) - set(row) for grades, row in zip(relevance, found.tolist(), strict=True)
    )
    name = lambda document: str(999 - document)  # noqa: E731
    judged = {
        str(q): {name(d): int(grade) for d, grade in grades.items()}
        for q, grades in enumerate(relevance)
    }
    run = {
        str(q): {name(int(d)): float(s) for d, s in zip(row, values, strict=True)}
        for q, (row, values) in enumerate(zip(found, found_scores, strict=True))
    }
    # RR@10 would be that of MS MARCO's script, which has no rule for ties.
    theirs = {
        "mrr@10": measures.RR,
        "ndcg@10": measures.nDCG @ 10,
        **{f"recall@{depth}": measures.R @ depth for depth in (1, 10, 100)},
    }
    assert theirs.keys() == ranking.METRICS.keys()
    ours = ranking.score(found, relevance)
    called = {str(measure): metric for metric, measure in theirs.items()}
    for one in measures.iter_calc(theirs.values(), judged, run):
        own = ours[called[str(one.measure)]][int(one.query_id)]
        beyond = one.measure == measures.RR and one.value < 1 / 10
        assert own == pytest.approx(0 if beyond else one.value, abs=1e-6), one
