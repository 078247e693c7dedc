"""Students on data of one's own: the figures are those of the commands that are made for them."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from distilflax import settings, weights
from distilflax.errors import UserError
from distilflax.evaluate import Model, outside, sts
from distilflax.settings import Ablation, Compute

TEXTS = (
    ("the array is copied", "the array is not copied", 3.0),
    ("open the file", "open the file and read it", 4.5),
    ("close the connection", "sort the list in place", 0.5),
    ("return none", "return the mean of the array", 1.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words, words_folder, teacher):
    """The teacher as a folder, with data beside it."""
    place = tmp_path_factory.mktemp("outside")
    model = place / "model"
    weights.save(
        model,
        teacher.encoder,
        {"encoder": teacher.params["encoder"]},
        tokenizer_folder=words_folder,
        sentence=weights.SentenceFiles(pooling="cls", max_seq_length=16),
    )
    pairs = "\n".join("\t".join(map(str, row)) for row in TEXTS)
    (place / "test.tsv").write_text(f"sentence1\tsentence2\tscore\n{pairs}\n")
    (place / "qrels").mkdir()
    (place / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t1\n")
    documents = [{"_id": name, "text": TEXTS[i][1]} for i, name in enumerate("abcd")]
    (place / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (place / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": TEXTS[1][0]}))
    probed = place / "probe"
    probed.mkdir()
    for name in ("train", "dev", "test"):
        rows = [f"{text}\t{int('array' in text)}" for row in TEXTS for text in row[:2]]
        (probed / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return place


def test_each_figure_is_the_student_s_own(folder, words, teacher, student):
    pytest.importorskip("sklearn")
    asked = Ablation(sts=str(folder), beir=str(folder), probe=str(folder / "probe"))
    read = weights.load(folder / "model")
    said = []
    own = outside.Outside(asked, read, words, Compute(), said.append)
    found = own.measure(student)
    assert set(found) == {"sts", "beir", "probe"}
    assert any(text.startswith("probe: ") for text in said)
    # Pooled as the teacher's files say, not as an encoder without any would be.
    first, second = (own._vectors(student, tuple(row[i] for row in TEXTS)) for i in (0, 1))
    scores = np.array([row[2] for row in TEXTS])
    assert found["sts"] == sts.spearman(sts.cosines(first, second), scores)
    assert 0 < found["beir"] <= 1 and 0 <= found["probe"] <= 1
    assert own.measure(Model("teacher", teacher.encoder, teacher.params)) != found


def test_collections_are_asked_with_the_teacher_s_prompts(folder, words, student, monkeypatch):
    prompts = {"query": "find the ", "passage": "read the "}
    read = weights.load(folder / "model")
    prompted = dataclasses.replace(read.sentence, prompts=prompts)
    read = dataclasses.replace(read, sentence=prompted)
    seen = []

    def embed(model, words, texts, **options):
        seen.append(texts)
        return np.eye(len(texts), 4)

    monkeypatch.setattr(outside.vectors, "embed", embed)
    asked = Ablation(sts=str(folder), beir=str(folder))
    outside.Outside(asked, read, words, Compute(), print).measure(student)
    *pairs, queries, documents = seen
    assert pairs == [[row[i] for row in TEXTS] for i in (0, 1)]
    assert queries == [f"find the {TEXTS[1][0]}"]
    assert sorted(documents) == sorted(f"read the {row[1]}" for row in TEXTS)


def test_what_is_judged_and_not_there_is_said(folder, words):
    judged = folder / "qrels" / "test.tsv"
    before = judged.read_text()
    judged.write_text(before + "q\tgone\t1\n")
    said = []
    try:
        read = weights.load(folder / "model")
        outside.Outside(Ablation(beir=str(folder)), read, words, Compute(), said.append)
    finally:
        judged.write_text(before)
    assert len(said) == 1 and said[0].startswith("beir: 1 judged documents are not in the corpus")


def test_what_is_not_asked_for_is_not_measured(folder, words, student):
    own = outside.Outside(Ablation(), weights.load(folder / "model"), words, Compute(), print)
    assert own.measure(student) == {} == own.fingerprints


def test_other_data_have_another_fingerprint(folder, words):
    asked = Ablation(sts=str(folder), beir=str(folder), probe=str(folder / "probe"))
    read = weights.load(folder / "model")
    own = outside.Outside(asked, read, words, Compute(), print)
    before = copy.copy(own).fingerprints
    assert list(before) == [f"config.ablation.{name}" for name in ("sts", "beir", "probe")]
    own.pairs = own.pairs._replace(scores=own.pairs.scores[::-1])
    relevance = ({0: 2.0}, *own.collection.relevance[1:])
    own.collection = dataclasses.replace(own.collection, relevance=relevance)
    test = own.labelled.test
    own.labelled = dataclasses.replace(
        own.labelled, test=dataclasses.replace(test, examples=test.examples[1:])
    )
    assert all(value != before[name] for name, value in own.fingerprints.items())


def test_a_metric_without_its_data_is_refused():
    with pytest.raises(UserError, match=r"metric is 'beir', but config\.ablation\.beir names no"):
        settings.Ablation(metric="beir")
