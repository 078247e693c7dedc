"""Baselines: they go through the task's own scorer, and are no worse than their idea."""

import json

import jax
import pytest

from distilflax import models, settings, weights
from distilflax.evaluate import classic
from distilflax.tasks.data import prepare
from distilflax.tasks.settings import default_config, from_values
from distilflax.text import tokenizer

FILMS = [("a charming film", "good"), ("a dull film", "bad"), ("charming and short", "good")]
FILMS += [("dull and long", "bad"), ("what is the time", "none")]
TAGGED = [("Anna lives in Paris", "B-per O O B-loc"), ("New York has Anna", "B-loc I-loc O B-per")]
TAGGED += [("Paris sings", "B-per O")]
ASKED = [("where", "Anna lives in Paris", ["Paris"]), ("when", "it rains", []), ("why", "so", [])]
ALIKE = [("a red cat", "a red cat", 5.0), ("a red cat", "the red dog", 2.0), ("sea", "rain", 0.0)]
DOCUMENTS = ["the cats were sleeping", "rain on the sea", "towers by a river"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny encoder, of which only the tokenizer is used."""
    folder = tmp_path_factory.mktemp("classic")
    words = tokenizer.train(lambda: DOCUMENTS * 3, folder / "words", 90, min_frequency=1)
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    encoder = settings.Encoder(vocab_size=words.vocab_size, max_positions=64, **sizes)
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    weights.save(folder / "model", encoder, params, tokenizer_folder=folder / "words")
    return str(folder / "model")


@pytest.fixture
def materials(model, tmp_path):
    """materials(task, records, option=...) with the same records for train, dev and, unless `test`
    names another file, test."""

    def make(task, rows, test="a.jsonl", **options):
        values = default_config(task).to_dict()
        files = dict.fromkeys(("train", "dev"), "a.jsonl") | {"test": test}
        values["model"]["path"] = model
        values["data"] |= {"folder": str(tmp_path), "max_length": 64} | files
        values["options"] |= options
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return prepare(from_values(values), lambda text: None)

    return make


def test_words_are_told_apart_and_what_is_like_none_of_them_is_declined(materials):
    rows = [{"text": text, "label": label} for text, label in FILMS * 4]
    found = classic.baseline(materials("classification", rows, out_of_scope="none"))
    assert found.figures["in_scope_accuracy"] == 1.0
    assert found.figures["out_of_scope_recall"] == 1.0


def test_a_label_without_an_example_is_never_said(materials):
    rows = [{"text": text, "label": label} for text, label in FILMS * 4]
    labels = tuple(sorted({"unheard", *(label for _, label in FILMS)}))
    found = classic.baseline(materials("classification", rows, labels=labels))
    assert found.figures["accuracy"] == 1.0


def test_texts_with_the_same_words_are_the_most_alike(materials):
    rows = [dict(zip(("text", "pair", "label"), row, strict=True)) for row in ALIKE]
    assert classic.baseline(
        materials("classification", rows, pair="pair", problem="regression")
    ).figures["spearman"] == pytest.approx(1.0)
    names = ("query", "positive", "score")
    rows = [dict(zip(names, row, strict=True)) for row in ALIKE]
    by_vectors = classic.baseline(materials("retrieval", rows, loss_name="cosent"))
    assert by_vectors.figures["spearman"] == pytest.approx(1.0)


def test_phrases_with_one_type_are_tagged_and_others_are_not(materials):
    rows = [{"tokens": text.split(), "tags": tags.split()} for text, tags in TAGGED]
    ready = materials("tagging", rows)
    found = classic.baseline(ready)
    tags = [one["tags"] for one in found.answer(ready.test.examples)]
    # Paris was a place and a person, so it is neither.
    assert tags == [["B-per", "O", "O", "O"], ["B-loc", "I-loc", "O", "B-per"], ["O", "O"]]
    assert found.figures["precision"] == 1.0 and found.figures["recall"] == 3 / 5


def test_no_answer_scores_what_has_none(materials):
    rows = [
        {"id": str(i), "question": q, "context": c}
        | {"answers": [{"text": a, "answer_start": c.index(a)} for a in answers]}
        for i, (q, c, answers) in enumerate(ASKED)
    ]
    found = classic.baseline(materials("answering", rows, stride=2))
    assert found.figures["f1"] == pytest.approx(100 * 2 / 3)
    assert classic.baseline(materials("answering", rows[:1], stride=2)) is None


def test_stems_find_documents(materials):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    asked = ["sleep of a cat", "raining", "tower"]
    rows = [
        {"query": query, "positive": text, "negative": DOCUMENTS[i - 1]}
        for i, (query, text) in enumerate(zip(asked, DOCUMENTS, strict=True))
    ]
    ready = materials("retrieval", rows)
    found = classic.baseline(ready)
    assert found.figures["ndcg@10"] == 1.0
    queries = [e for e in ready.test.examples if not e.is_document]
    assert len(found.answer(queries)) == len(asked)
    # Who has no word of a query is not found, though documents are fewer than places.
    strangers = [
        {"query": query, "positive": text} for query, text in zip("xyz", DOCUMENTS, strict=True)
    ]
    assert classic.baseline(materials("retrieval", strangers)).figures["recall@100"] == 0.0


def test_words_do_not_find_a_query_s_own_document(materials, tmp_path):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    corpus = [{"_id": "0", "title": "Pets", "text": "sleeping cats"}, {"_id": "1", "text": "cats"}]
    corpus.append({"_id": "2", "text": DOCUMENTS[1]})
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text('{"_id": "0", "text": "sleeping cats"}')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("0\t1\t1")
    ready = materials("retrieval", [{"query": "a", "positive": "b"}], test="qrels/test.tsv")
    assert classic.baseline(ready).figures["mrr@10"] == 1.0


def test_a_task_without_a_customary_one(materials):
    rows = [{"tokens": ["a", "cat"], "tags": ["DET", "NOUN"]}] * 2
    assert classic.baseline(materials("tagging", rows)) is None
