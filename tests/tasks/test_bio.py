"""Spans, which tag may follow which, and decoding that keeps to it."""

import itertools

import numpy as np
import pytest

from distilflax.tasks import bio

BIO = ["O", "B-x", "I-x", "B-y", "I-y"]
BIOES = ["O", "B-x", "I-x", "E-x", "S-x"]


@pytest.mark.parametrize(
    ("tags", "scheme", "wrong"),
    [
        (["O", "B-x", "I-x", "O"], "bio", None),
        (["I-x"], "bio", 0),
        (["B-x", "I-y"], "bio", 1),
        (["B-x", "O", "I-x"], "bio", 2),
        (["B-x", "B-x", "I-x"], "bio", None),
        (["B-x", "E-x", "S-x"], "bioes", None),
        (["B-x", "O"], "bioes", 1),
        (["B-x"], "bioes", 0),
        (["E-x"], "bioes", 0),
        (["NOUN", "I-x"], "plain", None),
        ([], "bio", None),
    ],
)
def test_the_first_error_is_found(tags, scheme, wrong):
    assert bio.first_error(tags, scheme) == wrong


def test_the_scheme_is_told_by_the_tags():
    assert bio.scheme_of(BIO) == "bio"
    assert bio.scheme_of(BIOES) == "bioes"
    assert bio.scheme_of(["NOUN", "VERB", "O"]) == "plain"
    assert bio.scheme_of(["B", "I", "O"]) == "bio"
    assert bio.scheme_of(["B-x", "L-x", "U-x", "I-x", "O"]) == "bioes"
    assert bio.scheme_of(["B-x", "M-x", "E-x", "S-x"]) == "bioes"
    for parts_of_speech in (["B", "I", "S"], ["I-x", "NN"], ["O", "N", "V"], ["O", "X"]):
        assert bio.scheme_of(parts_of_speech) == "plain"
    # Letters that spans have too, but without those that make spans of them, or beside others.
    assert bio.scheme_of(["O", "S"]) == bio.scheme_of(["B", "I", "O", "N"]) == "plain"


def test_a_slip_does_not_make_spans_plain():
    assert bio.scheme_of([*BIO, "BORG"]) == bio.scheme_of([*BIO, "o", "B-"]) == "bio"
    assert bio.is_tag("O") and not any(map(bio.is_tag, ("o", "BORG", "B-", "N-x")))


def test_other_letters_are_those_of_bioes():
    tags = ["B-x", "I-x", "L-x", "U-y", "O", "[CLS]", "B", "M-x"]
    assert bio.in_bioes(tags) == ["B-x", "I-x", "E-x", "S-y", "O", "O", "B", "I-x"]
    assert bio.spans(tags[:6]) == [(0, 3, "x"), (3, 4, "y")]
    assert bio.first_error(["B-x", "U-x"], "bioes") == 1


def test_io_becomes_bio():
    assert bio.from_io(["x", "x", "O", "x", "y"]) == ["B-x", "I-x", "O", "B-x", "B-y"]


def test_brackets_become_bio():
    tags = ["(x*", "*", "*)", "*", "(y)", "(x*)", "(y*", "*)"]
    found = ["B-x", "I-x", "I-x", "O", "B-y", "B-x", "B-y", "I-y"]
    assert bio.from_brackets(tags) == found and bio.from_brackets([]) == []
    assert bio.kinds_in_brackets([*tags, "-"]) == {"x", "y"}
    assert bio.are_brackets(tags) and not bio.are_brackets([*tags, "O"])
    assert not bio.are_brackets(["(", ")"])  # parts of speech
    for wrong in (["(x*"], ["*)"], ["(x*", "(y)", "*)"], ["O"], ["((x*", "*))"], [""]):
        assert bio.from_brackets(wrong) is None


def test_iob1_becomes_bio():
    assert bio.from_iob1(["I-x", "I-x", "B-x", "I-y", "O", "I-y"]) == [
        "B-x",
        "I-x",
        "B-x",
        "B-y",
        "O",
        "B-y",
    ]


def test_labels_that_go_on_with_what_they_cannot_begin_are_iob1():
    assert bio.in_iob1(["O", "B-x", "I-x", "I-y"]) and bio.in_iob1(["O", "I"])
    assert not any(map(bio.in_iob1, (BIO, BIOES, ["O", "B-x"], ["I", "N", "V"], [])))
    assert bio.begins("B-y", ["I-y"]) and bio.begins("B", ["I"])
    assert not bio.begins("I-y", ["I-y"]) and not bio.begins("B-x", ["I-y"])


def test_spans_are_those_of_seqeval():
    get_entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    for scheme in (BIO, BIOES):
        for tags in itertools.product(scheme, repeat=4):
            expected = [(first, last + 1, kind) for kind, first, last in get_entities(list(tags))]
            assert bio.spans(tags) == expected, tags


@pytest.mark.parametrize("labels", [BIO, BIOES])
def test_decoding_finds_the_best_legal_sequence(labels):
    scheme = bio.scheme_of(labels)
    moves = bio.legal_moves(labels, scheme)
    ends = np.array([bio.may_end(tag, scheme) for tag in labels])
    rng = np.random.default_rng(0)
    legal = [
        path
        for path in itertools.product(range(len(labels)), repeat=4)
        if bio.first_error([labels[i] for i in path], scheme) is None
    ]
    for _ in range(20):
        log_p = rng.normal(size=(4, len(labels)))
        best = max(legal, key=lambda path: sum(log_p[i, tag] for i, tag in enumerate(path)))
        assert tuple(bio.best_legal(log_p, moves, ends)) == best
