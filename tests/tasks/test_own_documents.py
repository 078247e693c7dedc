"""A query that is a document of its folder: neither searched for nor a negative, titled or not."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.losses.sentence import allowed
from distilflax.search.collection import read_beir, retrieve
from distilflax.tasks.data import fingerprint
from distilflax.tasks.records import Faults
from distilflax.tasks.retrieval import Retrieval


def read(path):
    return Retrieval().read([path], Faults())


@pytest.fixture
def titled(tmp_path):
    """Two queries that are documents too, and answer each other: one's document has a title."""
    corpus = [("0", "On pets", "cat"), ("1", "", "dog"), ("2", "", "birds")]
    lines = [json.dumps(dict(zip(("_id", "title", "text"), row, strict=True))) for row in corpus]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"_id": name, "text": text}) for name, _, text in corpus[:2]]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("0\t1\t1\n1\t0\t1\n")
    return tmp_path / "qrels" / "dev.tsv"


def test_a_query_s_own_document_is_left_out_as_a_search_of_its_folder_does(titled):
    task, found = Retrieval(), read(titled)
    assert [q.itself for q in found] == ["On pets cat", "dog"]
    examples = task.arrange(found, training=False)
    assert [e.itself for e in examples] == ["On pets cat", "dog", "", "", ""]
    vectors = np.array([[1, 0.1], [0.1, 1], [1, 0], [0, 1], [-1, -1]], np.float32)
    figures = task.metrics([{"vectors": row[None]} for row in vectors], examples)
    collection = read_beir(titled.parent.parent, "dev")
    wanted = retrieve(vectors[:2], vectors[2:], collection.relevance, collection.itself)
    assert figures["mrr@10"] == wanted["mrr@10"].mean() == 1.0


def test_a_query_s_own_document_is_none_of_its_negatives(titled, words):
    task = Retrieval(negatives=0)
    groups = task.arrange(read(titled), training=True)
    assert [group.texts for group in groups] == [("cat", "dog"), ("dog", "On pets cat")]
    text = task.encode(words, groups, 16).targets["text"].reshape(2, 2)
    assert np.array(allowed(jnp.array(text))).tolist() == [[True, False], [False, True]]


def test_texts_alone_say_which_document_a_query_is(write):
    rows = [{"query": "cat", "positive": "dog"}, {"query": "who", "positive": "cat"}]
    rows.append({"query": "who", "positive": "who"})
    examples = Retrieval().arrange(read(write("a.jsonl", rows)), training=False)
    # "who" was judged, and so is asked for.
    assert [e.itself for e in examples[:2]] == ["cat", ""]


def test_fingerprints_are_those_of_published_results_where_no_query_is_a_document(titled):
    folder = titled.parent.parent
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "who"}')
    titled.write_text("q\t0\t2\nq\t1\t0\n")
    task, found = Retrieval(), read(titled)
    parts = [found, *(task.arrange(found, training=training) for training in (True, False))]
    published = ["0eba16668d87c011", "bb9242e6113bbbce", "f9d27a14c2c60665"]
    assert [fingerprint(part) for part in parts] == published
    for newer in ({"itself": "On pets cat"}, {"missing": (("2", 1.0),)}):
        assert fingerprint([found[0]._replace(**newer)]) != published[0]
