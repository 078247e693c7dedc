"""Cross-encoders: what is trained on, the figures, and a saved folder that reranks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distilflax
from distilflax import weights
from distilflax.errors import UserError
from distilflax.search import ranking
from distilflax.tasks import finetune
from distilflax.tasks.data import prepare
from distilflax.tasks.queries import Query
from distilflax.tasks.records import Faults
from distilflax.tasks.reranking import Candidate, Reranking

QUERIES = [
    Query("1", "who", ("Anna", "dog", "cat"), (1.0, 0.0, 0.0), (4.0, 1.0, 0.0)),
    Query("2", "who", ("dog", "river"), (1.0, 0.0), (3.0, -1.0)),
]


def test_every_candidate_is_read_once_and_the_best_grade_counts():
    task = Reranking(negatives=1)
    found = [(c.pair, c.grade) for c in task.arrange(QUERIES, training=False)]
    assert found == [("Anna", 1), ("dog", 1), ("cat", 0), ("river", 0)]
    found = [(c.pair, c.grade) for c in task.arrange(QUERIES, training=True)]
    assert found == [("Anna", 1), ("dog", 1), ("river", 0)]
    with pytest.raises(UserError, match="has no negatives"):
        task.learn([QUERIES[0]._replace(grades=(1.0, 1.0, 1.0))])


def test_figures_rank_the_candidates_of_each_query():
    task = Reranking()
    candidates = task.arrange([QUERIES[0], QUERIES[1]._replace(text="where")], training=False)
    predictions = [{"score": score} for score in (2.0, 3.0, 1.0, -1.0, 5.0)]
    assert task.metrics(predictions, candidates)["mrr@10"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    predictions[0]["score"] = 9.0
    assert task.metrics(predictions, candidates)["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)


def test_queries_are_drawn_with_all_of_their_candidates():
    task = Reranking()
    candidates = task.arrange([QUERIES[0], QUERIES[1]._replace(text="where")], training=False)
    predictions = [{"score": score} for score in (2.0, 3.0, 1.0, 5.0, -1.0)]
    number, drawn = task.by_index(predictions, candidates)
    assert number == 2
    assert drawn(np.arange(2)) == task.metrics(predictions, candidates)
    assert drawn(np.array([0]))["mrr@10"] == 0.5 and drawn(np.array([1, 1]))["mrr@10"] == 1.0


def test_one_query_of_many_candidates_makes_no_wide_rows_for_all(monkeypatch):
    candidates = [Candidate("p", "q", "d", 0, float(i < 2)) for i in range(5)]
    candidates += [Candidate("p", "q", "d", 1, float(i % 40 == 3)) for i in range(1000)]
    values = np.random.default_rng(0).normal(size=len(candidates))
    predictions, seen, real = [{"score": float(value)} for value in values], [], ranking.score
    monkeypatch.setattr(ranking, "score", lambda *given: seen.append(given) or real(*given))
    figures = Reranking().metrics(predictions, candidates)
    (found, judged), grades = seen[0], [candidate.grade for candidate in candidates]
    assert found.shape == (2, ranking.DEEPEST) and [*map(len, judged)] == [5, 1000]
    uncut = np.full((2, 1000), -1)
    for row, start, end in ((0, 0, 5), (1, 5, 1005)):
        uncut[row, : end - start] = np.lexsort((grades[start:end], -values[start:end]))
    whole = real(uncut, judged)
    assert figures == {name: float(whole[name].mean()) for name in figures}


def test_padding_learns_nothing_from_a_teacher():
    student, teacher = jnp.array([[1.0], [-2.0], [5.0]]), jnp.array([[3.0], [-2.0], [0.0]])
    given = {"attention_mask": jnp.array([[1, 1], [1, 0], [0, 0]])}
    found = Reranking(loss_name="squared").distil(student, teacher, given, 2.0)
    assert (float(found.sum), float(found.count)) == (4.0, 2.0)
    q, p = 1 / (1 + np.exp([-0.5, -1.5]))  # at temperature 2; the second row's are the same
    wanted = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    found = Reranking().distil(student, teacher, given, 2.0)
    assert float(found.sum) == pytest.approx(wanted, rel=1e-4) and found.count == 2


def test_what_tells_nothing_apart_is_not_right():
    task, other = Reranking(), Reranking().arrange(QUERIES[:1], training=False)
    same = task.metrics([{"score": 0.0}] * 3, other)
    assert same["mrr@10"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="scores are not finite"):
        task.metrics([{"score": float("nan")}] * 3, other)


def test_where_every_order_is_right_nothing_is_measured():
    task, only = Reranking(), [QUERIES[0]._replace(grades=(1.0, 1.0, 1.0), scores=())]
    with pytest.raises(UserError, match="has no negatives, so that every order"):
        task.split(only, Faults(), training=False)
    assert task.split(QUERIES, Faults(), training=False) == QUERIES
    groups = {task.group(one) for one in task.arrange(QUERIES, training=True)}
    assert groups == {True, False}


def test_losses_are_their_formulas(words):
    logits = jnp.array([[1.0], [-2.0], [0.5], [7.0]])
    label = jnp.array([1.0, 0.0, 0.0, np.nan])
    found = Reranking().loss(logits, {"label": label})
    assert float(found.sum) == pytest.approx(np.log1p(np.exp([-1.0, -2.0, 0.5])).sum(), rel=1e-5)
    assert float(found.count) == 3.0
    found = Reranking(loss_name="squared").loss(logits, {"label": label})
    assert float(found.sum) == pytest.approx(0 + 4 + 0.25)
    task = Reranking(loss_name="squared")
    features = task.encode(words, task.arrange(QUERIES, training=False), 16)
    assert features.targets["label"].tolist() == [4.0, 3.0, 0.0, -1.0]
    assert [types.max() for types in features.types] == [1] * 4


def test_a_saved_cross_encoder_reranks_here_and_elsewhere(settings_of, tmp_path):
    record = {"query": "who", "positive": "Anna lives", "negative": ["a dog ran", "the cat"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    data = {"train": "t.jsonl", "dev": "t.jsonl"}
    run = settings_of("reranking", tmp_path, data=data)
    encoder, head, params = finetune.starting_model(run, prepare(run, lambda _: None))
    params["task_head"] = jax.tree.map(lambda x: 30 * x, params["task_head"])
    folder = tmp_path / "model"
    weights.save(
        folder,
        encoder,
        params,
        tokenizer_folder=run.model.path,
        head=head,
        own=Reranking().own() | {"max_length": 16},
    )
    model = distilflax.load(folder)
    documents = [record["positive"], *record["negative"]]
    found = model.rerank("who", documents)
    assert sorted(one["index"] for one in found) == [0, 1, 2]
    assert [one["score"] for one in found] == sorted((o["score"] for o in found), reverse=True)
    assert all(documents[one["index"]] == one["text"] for one in found)
    (one,) = model.rerank("who", "a dog ran")
    assert one["text"] == "a dog ran"
    with pytest.raises(UserError, match="k is -1, and says how many are wanted"):
        model.rerank("who", documents, k=-1)
    assert model.rerank("who", documents, k=1) == found[:1] and model.rerank("who", []) == []
    assert model.rerank("who", documents, k=0) == []
    many = model.rerank_many(["dog", "who"], [["cat"], documents])
    assert [one["index"] for one in many[1]] == [one["index"] for one in found]


@pytest.mark.parity
def test_sentence_transformers_reads_it_alike(settings_of, tmp_path):
    theirs = pytest.importorskip("sentence_transformers")
    record = {"query": "who", "positive": "Anna lives", "negative": ["a dog ran", "the cat"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    run = settings_of("reranking", tmp_path, data={"train": "t.jsonl", "dev": "t.jsonl"})
    encoder, head, params = finetune.starting_model(run, prepare(run, lambda _: None))
    own = Reranking().own() | {"max_length": 16}
    folder = tmp_path / "model"
    weights.save(folder, encoder, params, tokenizer_folder=run.model.path, head=head, own=own)
    documents = [record["positive"], *record["negative"]]
    ours = {one["index"]: one["score"] for one in distilflax.load(folder).rerank("who", documents)}
    cross = theirs.CrossEncoder(str(folder), device="cpu")
    found = cross.predict([("who", text) for text in documents])
    wanted = 1 / (1 + np.exp([-ours[i] for i in range(3)]))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    # And back: version 6 lists its one step in modules.json.
    cross.save_pretrained(str(tmp_path / "theirs"))
    back = distilflax.load(tmp_path / "theirs").rerank("who", documents)
    assert {one["index"]: pytest.approx(one["score"], abs=1e-4) for one in back} == ours
