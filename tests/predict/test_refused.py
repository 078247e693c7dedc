"""What a model's calls refuse, in one sentence: other kinds, what holds no texts, odd numbers."""

import functools
import inspect

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.predict.predictor import Predictor


def unchecked(model, call):
    """A method without its annotations, which only the tests check: as others call it."""
    return functools.partial(inspect.unwrap(getattr(Predictor, call)), model)


class Table:
    """As a DataFrame of pandas or polars: what it iterates over are no rows."""

    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    "wrong", [["x", None], [3], {"text": "x"}, [{"text": "x"}], Table(), np.array("x")]
)
@pytest.mark.parametrize(
    ("name", "call", "given"),
    [
        ("sequence", "classify", ()),
        ("pairs", "classify", ("x",)),
        ("token", "tag", ()),
        ("answer", "answer", ("x",)),
        ("none", "encode", ()),
        ("none", "index", ()),
        ("none", "search", ("x",)),
        ("sequence", "rerank_many", (["x"],)),
    ],
)
def test_what_holds_no_texts_is_refused(loaded, name, call, given, wrong):
    verb, _, many = call.partition("_")
    with pytest.raises(UserError, match=rf"^{verb} takes (a text|texts,) or .*, not \S"):
        unchecked(loaded[name], call)(*given, [wrong] if many else wrong)


@pytest.mark.parametrize(
    ("call", "given", "sentence"),
    [
        ("index", (np.ones((9, 5), np.float32),), "index was given an array of shape"),
        ("index", (np.ones(16, np.float32),), "index was given an array of shape"),
        ("index", (np.eye(9, 16), {"seed": -1}), "seed is -1"),
        ("search", ("x", ["a"], -1), "k is -1"),
        ("search", ("x", np.eye(9, 16), 2.0), r"k is 2\.0"),
        ("search", ("x", np.diag([1, 1, np.nan, 1] * 4)), "Query 0 and document 2 have no finite"),
    ],
)
def test_what_a_search_cannot_be_asked(loaded, call, given, sentence):
    pytest.importorskip("faiss", reason="the extra `search`", exc_type=ImportError)
    options = given[-1] if isinstance(given[-1], dict) else {}
    given = given[:-1] if options else given
    with pytest.raises(UserError, match=sentence):
        unchecked(loaded["none"], call)(*given, **options)


@pytest.mark.parametrize(
    ("name", "call", "given", "sentence"),
    [
        ("none", "classify", ("x",), "has no head for classify"),
        ("token", "classify", ("x",), "has a token head, and classify needs one of kind sequence"),
        ("sequence", "answer", ("x", "y"), "needs one of kind answer"),
    ],
)
def test_calls_that_cannot_be_are_one_sentence(loaded, name, call, given, sentence):
    with pytest.raises(UserError, match=sentence):
        getattr(loaded[name], call)(*given)
