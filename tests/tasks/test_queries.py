"""Records of queries that cannot be: each is told of in one sentence, and none shifts another."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax.errors import UserError
from distilflax.tasks.records import Faults
from distilflax.tasks.reranking import Reranking
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
            {"query": "a", "positive": [{"docid": "1", "contents": "x"}]},
            {},
            r"line 1: 'positive' is an object .docid, contents. whose 'text' or 'title' is no text",
        ),
        ({"query": "a", "positive": {"title": "", "text": " "}}, {}, "'positive' is empty"),
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


@pytest.fixture
def judged(tmp_path):
    """judged(folder, query, documents) -> the path of judgements in Parquet: the first document
    answers."""

    def make(name, query, documents):
        folder = tmp_path / name
        for kind, texts in (("corpus", documents), ("queries", [query])):
            (folder / kind).mkdir(parents=True)
            rows = {"_id": [f"{kind[0]}{i}" for i in range(len(texts))], "text": texts}
            pq.write_table(pa.table(rows), folder / kind / "test-00000-of-00001.parquet")
        (folder / "qrels").mkdir()
        path = folder / "qrels" / "test-00000-of-00001.parquet"
        pq.write_table(pa.table({"query-id": ["q0"], "corpus-id": ["c0"]}), path)
        return path

    return make


def test_judgements_in_parquet_are_no_pairs_of_ids(judged, tmp_path):
    path = judged("nano", "who", ["Anna", "dog"])
    # With the options that the names of the columns suggest, too, and beside the corpus.
    elsewhere = tmp_path / "nano" / "judgements.parquet"
    elsewhere.write_bytes(path.read_bytes())
    columns = {"query": "query-id", "positive": "corpus-id"}
    for one, options in ((path, {}), (path, columns), (elsewhere, columns)):
        (found,) = Retrieval(**options).read([one], Faults())
        assert (found.text, found.documents, found.grades) == ("who", ("Anna",), (1.0,))
        assert found.corpus.texts == ("Anna", "dog")
        with pytest.raises(UserError, match="are judgements, and pairs need scores"):
            Retrieval(loss_name="cosent", **options).read([one], Faults())
    corpus = tmp_path / "nano" / "corpus" / "test-00000-of-00001.parquet"
    alone = Retrieval().read([corpus], Faults(), labelled=False)
    assert [q.text for q in alone] == ["Anna", "dog"]
    with pytest.raises(UserError, match="are judgements, which have no texts"):
        Retrieval(**columns).read([path], Faults(), labelled=False)


def test_judgements_without_their_corpus_say_where_it_should_lie(write):
    path = write("a.csv", "query-id,corpus-id\nq1,d1\n")
    with pytest.raises(UserError, match=r"no file .*corpus.jsonl, and no Parquet in a folder cor"):
        Retrieval().read([path], Faults())


CANDIDATES = [
    {"query": "who", "positive": "Anna", "score": 1},
    {"query": "who", "positive": "dog", "score": 0},
    {"query": "where", "positive": "Paris", "score": True},
    {"query": "what", "positive": "film", "score": 0},
    {"query": "who", "positive": "cat", "score": "0.0"},
    {"query": "who", "positive": "Anna", "score": 0},
]


def test_a_candidate_scored_0_is_a_negative_of_its_query(write):
    path, faults = write("a.jsonl", CANDIDATES), Faults()
    who, where = Retrieval().read([path], faults)
    assert (who.text, who.documents, who.grades) == ("who", ("Anna", "dog", "cat"), (1, 0, 0))
    assert (where.documents, where.grades) == (("Paris",), (1,))
    assert faults.notes[0] == "4 records have a 'score' of 0 or less, and so are negatives"
    assert faults.notes[1].startswith("1 queries have no text with a 'score' above 0 and were left")
    task, found = Reranking(), Reranking().read([path], Faults())
    task.learn(found)
    candidates = task.arrange(task.split(found, Faults(), training=False), training=False)
    assert [(c.pair, c.grade) for c in candidates] == [
        ("Anna", 1),
        ("dog", 0),
        ("cat", 0),
        ("Paris", 1),
    ]
    # A teacher speaks on all of them.
    assert len(Reranking().read([path], Faults(), labelled=False)) == 6
    with pytest.raises(UserError, match="line 1 and all others have a score of 0 or less"):
        Retrieval().read([write("b.jsonl", CANDIDATES[3:4])], Faults())


def test_a_record_may_label_a_list_of_its_texts(write):
    """As sentence-transformers mines them: `output_format="labeled-list"`."""
    one = {"query": "who", "positive": ["Anna", "dog", "cat"], "score": [1, 0, -1]}
    teacher = {"query": "who", "positive": ["Anna", "Paris"], "score": [2.5, 0.5]}
    path = write("a.jsonl", [one, teacher])
    first, second = Retrieval().read([path], Faults())
    assert first.grades == (1, 0, 0) and second.grades == (1, 1)
    below = teacher | {"score": [4.2, -1.3]}  # logits
    assert Retrieval().read([write("b.jsonl", [below])], Faults())[0].grades == (1, 1)
    (group,) = Retrieval(negatives=2).arrange([first], training=True)
    assert group.texts == ("who", "Anna", "dog", "cat")
    Reranking().learn([first])
    with pytest.raises(UserError, match="'score' has no number above 0"):
        Retrieval().read([write("b.jsonl", [one | {"score": [0, 0, 0]}])], Faults())


@pytest.mark.parametrize(
    "task", [Retrieval(loss_name="margin_mse"), Reranking(loss_name="squared")]
)
def test_where_scores_are_learned_0_is_a_label_of_what_is_measured(write, task):
    records = [*CANDIDATES, {"query": "who", "positive": "Anna", "negative": "film", "score": 2}]
    read = task.read([write("a.jsonl", records)], Faults())
    assert task.split(read, Faults(), training=True) == read
    faults = Faults()
    kept = task.split(read, faults, training=False)
    assert [(q.text, q.documents, q.grades) for q in kept] == [
        ("who", ("Anna", "dog", "cat", "film"), (1, 0, 0, 0)),
        ("where", ("Paris",), (1,)),
    ]
    assert faults.notes[0].startswith("4 records have a 'score' of 0")
    assert task.arrange(kept, training=False)
    listed = {"query": "who", "positive": ["Anna", "dog"], "score": [1, 0]}
    read = task.read([write("b.jsonl", [listed])], Faults())
    assert task.split(read, Faults(), training=False)[0].grades == (1, 0)


def test_other_scores_keep_their_meaning(write):
    path = write("a.jsonl", CANDIDATES)
    pairs = Retrieval(loss_name="cosent").read([path], Faults())
    assert [q.scores for q in pairs] == [(1,), (0,), (1,), (0,), (0,), (0,)]
    squared = Reranking(loss_name="squared").read([path], Faults())
    assert [(q.grades, q.scores) for q in squared[:2]] == [((1,), (1,)), ((1,), (0,))]
    triple = {"query": "who", "positive": "Anna", "negative": "dog", "score": -0.5}
    mined = {"query": "who", "positive": "Anna", "score": [-0.5]}
    unsaid = {"query": "who", "positive": "Anna", "score": None}
    for record in (triple, mined, unsaid):
        (found,) = Retrieval().read([write("b.jsonl", [record])], Faults())
        assert found.grades[0] == 1
    with pytest.raises(UserError, match="line 1: 'score' is 'bad', not a number"):
        Retrieval().read([write("b.jsonl", [unsaid | {"score": "bad"}])], Faults())


def test_labels_of_candidates_may_be_classes_with_names(tmp_path):
    features = datasets.Features(
        query=datasets.Value("string"),
        positive=datasets.Value("string"),
        label=datasets.ClassLabel(names=["neg", "pos"]),
    )
    rows = {"query": ["who"] * 3, "positive": ["Anna", "dog", "cat"], "label": [1, 0, -1]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    faults = Faults(skip=True)
    (found,) = Retrieval(score="label").read([path], faults)
    assert (found.documents, found.grades) == (("Anna", "dog"), (1, 0))
    assert "row 3: 'label' is None, not a number" in faults.first


def test_what_is_measured_is_the_search_of_one_corpus(judged):
    first = judged("android", "who", ["Anna", "dog"])
    other = judged("english", "who", ["Paris", "film"])
    same = judged("again", "where", ["Anna", "dog"])
    task = Retrieval()
    found = task.read([first, other], Faults())
    assert len(task.arrange(found, training=True)) == 2
    with pytest.raises(UserError, match=r"are of different corpora.*one folder's judgements"):
        task.arrange(found, training=False)
    measured = task.arrange(task.read([first, same], Faults()), training=False)
    assert [e.texts[0] for e in measured] == ["who", "where", "Anna", "dog"]


def test_passages_may_be_objects_with_titles(write, tmp_path):
    anna = {"docid": "7", "title": "Names", "text": "Anna"}
    dog = {"docid": "8", "title": None, "text": "dog"}
    rows = [
        {"query": "who", "positive_passages": [anna], "negative_passages": [dog, dog | anna]},
        {"query": "where", "positive_passages": [dog], "negative_passages": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = {"positive": "positive_passages", "negative": "negative_passages"}
    for path in (write("a.jsonl", rows), tmp_path / "a.parquet"):
        who, where = Retrieval(**columns).read([path], Faults())
        assert who.documents == ("Names Anna", "dog", "Names Anna") and where.documents == ("dog",)


def test_negatives_under_a_name_that_no_record_has_are_no_negatives_missed(write):
    table = write("a.csv", "query,positive,worst\nwho,Anna,dog\n")
    with pytest.raises(UserError, match=r"a.csv has no column 'worts' .*did you mean 'worst'"):
        Retrieval(negative="worts").read([table], Faults())
    lines = write("a.jsonl", [{"query": "who", "positive": "Anna"}])
    with pytest.raises(UserError, match=r"a.jsonl has no column 'worst' .config.options.negative"):
        Reranking(negative="negative,worst").read([lines], Faults())
    # One file of a part may lack them, as may what has none at all, and pairs need none.
    assert len(Retrieval(negative="worst").read([table, lines], Faults())) == 2
    assert len(Retrieval().read([lines], Faults())) == 1
    scored = write("b.jsonl", [{"query": "who", "positive": "Anna", "score": 1}])
    assert len(Retrieval(negative="worst", loss_name="cosent").read([scored], Faults())) == 1


@pytest.mark.parametrize(("quoting", "found"), [("auto", "a"), ("none", '"a"')])
@pytest.mark.parametrize("task", [Retrieval, Reranking])
def test_quotes_of_tables_are_what_the_options_say(write, task, quoting, found):
    path = write("a.csv", 'query,positive,negative\nq,"a",b\n')
    assert task(quoting=quoting).read([path], Faults())[0].documents == (found, "b")


def test_columns_of_negatives_that_are_not_read_are_told_of(write):
    rows = [{"query": "a", "positive": "b", "neg": ["c"], "negatives": ["d"], "id": 1}]
    faults = Faults()
    found = Retrieval().read([write("a.jsonl", rows)], faults)
    assert found[0].documents == ("b",)
    assert [note.partition(":")[0] for note in faults.notes] == ["neg, negatives"]
    for negative in ("neg,negatives", ""):
        faults = Faults()
        Retrieval(negative=negative).read([write("a.jsonl", rows)], faults)
        assert not faults.notes
