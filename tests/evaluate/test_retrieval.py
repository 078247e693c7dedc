import json

import pytest

from distilflax.errors import UserError
from distilflax.evaluate import retrieval


def test_first_line_is_the_query_and_the_rest_its_document():
    collection = retrieval.documentation(["Title.\n\nBody\n\nmore", "Other\nrest", "No body"])
    assert collection.queries == ("Title.", "Other")
    assert collection.documents == ("Body\n\nmore", "rest")
    assert collection.relevance == ({0: 1.0}, {1: 1.0})


def test_copies_are_neither_wrong_answers_nor_competitors():
    """One body under two titles is one document; one title with two bodies finds either."""
    collection = retrieval.documentation(["A\nsame", "B\nsame", "C\none", "C\ntwo", "A\nsame"])
    assert collection.documents == ("same", "one", "two")
    assert collection.queries == ("A", "B", "C")
    assert collection.relevance == ({0: 1.0}, {0: 1.0}, {1: 1.0, 2: 1.0})


def test_limit_takes_entries_from_the_whole():
    entries = [f"title {i}\nbody {i}" for i in range(100)]
    collection = retrieval.documentation(entries, limit=4)
    assert collection.queries == ("title 0", "title 25", "title 50", "title 75")


def test_too_little_documentation_is_an_error():
    with pytest.raises(UserError, match="has 1 entries with a first line and a body"):
        retrieval.documentation(["A\nbody", "no body"])


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({"data": {"validation_fraction": 0.02}}, 0.02),
        ({"data": {"train": "train.tsv"}}, 1.0),  # of a fine-tuning
        (None, 1.0),
    ],
)
def test_the_share_that_a_run_held_out_is_that_of_its_config(tmp_path, config, share):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert retrieval.held_out_by(str(tmp_path / "model")) == share
