"""Fine-tuned folders on data of their task: what is read, compared and drawn."""

import json

import jax
import numpy as np
import pytest

import distilflax
from distilflax import models, settings, weights
from distilflax.errors import UserError
from distilflax.evaluate import fine_tuned
from distilflax.models import TaskHead
from distilflax.tasks import Classification
from distilflax.tasks.classification import Example
from distilflax.tasks.records import Faults
from distilflax.tasks.settings import default_config, from_values, task_of
from distilflax.text import tokenizer as text_tokenizer

TEXT = "the cat sat on a mat and dog ran while birds sang where does Anna live in Paris ? ."
FILMS = [("the cat sat", "bad"), ("birds sang", "good"), ("a dog ran", "bad"), ("Anna", "good")] * 4
TAGGED = [("Anna sat", ["B-per", "O"]), ("a dog ran", ["O", "B-per", "I-per"])] * 3
ASKED = [("where does Anna live", "Anna live in Paris", ["Paris"]), ("where ?", "a cat sat", [])]
SOUGHT = [("where does Anna live", "Paris", "a mat"), ("who sat", "the cat", "a dog")]
SOUGHT += [("birds", "birds sang", "Paris .")]
HEADS = {
    "classification": TaskHead("sequence", ("bad", "good")),
    "tagging": TaskHead("token", ("O", "B-per", "I-per")),
    "answering": TaskHead("answer", dropout=0.0),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of data for each task, and of a model for each, as others write them."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    words = text_tokenizer.train(lambda: [TEXT] * 3, folder / "words", 120, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=24,
        max_positions=32,
    )
    base = jax.device_get(models.init(encoder, jax.random.key(0)))

    def save(name, head, own=None):
        below, params = weights.task_head.prepare(encoder, base, head.kind, jax.random.key(1))
        drawn = models.init_head(head, below, jax.random.key(2))
        params["task_head"] = jax.device_get(jax.tree.map(lambda x: 30 * x, drawn))
        files = {"tokenizer_folder": folder / "words", "head": head, "own": own or {}}
        weights.save(folder / name, below, params, **files)

    for name, head in HEADS.items():
        save(name, head)
    save("numbered", TaskHead("sequence", ("LABEL_0", "LABEL_1")))
    save("reranking", TaskHead("sequence", ("relevance",), "multi"), {"pair": "document"})
    own = weights.SentenceFiles("cls", max_seq_length=24, prompts={"query": "who "})
    weights.save(
        folder / "retrieval", encoder, base, tokenizer_folder=folder / "words", sentence=own
    )
    save("tagger", HEADS["tagging"], {"scheme": "bio", "constrained": False})
    save("ours", HEADS["classification"], {"out_of_scope": "none", "threshold": 0.9, "pair": "x"})
    tagged = [{"tokens": text.split(), "tags": tags} for text, tags in TAGGED]
    asked = [
        {"id": str(i), "question": q, "context": c}
        | {"answers": [{"text": a, "answer_start": c.index(a)} for a in answers]}
        for i, (q, c, answers) in enumerate(ASKED * 3)
    ]
    rows = ["text\tlabel", *("\t".join(film) for film in FILMS)]
    (folder / "classification.tsv").write_text("\n".join(rows))
    sought = [dict(zip(("query", "positive", "negative"), row, strict=True)) for row in SOUGHT]
    files = {"tagging": tagged, "answering": asked, "retrieval": sought, "reranking": sought}
    files["hidden"] = [question | {"answers": []} for question in asked]
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.fixture
def opened(place):
    """opened("tagging", path=..., name of an option=...) -> (the model, the examples)."""

    def load(task, path="", file="", **options):
        values = default_config(task).to_dict()
        values["data"] |= {"folder": str(place), "max_length": 24, "buckets": (24,)}
        values["training"] |= {"batch_size": 8}
        values["options"] |= options
        run = from_values(values)
        named = file or (f"{task}.*l" if task != "classification" else f"{task}.tsv")
        examples = task_of(run).read([*place.glob(named)], Faults())
        model = fine_tuned.load(str(place / (path or task)), "m", run, examples)
        return model, model.task.arrange(examples, training=False)

    return load


@pytest.mark.parametrize("task", HEADS)
def test_a_folder_is_measured_as_it_answers(place, opened, task):
    model, examples = opened(task)
    found = model.predict(examples)
    answering = distilflax.load(place / task)
    asked = {
        "classification": lambda: answering.classify([e.text for e in examples]),
        "tagging": lambda: answering.tag([list(e.words) for e in examples]),
        "answering": lambda: answering.answer(
            [e.question for e in examples], [e.context for e in examples]
        ),
    }[task]()
    key = {"classification": "label", "tagging": "tags", "answering": "n_best"}[task]
    if task == "answering":
        assert model.task.unanswerable  # Known from the data alone.
        asked, found = ([one["n_best"][0]["text"] for one in side] for side in (asked, found))
    else:
        asked, found = ([one[key] for one in side] for side in (asked, found))
    assert asked == found


def test_answers_that_are_all_hidden_do_not_say_that_there_may_be_none(opened):
    faults = Faults()
    model, examples = opened("answering", file="hidden.jsonl")
    assert not model.task.unanswerable
    assert model.task.split(examples, faults, training=False) == []
    model, _ = opened("answering", file="hidden.jsonl", unanswerable=True)
    assert model.task.split(examples, faults, training=False) == examples
    assert [note.split("and ")[1][:12] for note in faults.notes] == ["the model al", "figures say "]


@pytest.mark.parametrize("task", HEADS)
def test_every_example_counted_once_gives_the_figures(opened, task):
    model, examples = opened(task)
    found = model.predict(examples)
    number, figures = model.task.by_index(found, examples)
    whole = model.task.metrics(found, examples)
    for name, value in figures(np.arange(number)).items():
        assert value == pytest.approx(whole[name]), name
    # Twice the same examples say the same.
    assert figures(np.repeat(np.arange(number), 2)) == pytest.approx(figures(np.arange(number)))


@pytest.mark.parametrize("task", HEADS)
def test_a_model_keeps_all_of_itself(opened, task):
    model, examples = opened(task)
    figures = fine_tuned.measure([model, model], examples, resamples=20)
    first, second = figures[model.task.metric]
    assert first["interval"]["low"] <= first["score"] <= first["interval"]["high"]
    assert "retention" not in first
    assert set(second["difference"].values()) == {0.0}
    assert [entry["score"] > 0 for entry in figures["seconds_per_1000"]] == [True, True]


class Answering(fine_tuned.FineTuned):
    """What is said of every example is known beforehand."""

    def __init__(self, task, answers):
        vars(self).update(task=task, predict=lambda few: answers[: len(few)])


def test_f1_is_of_one_label_whatever_the_order_of_the_heads():
    examples = [Example("", text, label=label) for text, label in FILMS]
    said = [{"label": "bad", "score": 1.0}, {"label": "good", "score": 1.0}]
    answers = said * (len(FILMS) // 2 - 1) + said[:1] * 2  # one that is good is called bad
    model, turned, three = (
        Answering(Classification(labels=labels), answers)
        for labels in (("bad", "good"), ("good", "bad"), ("good", "bad", "fair"))
    )
    found = {}
    for compared, label in (([model, turned], "good"), ([turned, model], "bad")):
        assert fine_tuned.positive(compared) == label
        first, second = fine_tuned.measure(compared, examples, resamples=20)["f1"]
        assert first == {name: second[name] for name in first}
        assert set(second["difference"].values()) == {0.0}
        found[label] = first["score"]
    assert found == pytest.approx({"good": 14 / 15, "bad": 16 / 17})
    # Of more labels there is no such figure, nor of a number.
    number = Answering(Classification(problem="regression", labels=("score",)), [])
    assert fine_tuned.positive([three, model]) == fine_tuned.positive([number]) == ""
    assert "f1" not in fine_tuned.measure([three, model], examples, resamples=20)


@pytest.mark.parametrize("task", ["retrieval", "reranking"])
def test_of_search_queries_are_drawn(place, opened, task):
    model, examples = opened(task)
    found = model.predict(examples)
    number, of = model.task.by_index(found, examples)
    assert number == len(SOUGHT)
    assert of(np.arange(number)) == pytest.approx(model.task.metrics(found, examples))
    answering, asked = distilflax.load(place / task), SOUGHT[0][0]
    if task == "retrieval":
        # Pooling and prompt are those of the folder.
        np.testing.assert_allclose(found[0]["vectors"][0], answering.encode_query(asked), atol=1e-5)
    else:
        scores = {one["index"]: one["score"] for one in answering.rerank(asked, SOUGHT[0][1:])}
        assert [one["score"] for one in found[:2]] == pytest.approx([scores[0], scores[1]])
    figures = fine_tuned.measure([model, model], examples, resamples=20)
    assert set(figures[model.task.metric][1]["difference"].values()) == {0.0}


def test_labels_without_names_are_those_of_the_data(opened):
    named, examples = opened("classification")
    for options in ({}, {"labels": ("bad", "good")}):
        numbered, _ = opened("classification", "numbered", **options)
        assert numbered.task.labels == ("bad", "good")
        assert numbered.predict(examples) == named.predict(examples)
    turned, _ = opened("classification", "numbered", labels=("good", "bad"))
    assert turned.predict(examples)[0]["label"] != named.predict(examples)[0]["label"]


def test_a_heads_own_names_hold_in_whatever_order_the_config_has_them(opened):
    own, examples = opened("classification")
    turned, _ = opened("classification", labels=own.task.labels[::-1])
    assert turned.predict(examples) == own.predict(examples)
    renamed, _ = opened("classification", labels=("no", "yes"))
    assert renamed.task.labels == ("no", "yes")


def test_a_folder_of_ours_brings_its_threshold_and_reads_the_columns_of_the_config(opened):
    model, examples = opened("classification", "ours")
    assert (model.task.threshold, model.task.out_of_scope) == (0.9, "none")
    assert model.task.pair == ""
    assert fine_tuned.tuned(model, examples).task.threshold == 0.9  # Nothing here is out of scope.


def test_what_the_config_says_counts_for_more_than_the_folder(opened):
    assert opened("tagging", "tagger")[0].task.scheme == "bio"
    model, _ = opened("tagging", "tagger", scheme="iob1", constrained=True)
    assert (model.task.scheme, model.task.constrained) == ("iob1", True)


@pytest.mark.parametrize(
    ("task", "path", "options", "sentence"),
    [
        ("classification", "tagging", {}, "has a token head .* needs a sequence head"),
        ("classification", "", {"problem": "multi"}, r"\(single\) .* needs .*\(multi\)"),
        ("classification", "", {"labels": ("a", "b", "c")}, "names 3 labels and .* has 2"),
        ("classification", "", {"labels": ("bad", "good", "good")}, "names 3 labels and .* has 2"),
        ("classification", "", {"labels": ("good", "x")}, "'good' as another .*bad, good"),
        ("classification", "words", {}, "config.json"),
        ("reranking", "classification", {}, "has 2 labels and a reranker"),
    ],
)
def test_what_does_not_fit_is_one_sentence(opened, task, path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        opened(task, path, **options)
