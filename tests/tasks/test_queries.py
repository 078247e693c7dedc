"""Records of queries that cannot be: each is told of in one sentence, and none shifts another."""

import pytest

from distilflax.errors import UserError
from distilflax.tasks.records import Faults
from distilflax.tasks.retrieval import Retrieval


@pytest.mark.parametrize(
    ("record", "options", "sentence"),
    [
        ({"query": "who"}, {}, "no column 'positive'.*choose from query"),
        ({"query": " ", "positive": "x"}, {}, "line 1: 'query' is empty"),
        ({"query": "who", "positive": []}, {}, "line 1: 'positive' is empty"),
        ({"query": ["a", "b"], "positive": "x"}, {}, "'query' is a list"),
        (
            {"query": "a", "positive": "x", "score": "high"},
            {"loss_name": "cosent"},
            "'score' is 'high', not a number",
        ),
        (
            {"query": "a", "positive": "x", "negative": ["y", "z"], "score": [1, 2]},
            {"loss_name": "margin_mse"},
            "has 2 scores for 3 texts",
        ),
        (
            # A margin is that of a positive and a negative.
            {"query": "a", "positive": ["x", "y"], "score": 0.9},
            {"loss_name": "margin_mse"},
            "has 1 scores for 2 texts",
        ),
        (
            {"query": "a", "positive": ["x", "y"], "score": 0.9},
            {"loss_name": "cosent"},
            "line 1: 'positive' has 2 texts, and a pair has one",
        ),
        (
            {"query": "a", "positive": ["x", "y"], "score": [0.9, 0.1]},
            {"loss_name": "cosent"},
            "line 1: 'positive' has 2 texts, and a pair has one",
        ),
        (
            {"query": "a", "positive": "x", "score": [0.9, 0.1]},
            {"loss_name": "cosent"},
            "has 2 scores for 1 texts",
        ),
    ],
)
def test_faulty_records_are_one_sentence(write, record, options, sentence):
    with pytest.raises(UserError, match=sentence):
        Retrieval(**options).read([write("a.jsonl", [record])], Faults())
