"""Documents that a folder's judgements name and its corpus lacks: they count, and teach nothing."""

import json

import numpy as np
import pytest

from distilflax.tasks.records import Faults
from distilflax.tasks.reranking import Reranking
from distilflax.tasks.retrieval import Retrieval


def test_of_judged_documents_without_a_word_nothing_is_learned(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "0", "text": " "}\n{"_id": "1", "text": "dog"}')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "cat"}')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("q\t0\t1\nq\t1\t1\n")
    for task, learned in ((Retrieval(negatives=0), [("cat", "dog")]), (Reranking(), ["dog"])):
        faults = Faults()
        found = task.read([tmp_path / "qrels" / "dev.tsv"], faults)
        assert "1 judged documents are empty, and teach nothing" in faults.notes[-1]
        arranged = task.arrange(found, training=True)
        assert [one.pair if task.name == "reranking" else one.texts for one in arranged] == learned
        # Figures count it.
        assert len(task.arrange(found, training=False)) == (3 if task.name == "retrieval" else 2)


def test_judged_documents_that_are_missing_count_and_are_not_learned_from(tmp_path):
    for name, texts in (("corpus", "a cat|a dog|birds"), ("queries", "cat|dog|rain")):
        lines = [json.dumps({"_id": str(i), "text": t}) for i, t in enumerate(texts.split("|"))]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    beir = tmp_path / "qrels" / "dev.tsv"
    beir.parent.mkdir()
    judged = ("0 0 2", "0 2 1", "0 1 0", "1 1 1", "0 gone 1", "1 lost 1", "2 gone 1", "nobody 0 1")
    beir.write_text("".join("\t".join(row.split()) + "\n" for row in judged))
    task, faults = Retrieval(), Faults()
    found = task.read([beir], faults)
    missing, unknown = faults.notes
    assert "dev.tsv: 2 judged documents" in missing and "dev.tsv: 1 judged queries" in unknown
    groups = [group.texts[0] for group in task.arrange(found, training=True)]
    assert groups == ["cat", "cat", "dog"]
    measured = task.arrange(found, training=False)
    assert [q.judged for q in measured[:3]] == [{0: 2, 2: 1, 1: 0, 3: 1}, {1: 1, 4: 1}, {3: 1}]
    vectors = np.array([[1, 0], [0, 1], [1, 1], [1, 0.2], [0, 1], [-1, -1]], np.float32)
    figures = task.metrics([{"vectors": row[None]} for row in vectors], measured)
    assert figures["recall@100"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # Whoever orders candidates has none of those, and nothing to order where there is no other.
    faults = Faults()
    assert [q.text for q in Reranking().read([beir], faults)] == ["cat", "dog"]
    assert "1 queries have no answer but documents" in faults.notes[-1]
