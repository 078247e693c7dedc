import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax.errors import UserError
from distilflax.search.collection import read_beir, read_judged, retrieve

CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "lift and drag"},
    {"_id": "d2", "title": "", "text": "heat"},
    {"_id": "d3", "text": "no title at all"},
]
QUERIES = [{"_id": "q1", "text": "what lifts"}, {"_id": "d2", "text": "what warms"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td3\t0\nd2\td2\t1\n"


@pytest.fixture
def beir(tmp_path):
    for name, records in (("corpus", CORPUS), ("queries", QUERIES)):
        text = "\n".join(json.dumps(record) for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS, encoding="utf-8")
    return tmp_path


def test_retrieve_scores_each_query():
    documents = np.eye(4, dtype=np.float32)
    queries = np.array([[0.9, 0.1, 0.0, 0.0], [0.5, 0.1, 0.8, 0.0]], np.float32)
    scores = retrieve(queries, documents, [{0: 1.0}, {0: 1.0}])
    assert scores["mrr@10"].tolist() == [1.0, 0.5]


def test_beir_joins_title_and_text_and_keeps_grades(beir):
    collection = read_beir(beir)
    assert collection.documents == ("Wings lift and drag", "heat", "no title at all")
    assert collection.queries == ("what lifts", "what warms")
    # A document that has the id of its query is not dropped.
    assert collection.relevance == ({0: 2.0, 2: 0.0}, {1: 1.0})


def test_a_query_that_is_a_document_is_not_searched_for_by_itself(beir):
    queries = [
        {"_id": "d1", "text": "lift and drag"},  # with the title of the document of its id
        {"_id": "q2", "text": "heat"},  # under another id
        {"_id": "q3", "text": "no title at all"},  # judged, and so asked for
        {"_id": "d2", "text": "drag"},  # by its id alone
    ]
    (beir / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    qrels = "d1\td2\t1\nq2\td3\t1\nq3\td3\t1\nd2\td1\t1\n"
    (beir / "qrels" / "test.tsv").write_text(qrels)
    collection = read_beir(beir)
    assert collection.itself == (0, 1, -1, -1)
    vectors = np.eye(3, dtype=np.float32)
    asked = np.array([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1], [1, 0, 0]], np.float32)
    scores = retrieve(asked, vectors, collection.relevance, collection.itself)
    assert scores["mrr@10"].tolist() == [1.0] * 4
    assert retrieve(asked, vectors, collection.relevance)["mrr@10"].tolist() == [0.5, 0.5, 1, 1]


def test_of_copies_of_a_query_s_text_the_one_that_was_judged_is_asked_for(beir):
    """Quora's folder, say, where a question is asked twice in the same words."""
    texts = {"a": "x y", "b": "x y", "c": "n"}
    corpus = [{"_id": name, "text": text} for name, text in texts.items()]
    (beir / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    queries = [{"_id": name, "text": "x y"} for name in "aq"]
    (beir / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (beir / "qrels" / "test.tsv").write_text("a\tb\t1\nq\ta\t1\n")
    assert read_beir(beir).itself == (0, 1)


def test_beir_leaves_out_queries_that_nothing_answers(beir):
    (beir / "qrels" / "test.tsv").write_text("q1\td1\t1\nd2\td3\t0\n")
    assert read_beir(beir).queries == ("what lifts",)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("corpus.jsonl", "", "corpus.jsonl is empty"),
        ("corpus.jsonl", "{", "corpus.jsonl line 1 is not JSON"),
        ("corpus.jsonl", "[1]", "corpus.jsonl line 1 should be an object"),
        ("corpus.jsonl", '{"_id": 3, "text": 4}', "line 1 should have _id and text, both of them"),
        ("corpus.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("corpus.jsonl", '{"_id": "a", "text": ""}\n' * 2, "line 2 has the _id 'a' a second time"),
        ("queries.jsonl", '\n{"_id": "q1"}', "queries.jsonl line 2 should have _id and text"),
        ("qrels/test.tsv", "q1\td1", "test.tsv line 1 has 2 columns"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td2\tgood", "line 2 has the score 'good'"),
        (
            "qrels/test.tsv",
            "q9\td1\t1",
            "there: 0 of its documents are not in the corpus, and 1 of",
        ),
        ("qrels/test.tsv", "q1\td9\t1\nq1\td1\t0", "nothing above 0 that is there: 1 of its docu"),
        ("qrels/test.tsv", "query-id\tcorpus-id\nq1", "line 2 has 2 columns"),
        (
            "qrels/test.tsv",
            "query\tdocument\nq1\td1",
            "line 1 has 2 columns; it should have query-id",
        ),
        (
            "qrels/test.tsv",
            "q1\td1\t1\nq1\td1\t0",
            "line 2 judges document 'd1' for query 'q1' a sec",
        ),
        ("qrels/test.tsv", "q1\td1\tx", "line 1 has the score 'x'"),
        ("qrels/test.tsv", "q1\td1\t0", "test.tsv has no judgement above 0"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "test.tsv has no judgement above 0"),
    ],
)
def test_malformed_beir_folders_are_answered_with_the_line(beir, file, text, sentence):
    (beir / file).write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_beir(beir)


def test_beir_compressed_or_in_other_layouts_is_the_same(beir):
    whole = read_beir(beir)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        content = (beir / name).read_bytes()
        (beir / name).unlink()
        (beir / f"{name}.gz").write_bytes(gzip.compress(content))
    assert read_beir(beir) == whole
    (beir / "qrels" / "test.tsv.gz").unlink()
    cells = [line.split("\t") for line in QRELS.splitlines() if not line.startswith("query-id")]
    names = ("query-id", "corpus-id", "score")
    rows = [dict(zip(names, (q, d, int(score)), strict=True)) for q, d, score in cells]
    (beir / "qrels" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_beir(beir) == whole
    trec = "\n".join(f"{q} 0 {d} {score}" for q, d, score in cells)
    (beir / "qrels" / "test.tsv").write_text(trec)
    assert read_beir(beir) == whole


def test_beir_in_parquet_as_hubs_publish_it_is_the_same(beir):
    whole = read_beir(beir)
    for name, records in (("corpus", CORPUS), ("queries", QUERIES)):
        (beir / f"{name}.jsonl").unlink()
        (beir / name).mkdir()
        shards = (records[:1], records[1:])
        for number, shard in enumerate(shards):
            path = beir / name / f"{name}-0000{number}-of-00002.parquet"
            pq.write_table(pa.Table.from_pylist(shard), path)
    (beir / "qrels" / "test.tsv").unlink()
    rows = [("q1", "d1", 2.0), ("q1", "d3", 0.0), ("d2", "d2", 1.0)]
    table = pa.table(
        dict(zip(("query-id", "corpus-id", "score"), zip(*rows, strict=True), strict=True))
    )
    pq.write_table(table, beir / "qrels" / "test-00000-of-00001.parquet")
    assert read_beir(beir) == whole
    for path in (beir / "corpus").iterdir():
        path.rename(path.with_name(path.name.replace("corpus-", "test-")))
    assert read_beir(beir) == whole
    # What belongs to another split is none of this one's.
    other = pa.Table.from_pylist([{"_id": "d1", "text": "another d1"}])
    pq.write_table(other, beir / "corpus" / "train-00000-of-00001.parquet")
    pq.write_table(table, beir / "qrels" / "train-00000-of-00001.parquet")
    assert read_beir(beir) == whole
    pq.write_table(table, beir / "qrels" / "test-00001-of-00002.parquet")
    with pytest.raises(UserError, match=r"is one of 2 files of 'test'; join them in one"):
        read_beir(beir)
    # One file each, with mteb's other name for ids.
    for name, records in (("corpus", CORPUS), ("queries", QUERIES)):
        table = pa.Table.from_pylist([{"id": r["_id"]} | r for r in records]).drop(["_id"])
        pq.write_table(table, beir / f"{name}.parquet")
    (beir / "qrels" / "test-00001-of-00002.parquet").unlink()
    assert read_beir(beir) == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.tsv", "query-id\tcorpus-id\nq1\td1\nd2\td2\n"),
        ("test.csv", "query-id,corpus-id\nq1,d1\nd2,d2\n"),
        ("test.csv", 'query-id,corpus-id,score\n"q1","d1",1\nd2,d2,1\n'),
        (
            "test.jsonl",
            '{"query-id": "q1", "corpus-id": "d1"}\n{"query-id": "d2", "corpus-id": "d2"}',
        ),
        ("test.parquet", {"query-id": ["q1", "d2"], "corpus-id": ["d1", "d2"]}),
    ],
)
def test_judgements_without_scores_are_all_1(beir, name, content):
    (beir / "qrels" / "test.tsv").unlink()
    if isinstance(content, dict):
        pq.write_table(pa.table(content), beir / "qrels" / name)
    else:
        (beir / "qrels" / name).write_text(content)
    collection = read_beir(beir)
    assert collection.relevance == ({0: 1.0}, {1: 1.0})
    # The names of the columns are no query.
    assert collection.unknown == 0


def test_judgements_that_cannot_be_read_say_what_can(beir):
    table = pa.table({"qid": ["q1"], "corpus-id": ["d1"]})
    pq.write_table(table, beir / "qrels" / "dev.parquet")
    with pytest.raises(
        UserError, match=r"dev.parquet row 1 should have query-id and corpus-id, and"
    ):
        read_beir(beir, "dev")
    with pytest.raises(UserError, match=r"'.arrow' is no format of judgements; choose from .tsv"):
        read_judged(beir / "qrels" / "dev.arrow")
    pq.write_table(pa.table({"text": ["q1"]}), beir / "queries.parquet")
    (beir / "queries.jsonl").unlink()
    with pytest.raises(UserError, match=r"queries.parquet row 1 should have _id and text"):
        read_beir(beir)


def test_faults_of_beir_may_be_passed_over(beir):
    whole, told = read_beir(beir), []
    with (beir / "corpus.jsonl").open("a") as file:
        file.write('\n{"_id": "d9"}\nnothing\n')
    with (beir / "qrels" / "test.tsv").open("a") as file:
        file.write("\nq1\td1\tmuch\n")
    assert read_judged(beir / "qrels" / "test.tsv", told.append) == whole
    assert len(told) == 3


def test_a_judged_document_that_is_missing_counts_as_never_found(beir):
    with (beir / "qrels" / "test.tsv").open("a") as file:
        # Of q3 and q4 none is there: one is asked all the same, and one is no query here.
        file.write("q1\tgone\t1\nq1\tlost\t0\nq3\tgone\t2\nq4\td1\t1\n")
    with (beir / "queries.jsonl").open("a") as file:
        file.write('\n{"_id": "q3", "text": "what is lost"}')
    collection = read_beir(beir)
    assert collection.relevance == ({0: 2.0, 2: 0.0, 3: 1.0, 4: 0.0}, {1: 1.0}, {3: 2.0})
    assert collection.missing == ("gone", "lost") and collection.unknown == 1
    missing, unknown = collection.notes
    assert "2 judged documents are not in the corpus" in missing
    assert "1 judged queries are not among the queries" in unknown
    vectors = np.eye(3, dtype=np.float32)
    scores = retrieve(vectors[[0, 1, 2]], vectors, collection.relevance, collection.itself)
    # As trec_eval counts them.
    assert scores["recall@100"].tolist() == [0.5, 1.0, 0.0]
    ideal = 2 + 1 / np.log2(3)
    np.testing.assert_allclose(scores["ndcg@10"], [2 / ideal, 1.0, 0.0])


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_missing_beir_files_are_named(beir, file):
    (beir / file).unlink()
    with pytest.raises(UserError, match=f"no file .*{re.escape(file)}"):
        read_beir(beir)
