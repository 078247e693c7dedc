"""What a model's calls refuse, in one sentence: other kinds, what holds no texts, odd numbers."""

import functools
import inspect
import os

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.predict import checked, load
from distilflax.predict.predictor import Predictor
from distilflax.settings import Compute


def unchecked(model, call):
    """A method without its annotations, which only the tests check: as others call it."""
    return functools.partial(inspect.unwrap(getattr(Predictor, call)), model)


class Table:
    """As a DataFrame of pandas or polars: what it iterates over are no rows."""

    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    "wrong",
    [
        ["x", None],
        [3],
        {"text": "x"},
        [{"text": "x"}],
        Table(),
        np.array("x"),
        b"",
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc"),
    ],
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


def test_bytes_are_not_taken_for_their_numbers():
    for given in (b"abc", [b"abc"]):
        with pytest.raises(UserError, match=r"^classify takes a text or .*, not b'abc'"):
            checked.listed(given, "classify")


@pytest.mark.parametrize(
    ("call", "given", "sentence"),
    [
        ("index", (np.ones((9, 5), np.float32),), "index was given an array of shape"),
        ("index", (np.ones(16, np.float32),), "index was given an array of shape"),
        ("index", (np.eye(9, 16), {"seed": -1}), "seed is -1"),
        ("index", (np.eye(9, 16), {"scale": True}), "index was given scale, which the model says"),
        ("index", (["a"], {"encoder": "x"}), "index was given encoder, which the model says"),
        ("search", ("x", ["a"], {"probes": "x"}), "given probes, .* a corpus that is none"),
        ("search", ("x", np.eye(9, 16), {"vectors": 5}), "given vectors, .* a corpus that is none"),
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


@pytest.mark.parametrize("prompt", [5, b"x", ["x"]])
def test_a_prompt_is_a_text(loaded, prompt):
    with pytest.raises(UserError, match=r"^prompt is .*; give a text, or None"):
        unchecked(loaded["none"], "encode")("x", prompt=prompt)


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        ("bf16", r"^compute is 'bf16'; give a Compute of distilflax\.settings"),
        (Compute(dtype="bf16"), r"^compute\.dtype is 'bf16'; choose from float32, bfloat16"),
    ],
)
def test_how_to_compute_is_a_compute(models_by_kind, compute, sentence):
    with pytest.raises(UserError, match=sentence):
        inspect.unwrap(load)(models_by_kind["none"], compute=compute)


def test_a_length_is_a_whole_number_of_any_library(loaded):
    encoder = loaded["none"].encoder
    found = checked.length(np.int64(8), 8, encoder, "m")
    assert type(found) is int and found == 8
    for wrong in (True, 8.0, "8", 7, 33, np.int64(33)):
        with pytest.raises(UserError, match=r"^max_length is .*; m takes from 8 to 32 tokens\.$"):
            checked.length(wrong, 8, encoder, "m")


@pytest.mark.parametrize(
    ("name", "call", "given"),
    [
        ("sequence", "classify", ("x",)),
        ("token", "tag", ("x",)),
        ("answer", "answer", ("x", "y")),
        ("none", "encode", ("x",)),
        ("none", "search", ("x", ["y"])),
        ("none", "index", (np.eye(9, 16),)),
        ("sequence", "rerank", ("x", ["y"])),
    ],
)
def test_a_fork_is_told_that_it_would_wait_for_ever(loaded, monkeypatch, name, call, given):
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(UserError, match=rf"is a fork of {parent}, .*'spawn'\.$"):
        getattr(loaded[name], call)(*given)


def test_nor_does_a_fork_load_a_model(loaded, models_by_kind, monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(UserError, match=f"is a fork of {parent}, which had loaded a model"):
        load(models_by_kind["none"])
