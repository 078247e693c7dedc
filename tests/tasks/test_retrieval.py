"""Bi-encoders: reading, what is no negative, the losses by their formulas, and a whole run."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distilflax
from distilflax import weights
from distilflax.errors import UserError
from distilflax.losses import sentence
from distilflax.losses.sentence import allowed
from distilflax.search.collection import retrieve
from distilflax.settings import Term
from distilflax.tasks import batches, finetune, intermediate, named_files
from distilflax.tasks.data import prepare
from distilflax.tasks.queries import Query
from distilflax.tasks.records import Faults
from distilflax.tasks.retrieval import Retrieval, Texts
from distilflax.tasks.task import NOTHING
from distilflax.tasks.teacher import teaching_of
from distilflax.train import sharding

SUBJECTS = ("cat", "dog", "birds", "film", "Anna", "Paris", "tower", "river")
QUIET = lambda _: None  # noqa: E731


def read(path, **options):
    return Retrieval(**options).read([path], Faults())


def test_json_lines_have_one_or_many(write):
    triple = {"query": "who", "positive": "Anna", "negative": ["dog", "cat"], "score": [3, 1, 0]}
    path = write("a.jsonl", [triple, {"query": "where", "positive": ["Paris", "tower"]}])
    first, second = read(path)
    assert first.documents == ("Anna", "dog", "cat") and first.grades == (1, 0, 0)
    assert second.documents == ("Paris", "tower") and second.scores == ()
    path = write("a.jsonl", [triple])
    assert read(path, loss_name="margin_mse")[0].scores == (3, 1, 0)


def test_no_copy_of_an_answer_is_a_negative():
    q = Query("here", "who", ("Anna", "dog", "cat", "Anna"), (1, 0, 0, 0))
    (group,) = Retrieval(negatives=3).arrange([q], training=True)
    assert group.texts == ("who", "Anna", "dog", "cat", "")


def test_tables_have_columns_and_pairs_have_a_score(write):
    path = write("a.csv", "query,good,bad,worse\nwho,Anna,dog,cat\nwhere,Paris,film,\n")
    found = read(path, positive="good", negative="bad,worse")
    assert [q.documents for q in found] == [("Anna", "dog", "cat"), ("Paris", "film")]
    path = write("a.tsv", "query\tpositive\tnegative\tscore\nwho\tAnna\tdog\t2.5\n")
    assert read(path, loss_name="margin_mse")[0].scores == (2.5, 0.0)
    pair = read(path, loss_name="cosent")[0]
    assert pair.documents == ("Anna",) and pair.scores == (2.5,)


def test_pairs_and_scores_may_be_files_side_by_side(write, tmp_path):
    write("input.txt", "who\tAnna\nwhere\tParis\n")
    write("gs.txt", "4.5\n\n")  # a pair that nobody judged
    (path,) = named_files.find(tmp_path, "input.txt+gs.txt")
    header, faults = ("query", "positive", "score"), Faults(skip=True)
    (pair,) = Retrieval(header=header, loss_name="cosent").read([path], faults)
    assert (pair.text, pair.documents, pair.scores) == ("who", ("Anna",), (4.5,))
    assert faults.count == 1 and "line 2: 'score' is '', not a number" in faults.first


@pytest.fixture
def beir(tmp_path):
    for name, texts in (("corpus", "a cat|a dog|birds"), ("queries", "cat|dog")):
        lines = [json.dumps({"_id": str(i), "text": t}) for i, t in enumerate(texts.split("|"))]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("0\t0\t2\n0\t2\t1\n0\t1\t0\n1\t1\t1\n")
    return tmp_path / "qrels" / "dev.tsv"


def test_a_beir_folder_is_learned_from_and_measured_on(beir):
    found = read(beir)
    task = Retrieval(negatives=3).learn(found)
    assert task.negatives == 1 and task.together == 3
    groups = [q.texts for q in task.arrange(found, training=True)]
    # Every positive is a group; what was judged and found wanting is a negative of all of them.
    assert groups == [("cat", "a cat", "a dog"), ("cat", "birds", "a dog"), ("dog", "a dog", "")]
    measured = task.arrange(found, training=False)
    assert [q.judged for q in measured[:2]] == [{0: 2, 2: 1, 1: 0}, {1: 1}]
    assert [q.texts[0] for q in measured[2:]] == ["a cat", "a dog", "birds"]
    with pytest.raises(UserError, match=r"has no scores .column 'score'"):
        Retrieval(loss_name="margin_mse").learn(read(beir, loss_name="margin_mse"))
    with pytest.raises(UserError, match="are judgements, and pairs need scores"):
        read(beir, loss_name="cosent")


def test_queries_that_nothing_answers_are_counted(beir):
    with beir.open("a") as file:
        file.write("2\t0\t0\n")
    with (beir.parent.parent / "queries.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"_id": "2", "text": "rain"}))
    faults = Faults()
    assert len(Retrieval().read([beir], faults)) == 2
    assert "dev.tsv: 1 queries have no judgement above 0" in faults.notes[0]


def test_figures_are_those_of_the_ranking(beir):
    task = Retrieval(dims=(1,))
    examples = task.arrange(read(beir), training=False)
    vectors = np.array([[0.0, 1], [1, 0], [0, 1], [1, 0.2], [0.6, 0.8]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = task.metrics([{"vectors": row[None]} for row in vectors], examples)
    assert found["mrr@10"] == found["ndcg@10"] == 1.0
    assert found["ndcg@10 of 1"] < 1.0


def test_what_belongs_to_a_query_is_none_of_its_negatives():
    groups = [[0, 10, 20], [1, 11, 10], [0, 12, NOTHING], [3, 10, 1], [NOTHING] * 3]
    seen = np.array(allowed(jnp.array(groups)))
    #        positives of 0  1  2  3  4  negatives of 0  1  2  3  4
    assert seen[0].tolist() == [1, 1, 0, 0, 0, 1, 0, 0, 1, 0]  # 2 has the same query, 3 its text
    assert seen[1].tolist() == [1, 1, 1, 1, 0, 1, 1, 0, 0, 0]  # the last one is query 1 itself
    assert seen[2].tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 1, 0]
    assert seen[3].tolist() == [0, 1, 1, 1, 0, 1, 0, 0, 1, 0]


def test_losses_are_their_formulas():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 3, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    text = np.arange(12).reshape(4, 3)
    text[3] = NOTHING
    scores = rng.normal(size=(4, 3)).astype(np.float32)
    batch = {"text": jnp.array(text), "score": jnp.array(scores)}
    near = np.einsum("id,jgd->ijg", vectors[:, 0], vectors[:, 1:])
    own = np.einsum("id,igd->ig", vectors[:, 0], vectors[:, 1:])

    found = jax.jit(Retrieval(temperature=0.1).loss)(jnp.array(vectors), batch)
    wanted = sum(np.log(np.exp(near[i, :3] / 0.1).sum()) - own[i, 0] / 0.1 for i in range(3))
    assert (float(found.sum), float(found.count)) == (pytest.approx(wanted, rel=1e-5), 3.0)

    found = jax.jit(Retrieval(loss_name="margin_mse").loss)(jnp.array(vectors), batch)
    margins = own[:, 0] - own[:, 1] - (scores[:, 1] - scores[:, 2])
    assert float(found.sum) == pytest.approx(np.square(margins[:3]).sum(), rel=1e-5)

    task = Retrieval(loss_name="cosent", temperature=0.1)
    found = jax.jit(task.loss)(jnp.array(vectors[:, :2]), {k: v[:, :2] for k, v in batch.items()})
    pairs = [(i, j) for i in range(3) for j in range(3) if scores[i, 1] < scores[j, 1]]
    wanted = np.log(1 + sum(np.exp((own[i, 0] - own[j, 0]) / 0.1) for i, j in pairs))
    assert float(found.sum) == pytest.approx(wanted, rel=1e-5)

    # Another one's similarities, on the scale of the labels' loss.
    other = vectors[:, ::-1]
    theirs = np.einsum("id,igd->ig", other[:, 0], other[:, 1:])
    distil = jax.jit(partial(task.distil, temperature=2.0))
    found = distil(jnp.array(vectors[:, :2]), jnp.array(other[:, :2]), batch)
    gap = (own - theirs)[:3, 0] / 0.1
    assert float(found.sum) == pytest.approx(np.square(gap).sum(), rel=1e-5)

    # A teacher that is the model itself has nothing to teach, and its gradient would be zero.
    for same_task in (Retrieval(), task):
        distil = jax.jit(partial(same_task.distil, temperature=2.0))
        same = distil(jnp.array(vectors), jnp.array(vectors), batch)
        assert float(same.sum) == pytest.approx(0.0, abs=1e-5)


def test_every_query_s_distribution_over_the_batch_is_learned_from():
    rng = np.random.default_rng(4)
    ours, theirs = (rng.normal(size=(3, 3, width)).astype(np.float32) for width in (6, 4))
    text = np.arange(9).reshape(3, 3)
    text[1, 2] = NOTHING
    distil = jax.jit(partial(Retrieval(temperature=0.5).distil, temperature=2.0))
    found = distil(jnp.array(ours), jnp.array(theirs), {"text": jnp.array(text)})

    def distributions(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        # The positives, then the negatives, of which the second is not there.
        candidates = np.concatenate([unit[:, 1], unit[[0, 2], 2]])
        exponentials = np.exp(unit[:, 0] @ candidates.T / 0.5 / 2)
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    q, p = distributions(ours), distributions(theirs)
    assert float(found.sum) == pytest.approx(4 * np.sum(p * np.log(p / q)), rel=1e-4)
    assert float(found.count) == 3.0


def test_matryoshka_is_the_mean_over_widths():
    vectors = jnp.array(np.random.default_rng(1).normal(size=(4, 3, 6)).astype(np.float32))
    batch = {"text": jnp.arange(12).reshape(4, 3), "score": jnp.zeros((4, 3))}
    parts = [jax.jit(Retrieval().loss)(vectors[..., :n], batch).sum for n in (2, 6)]
    both = jax.jit(Retrieval(dims=(2, 6)).loss)(vectors, batch)
    assert float(both.sum) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    assert float(both.count) == 4.0


def test_contrast_of_one_positive_each_is_info_nce():
    rng = np.random.default_rng(2)
    a, b = (jnp.array(rng.normal(size=(5, 4)).astype(np.float32)) for _ in range(2))
    counted = jnp.array([True, True, False, True, True])
    term = Term(temperature=0.2)
    seen = jnp.broadcast_to(counted, (5, 5))
    np.testing.assert_allclose(
        sentence.info_nce(a, b, counted, term), sentence.contrast(a, b, seen, term)
    )


def test_groups_are_collated_with_short_queries_apart(words):
    task = Retrieval(negatives=1)
    examples = [
        Texts("x", ("who", "Anna lives in Paris " * 4, "dog"), (2.0, 1.0)),
        Texts("x", ("the cat", "cat", "")),
    ]
    features = task.encode(words, examples, 24)
    teacher = [np.full(3, i, np.float32) for i in range(6)]
    batch = batches.collate_groups(
        features,
        np.arange(6).reshape(2, 3)[::-1],
        4,
        24,
        buckets=(8, 24),
        with_types=True,
        teacher=teacher,
    )
    assert batch["first_input_ids"].shape == (4, 8) and batch["input_ids"].shape == (8, 24)
    assert (
        batch["text"][:2].tolist() == [[3, 4, NOTHING], [0, 1, 2]] and (batch["text"][2:] < 0).all()
    )
    assert batch["score"][1, 1:].tolist() == [2.0, 1.0] and np.isnan(batch["score"][0]).all()
    assert batch["teacher"][:2, :, 0].tolist() == [[3, 4, 5], [0, 1, 2]]
    both = np.concatenate([batch["first_attention_mask"].sum(1), batch["attention_mask"].sum(1)])
    lengths = features.lengths
    assert both.tolist() == [lengths[3], lengths[0], 0, 0, *lengths[[4, 5, 1, 2]], 0, 0, 0, 0]
    # The first rows are no longer than the longest of all.
    short = batches.collate_groups(
        features, np.array([[3, 4, 5]]), 1, 8, buckets=(24,), with_types=True
    )
    assert short["first_input_ids"].shape == (1, 8)


def test_queries_and_documents_have_their_own_prompts_also_alone(words):
    task = Retrieval(query_prompt="who ", document_prompt="the ")
    examples = [
        Texts("", ("cat", "dog")),
        Texts("query", ("cat",), judged={}),
        Texts("document", ("cat",), is_document=True),
    ]
    plain = [Texts("", ("who cat", "the dog")), Texts("", ("who cat",)), Texts("", ("the cat",))]
    found, wanted = task.encode(words, examples, 16).ids, Retrieval().encode(words, plain, 16).ids
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in wanted]


def test_texts_that_come_alone_are_a_corpus_or_a_column(write):
    corpus = [{"_id": "1", "title": "A", "text": "dog"}, {"_id": "2", "text": "cat"}]
    tasks = Retrieval(), Retrieval(loss_name="cosent")
    for path, texts in (
        (write("corpus.jsonl", corpus), ["A dog", "cat"]),
        (write("a.tsv", "positive\nbirds\nfilm\n"), ["birds", "film"]),
    ):
        for task in tasks:
            found = task.read([path], Faults(), labelled=False)
            arranged = task.arrange(found, training=True)
            assert [(one.texts, one.is_document) for one in arranged] == [
                ((text,), True) for text in texts
            ]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("loss", ["contrastive", "cosent"])
def test_of_texts_that_come_alone_layers_are_learned(settings_of, tmp_path, loss):
    names = SUBJECTS[:4]
    rows = [
        {"query": name, "positive": name, "negative": "was", "score": i}
        for i, name in enumerate(names)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = [{"_id": name, "text": name} for name in SUBJECTS]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, more)))
    given = {
        "data": {"train": "t.jsonl", "dev": "t.jsonl", "unlabelled": "corpus.jsonl"},
        "options": {"loss_name": loss},
        "training": {"batch_size": 4, "epochs": 1.0},
    }
    teacher = settings_of("retrieval", tmp_path, **given | {"data": {}}).model.path
    given["distillation"] = {"teacher": teacher}
    with pytest.raises(UserError, match="of which layers alone are learned"):
        settings_of("retrieval", tmp_path, **given)
    given["intermediate"] = {"losses": {"cosine": {"weight": 1.0}}, "epochs": 1.0}
    run = settings_of("retrieval", tmp_path, **given)
    materials = prepare(run, QUIET)
    grouped = 4 * materials.task.together
    assert len(materials.train.features.ids) == grouped + len(SUBJECTS)
    taught = teaching_of(run, materials, QUIET)
    # Of places without a text there is no layer to learn from.
    model, mesh = finetune.starting_model(run, materials), sharding.make_mesh(run.mesh, 4)
    text = materials.train.features.targets["text"]
    kept = text.copy()
    text[np.isin(text, text[:grouped])] = NOTHING
    with jax.set_mesh(mesh):
        stage = intermediate._stage(
            run, materials, taught.layers, model, np.arange(len(text)), mesh
        )
    assert stage.total_steps == 1
    text[:] = kept
    # The teacher's vectors of texts that came alone are nobody's.
    assert [row is None for row in taught.logits] == [False] * grouped + [True] * len(SUBJECTS)
    result = finetune.finetune(run, materials, tmp_path / "run", taught).result
    assert result["training_rows"] == grouped and result["steps"] == 1
    # A text is read once, in however many groups and beside them it stands.
    assert result["intermediate"]["steps"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_learns_to_find_and_leaves_vectors(settings_of, tmp_path):
    rows = [
        {"query": f"{name} -", "positive": f"{other} {other}", "negative": f"{name} was"}
        for name, other in zip(SUBJECTS, SUBJECTS[::-1], strict=True)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = settings_of(
        "retrieval",
        tmp_path,
        data={"train": "t.jsonl", "dev": "t.jsonl"},
        options={"query_prompt": "who ", "dims": (8, 16)},
        training={"batch_size": 8, "epochs": 40.0, "evaluate_epochs": 40.0},
    )
    materials = prepare(run, QUIET)
    alone = teaching_of(run, materials, QUIET)
    result = finetune.finetune(run, materials, tmp_path / "run", alone).result
    # By chance it would be about 0.2 of 16 texts.
    assert result["dev"]["mrr@10"] > 0.6 and result["training_rows"] == 24
    saved = weights.load(tmp_path / "run" / "model", with_task_head=True)
    assert saved.head is None and saved.sentence.prompts["query"] == "who "
    model = distilflax.load(tmp_path / "run" / "model")
    asked = [e for e in materials.dev.examples if not e.is_document]
    documents = [e.texts[0] for e in materials.dev.examples if e.is_document]
    found = retrieve(
        model.encode_query([e.texts[0] for e in asked]),
        model.encode_document(documents),
        [e.judged for e in asked],
    )
    assert found["mrr@10"].mean() == pytest.approx(result["dev"]["mrr@10"])


def test_vectors_are_the_model_s_own_where_nothing_else_is_asked(
    settings_of, tmp_path, model_folder
):
    """What a CLS encoder with prompts was trained for is where its fine-tuning begins."""
    read = weights.load(model_folder)
    own = weights.SentenceFiles("cls", prompts={"query": "who ", "passage": "the "})
    folder = weights.save(
        tmp_path / "cls", read.encoder, read.params, tokenizer_folder=model_folder, sentence=own
    )
    (tmp_path / "t.jsonl").write_text('{"query": "a", "positive": "b"}')
    found = {}
    for name, path, options in (
        ("own", folder, {}),
        ("plain", model_folder, {}),
        ("asked", folder, {"pooling": "mean", "query_prompt": "where "}),
    ):
        run = settings_of(
            "retrieval",
            tmp_path,
            data={"train": "t.jsonl", "dev": "t.jsonl"},
            options=options,
            model={"path": str(path)},
        )
        materials = prepare(run, QUIET)
        task, head = materials.task, finetune.starting_model(run, materials).head
        assert head.pooling == task.sentence(16).pooling
        found[name] = (head.pooling, task.query_prompt, task.document_prompt)
    assert found == {
        "own": ("cls", "who ", "the "),
        "plain": ("mean", "", ""),
        "asked": ("mean", "where ", "the "),
    }


def test_settings_that_cannot_be_are_one_sentence(settings_of, tmp_path):
    example = [Query("x", "a", ("b",), (1.0,), (2.0,))]
    with pytest.raises(UserError, match="'margin_mse' and there are no negatives"):
        Retrieval(loss_name="margin_mse").learn(example)
    with pytest.raises(UserError, match="choose from spearman, pearson"):
        Retrieval(loss_name="cosent", select="ndcg@10")
    (tmp_path / "t.jsonl").write_text('{"query": "a", "positive": "b"}')
    run = settings_of(
        "retrieval",
        tmp_path,
        data={"train": "t.jsonl", "dev": "t.jsonl"},
        options={"dims": (512,)},
    )
    materials = prepare(run, QUIET)
    with pytest.raises(UserError, match="has 512 and the model's vectors have 16"):
        finetune.starting_model(run, dataclasses.replace(materials))
