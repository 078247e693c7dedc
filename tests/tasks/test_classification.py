"""One label, many labels, a number; what is out of scope; class weights."""

import itertools
import math

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.settings import Encoder
from distilflax.tasks import Classification, classification, scores, softened
from distilflax.tasks.classification import Example
from distilflax.tasks.confidence import best_threshold, softmax
from distilflax.tasks.records import Faults
from distilflax.tasks.task import NOTHING, Features

# Decoding classes looks at the logits alone.
ROWS = Features([], [], np.arange(0))


def examples(*labels):
    return [Example(f"file line {i}", "a film", None, label) for i, label in enumerate(labels)]


def batch(task, labels, rows=4):
    target = task._targets(examples(*labels))
    return {"label": jnp.asarray(target), "attention_mask": jnp.ones((rows, 3), jnp.int32)}


def test_labels_are_discovered_in_order_or_given():
    assert Classification().learn(examples("10", "2", "b", "2")).labels == ("2", "10", "b")
    # Not a number is a name: compared as one, it would come wherever the set happens to have it.
    assert Classification().learn(examples("nan", "2", "10")).labels == ("2", "10", "nan")
    assert Classification(labels=("y", "x")).learn(examples("x", "y")).labels == ("y", "x")
    with pytest.raises(UserError, match="has 1 labels"):
        Classification().learn(examples("a", "a"))


def test_columns_are_read_and_labels_checked(write):
    path = write("a.tsv", "a\tb\tscore\nx\ty\t0.5\nx\ty\tmuch\n")
    task = Classification(text="a", pair="b", label="score", problem="regression")
    faults = Faults(skip=True)
    assert task.read([path], faults) == [Example(f"{path} line 2", "x", "y", 0.5)]
    assert "line 3: 'score' is 'much', not a number" in faults.summary()
    many = Classification(text="a", label="b", problem="multi", separator=" ")
    path = write("b.tsv", "a\tb\nx\tp q\ny\t\n")
    assert [e.label for e in many.read([path], Faults())] == [("p", "q"), ()]
    path = write("c.jsonl", [{"a": ["two", "words"], "b": ["p", 3]}])
    assert many.read([path], Faults())[0][1:4] == ("two words", None, ("p", "3"))
    path = write("d.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": None}])
    for problem in ("single", "multi"):
        with pytest.raises(UserError, match=r"d\.jsonl line 2: 'label' is null"):
            Classification(problem=problem).read([path], Faults())


def test_numbers_are_the_classes_that_are_named(write):
    names = ("sports", "politics", "arts")
    task = Classification(label_names=names)
    for name, content in (("a.tsv", "text\tlabel\nx\t2\ny\t0\n"), ("a.jsonl", None)):
        content = content or [{"text": "x", "label": 2}, {"text": "y", "label": 0}]
        found = task.read([write(name, content)], Faults())
        assert [e.label for e in found] == ["arts", "sports"]
        # In the order of their numbers, as other libraries number them.
        assert task.learn(found).labels == names  # one is named that no text has
    several = Classification(problem="multi", label_names=names)
    content = [{"text": "x", "label": [1, 2]}, {"text": "y", "label": "0,1"}]
    found = several.read([write("b.jsonl", content)], Faults())
    assert [e.label for e in found] == [("politics", "arts"), ("sports", "politics")]
    named = task.read([write("c.tsv", "text\tlabel\nx\tsports\n")], Faults())
    assert [e.label for e in named] == ["sports"]
    for wrong, sentence in (
        ("3", "is 3, and config.options.label_names names 3 classes"),
        ("sport", "is 'sport', and"),
        ("-1", "is empty; give it a label"),  # which is no label, as in GLUE's test files
    ):
        with pytest.raises(UserError, match=rf"line 2: 'label' {sentence}"):
            task.read([write("c.tsv", f"text\tlabel\nx\t{wrong}\n")], Faults())


def test_numbers_may_begin_at_one(write):
    path = write("ag.csv", "label,text\n4,x\n1,y\n-1,z\n")
    with pytest.raises(UserError, match=r"is 4, and .* from 0 on; .*config\.options\.numbered_fr"):
        Classification(label_names=("a", "b", "c", "d")).read([path], Faults())
    task, faults = Classification(label_names=("a", "b", "c", "d"), numbered_from=1), Faults(True)
    found = task.read([path], faults)
    assert [e.label for e in found] == ["d", "a"] and "line 4: 'label' is empty" in faults.first
    assert task.learn(found).labels == ("a", "b", "c", "d")
    for wrong in (0, 5):
        path = write("b.csv", f"label,text\n{wrong},x\n")
        with pytest.raises(UserError, match=f"is {wrong}, and .* names 4 classes, from 1 on"):
            task.read([path], Faults())


def test_names_that_are_numbers_are_their_own(write):
    path = write("stars.tsv", "text\tlabel\nx\t1\ny\t3\n")
    for names in (("1", "2", "3"), ("-1", "0", "1"), ("0", "2"), ("a", "2")):
        with pytest.raises(UserError, match=r"_names has '-?\d', which .* config\.options\.labels"):
            Classification(label_names=names)
    for task in (
        Classification(label_names=("1", "2", "3"), numbered_from=1),
        Classification(label_names=("0", "1", "two", "3")),
        Classification(labels=("1", "2", "3")),
    ):
        assert [e.label for e in task.read([path], Faults())] == ["1", "3"]


def test_classes_that_a_file_names_keep_their_order(tmp_path):
    label = datasets.ClassLabel(names=["not_equivalent", "equivalent", "unclear"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = {"text": ["x", "y"], "label": [1, 0]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    found = Classification().read([path], Faults())
    assert [e.label for e in found] == ["equivalent", "not_equivalent"]
    task = Classification().learn(found)
    assert task.labels == ("not_equivalent", "equivalent", "unclear")
    assert task.learned == "3 labels (not_equivalent, equivalent, unclear)"
    # What no text has weighs nothing in the weights of the others.
    assert Classification(balanced=True).learn(found).class_weights[:2] == (1.0, 1.0)
    rejected = Classification(out_of_scope="unclear").learn(found)
    assert rejected.labels == ("not_equivalent", "equivalent")


def test_a_table_with_gaps_writes_numbers_as_fractions(write):
    task = Classification(label_names=("no", "yes"))
    assert task.read([write("a.csv", "text,label\nx,1.0\n")], Faults())[0].label == "yes"
    rated = Classification(label_names=("1.0", "2.0"))
    assert rated.read([write("c.csv", "text,label\nx,1.0\n")], Faults())[0].label == "1.0"
    long = write("b.csv", f"text,label\nx,{'1' * 5000}\n")
    with pytest.raises(UserError, match="names 2 classes, from 0 on"):
        task.read([long], Faults())


def test_many_labels_may_have_a_column_or_a_number_each(write, tmp_path):
    own = Classification(problem="multi", label="toxic, rude", text="t")
    found = own.read([write("a.csv", "t,rude,toxic\nx,1,0\ny,0,0\nz,1.0,1\n")], Faults())
    assert [e.label for e in found] == [("rude",), (), ("toxic", "rude")]
    assert own.learn(found[:2]).labels == ("toxic", "rude")
    found = own.read([write("c.csv", "t,rude,toxic\nx,True,False\ny,FALSE,true\n")], Faults())
    assert [e.label for e in found] == [("rude",), ("toxic",)]  # pandas' booleans
    with pytest.raises(UserError, match="line 2: 'toxic' is '2', not 0 or 1"):
        own.read([write("b.csv", "t,rude,toxic\nx,1,2\n")], Faults())
    with pytest.raises(UserError, match=r"names 2 columns .*; set config\.options\.problem=multi"):
        Classification(label="toxic, rude", text="t").read([tmp_path / "a.csv"], Faults())
    with pytest.raises(UserError, match="has no column 'rude'"):
        own.read([write("c.csv", "t,toxic\nx,1\n")], Faults())
    rows = [{"text": "x", "label": [0, 1, 1]}, {"text": "y", "label": [0.0, 1.0, 0.0]}]
    hot = Classification(problem="multi", label_names=("a", "b", "c"))
    found = hot.read([write("d.jsonl", rows)], Faults())
    assert [e.label for e in found] == [("b", "c"), ("b",)]
    either = write("e.jsonl", [{"text": "x", "label": [1, 0]}])
    with pytest.raises(UserError, match=r"is \[1, 0\], which may be the numbers of both"):
        Classification(problem="multi", label_names=("a", "b")).read([either], Faults())
    told = write("f.csv", 'text,label\nx,"0,1"\n')
    found = Classification(problem="multi", label_names=("a", "b")).read([told], Faults())
    assert found[0].label == ("a", "b")
    with pytest.raises(UserError, match=r"a 0 or 1 for each of 3 labels, and .* names 0"):
        Classification(problem="multi").read([write("d.jsonl", rows)], Faults())


def test_labels_may_stand_in_the_text_as_fasttext_has_them(write):
    lines = (
        "__label__a,b __label__c who\u00a0 is\n__label__c\twhere __label__x\n\nhow x__label__y\n"
    )
    path = write("train.ft.txt", lines)
    several = Classification(delimiter="__label__", problem="multi")
    assert [e[1:4:2] for e in several.read([path], Faults())] == [
        ("who\u00a0 is", ("a,b", "c")),
        ("where", ("c", "x")),
        ("how x__label__y", ()),
    ]
    one, faults = Classification(delimiter="__label__"), Faults(skip=True)
    assert one.read([path], faults) == [] and faults.count == 3
    assert "line 1 has 2 labels (a,b, c); give it one, or set config.opt" in faults.first
    path = write("test.txt", "__label__2 Great CD: a film\n")
    (found,) = one.read([path], Faults())
    assert (found.label, found.text) == ("2", "Great CD: a film")
    named = Classification(delimiter="__label__", header=("stars", "t"), text="t", label="stars")
    assert named.read([path], Faults())[0].label == "2"


def test_what_is_no_label_is_a_fault_of_its_record(write):
    rows = [{"text": "x", "label": ["a"]}, {"text": None, "label": "a"}, {"label": "a"}]
    rows += [{"text": "x", "label": float("nan")}, {"text": float("nan"), "label": "a"}]
    path = write("a.jsonl", [*rows, {"text": "x", "label": "a"}])
    many = Classification(problem="multi")
    for wrong in ({"toxic": 1}, float("nan")):
        with pytest.raises(UserError, match="not labels"):
            many.read([write("b.jsonl", [{"text": "x", "label": wrong}])], Faults())
    number = Classification(problem="regression")
    with pytest.raises(UserError, match="not a number"):
        number.read([write("c.jsonl", [{"text": "x", "label": 10**400}])], Faults())
    faults = Faults(skip=True)
    assert len(Classification().read([path], faults)) == 1 and faults.count == len(rows)
    with pytest.raises(UserError, match=r"line 1: 'label' is \['a'\], not a label"):
        Classification().read([path], Faults())


def test_f1_is_that_of_the_second_of_two_labels():
    task = Classification(select="f1").learn(examples("no", "yes"))
    predictions = [{"label": label} for label in ("yes", "yes", "no", "no")]
    figures = task.metrics(predictions, examples("yes", "no", "yes", "no"))
    assert task.metric == "f1" and figures["f1"] == 0.5
    three = Classification().learn(examples("a", "b", "c"))
    assert "f1" not in three.metrics([{"label": "a"}, {"label": "b"}], examples("a", "c"))
    with pytest.raises(UserError, match=r"'f1', which is of the second of two labels, .* 3"):
        Classification(select="f1").learn(examples("a", "b", "c"))


def test_a_label_that_was_never_seen_is_a_fault():
    task = Classification().learn(examples("a", "b"))
    with pytest.raises(UserError, match=r"file line 1 has the label 'c'.*choose from a, b"):
        task.split(examples("a", "c"), Faults(), training=False)
    faults = Faults(skip=True)
    assert len(task.split(examples("a", "c"), faults, training=False)) == 1 == faults.count


def test_a_label_that_many_have_is_compared_with_all_labels_once(monkeypatch):
    task, asked, faults = Classification(labels=("a", "b")), [], Faults(skip=True)
    monkeypatch.setattr(classification, "choose_from", lambda name, _: asked.append(name))
    assert not task.split(examples(*"cdcdc"), faults, training=True)
    assert faults.count == 5 and asked == ["c", "d"]
    task.split(examples("x" * 1_000_000), long := Faults(skip=True), training=True)
    assert len(long.first) < 1000


def test_cross_entropy_is_the_mean_over_what_has_a_label():
    logits = jax.random.normal(jax.random.key(0), (4, 2))
    task = Classification(labels=("a", "b"))
    total, count = task.loss(logits, batch(task, ("a", "b", None, "b")))
    log_p = jax.nn.log_softmax(logits)
    assert count == 3
    np.testing.assert_allclose(total, -(log_p[0, 0] + log_p[1, 1] + log_p[3, 1]), rtol=1e-6)
    # Divided by the weights, as torch does.
    weighted = Classification(labels=("a", "b"), class_weights=(3.0, 1.0))
    total, count = weighted.loss(logits, batch(task, ("a", "b", None, "b")))
    assert count == 5
    np.testing.assert_allclose(total, -(3 * log_p[0, 0] + log_p[1, 1] + log_p[3, 1]), rtol=1e-6)


def test_balanced_weights_give_every_class_the_same_say():
    with pytest.raises(UserError, match="balanced and class_weights; leave one"):
        Classification(balanced=True, class_weights=(1.0, 2.0)).learn(examples("a", "b"))
    task = Classification(balanced=True).learn(examples("a", "a", "a", "b"))
    assert task.class_weights == pytest.approx((4 / 6, 4 / 2))


def test_many_labels_and_numbers():
    logits = jnp.array([[2.0, -1.0], [0.5, 0.5], [0.0, 9.0]])
    many = Classification(problem="multi", labels=("a", "b"))
    total, count = many.loss(logits, batch(many, (("a",), ("a", "b"), None)))
    p = jax.nn.sigmoid(logits)
    value = jnp.log(p[0, 0]) + jnp.log(1 - p[0, 1]) + jnp.log(p[1, 0]) + jnp.log(p[1, 1])
    np.testing.assert_allclose((total, count), (-value / 2, 2), rtol=1e-6)
    assert many.decode(list(np.asarray(logits)), ROWS, [])[0]["labels"] == ["a"]
    predictions = [{"labels": ["a"]}, {"labels": []}]
    figures = many.metrics(predictions, examples(("a",), ("b",)))
    assert figures["accuracy"] == 0.5 and figures["micro_f1"] == pytest.approx(2 / 3)
    # Of one label alone its being absent is none to be right about.
    alone = scores.label_sets(np.array([[True], [False], [False]]), np.zeros((3, 1), bool))
    assert alone["micro_f1"] == alone["macro_f1"] == 0.0 and alone["accuracy"] == 2 / 3

    number = Classification(problem="regression").learn([])
    assert number.labels == ("score",)
    total, count = number.loss(logits[:, :1], batch(number, (1.0, None, 3.0)))
    np.testing.assert_allclose((total, count), (1 + 9, 2), rtol=1e-6)
    found = number.decode([np.array([x]) for x in (0.1, 0.2, 0.4)], ROWS, [])
    assert number.metrics(found, examples(1.0, 2.0, 3.0))["spearman"] == pytest.approx(1.0)
    assert number.metrics(found, examples(1.0, 1.0, 1.0))["pearson"] == 0.0
    same = number.metrics([{"value": 2.0}] * 3, examples(1.0, 2.0, 3.0))
    assert same["pearson"] == same["spearman"] == same["combined"] == 0.0


def test_a_number_may_go_through_a_sigmoid():
    task = Classification(problem="regression", activation="sigmoid").learn([])
    assert task.head(Encoder()).activation == "sigmoid"
    logits, real = jnp.array([[0.0], [-1000.0]]), {"attention_mask": jnp.ones((2, 3), jnp.int32)}
    total, count = task.loss(logits, batch(task, (1.0, 0.0), 2))
    np.testing.assert_allclose((total, count), (0.25, 2))
    found = task.decode(list(np.asarray(logits)), ROWS, [])
    assert [one["value"] for one in found] == [0.5, 0.0]
    assert len(task.split(examples(0.0, 4.5), Faults(), training=False)) == 2
    with pytest.raises(UserError, match=r"line 1 has the number 4.5, and a sigmoid says those"):
        task.split(examples(0.0, 4.5), Faults(), training=True)
    # A teacher's logits are numbers by then.
    assert task.distil(logits, jnp.array([[0.5], [0.0]]), real, 1.0).sum == 0.0
    features = Features([], [], np.arange(2), {"label": np.array([0.1, 0.3], np.float32)})
    assert task.prior(features, np.arange(2)) == pytest.approx(math.log(0.2 / 0.8), rel=1e-6)


def test_softened_distances_vanish_where_both_agree_and_ignore_shifts():
    key = jax.random.key(1)
    a, b = jax.random.normal(key, (2, 5, 3))
    np.testing.assert_allclose(softened.kl(a, a + 3.0, 2.0), 0.0, atol=1e-5)
    np.testing.assert_allclose(softened.binary_kl(a, a, 2.0), 0.0, atol=1e-6)
    # At a high temperature T^2 KL is half the squared distance of centred logits over N.
    centred = (a - a.mean(-1, keepdims=True)) - (b - b.mean(-1, keepdims=True))
    wanted = 0.5 * jnp.mean(centred**2, axis=-1)
    np.testing.assert_allclose(softened.kl(a, b, 50.0), wanted, rtol=0.1)


def test_softened_distances_are_their_formulas():
    student, teacher = jnp.array(np.random.default_rng(3).normal(size=(2, 5, 3)))
    soft = [np.exp(x / 2) for x in (student, teacher)]
    q, p = (x / x.sum(-1, keepdims=True) for x in soft)
    wanted = 4 * np.sum(p * np.log(p / q), axis=-1)
    np.testing.assert_allclose(softened.kl(student, teacher, 2.0), wanted, rtol=1e-4)
    q, p = (x / (1 + x) for x in soft)
    wanted = 4 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=-1)
    np.testing.assert_allclose(softened.binary_kl(student, teacher, 2.0), wanted, rtol=1e-4)


def test_padding_learns_nothing_from_a_teacher():
    task = Classification(labels=("a", "b"))
    logits = jnp.array([[1.0, 0.0], [5.0, 5.0]])
    given = {"attention_mask": jnp.array([[1, 1], [0, 0]])}
    _, count = task.distil(logits, logits[::-1], given, 2.0)
    assert count == 1


def test_the_threshold_is_the_best_of_all_there_are():
    rng = np.random.default_rng(0)
    for _ in range(20):
        confidence = rng.integers(0, 8, 30) / 8
        outside = rng.random(30) < 0.3
        right = (rng.random(30) < 0.7) & ~outside
        score = lambda t: np.sum(np.where(confidence < t, outside, right))  # noqa: B023, E731
        found = best_threshold(confidence, right, outside)
        assert score(found) == max(map(score, np.linspace(0, 1.1, 100)))


def test_of_equally_good_thresholds_the_greatest_is_taken():
    confidence, none = np.array([0.6, 0.2, 0.4]), np.zeros(3, bool)
    for right, wanted in (((0, 0, 0), 0.8), ((1, 0, 0), 0.5), ((1, 0, 1), 0.3), ((1, 1, 1), 0.0)):
        found = best_threshold(confidence, np.array(right, bool), none)
        assert found == pytest.approx(wanted)


def test_what_is_quite_sure_cannot_be_rejected():
    """No threshold of at most 1 is above 1, and between neighbours there is no number."""
    for confidence in ((0.25, 0.5, 1.0), (0.5, np.nextafter(0.7, 0), 0.7, np.nextafter(0.7, 1))):
        confidence = np.array(confidence)
        for kinds in itertools.product((0, 1, 2), repeat=len(confidence)):
            right, outside = (np.array(kinds) == kind for kind in (1, 2))
            score = lambda t: np.sum(np.where(confidence < t, outside, right))  # noqa: B023, E731
            found = best_threshold(confidence, right, outside)
            assert score(found) == max(map(score, (0.0, *confidence, 1.0))), kinds


def test_out_of_scope_is_detected_and_never_trained_on():
    task = Classification(out_of_scope="oos").learn(examples("a", "b", "oos"))
    assert task.labels == ("a", "b")
    given = examples("a", "b", "oos", "oos")
    assert len(task.split(given, Faults(), training=True)) == 2
    dev, faults = task.split(given, Faults(), training=False), Faults()
    task.split(given[:2], faults, training=False)
    assert faults.notes[0].startswith("no text is 'oos'")
    logits = [np.array(row) for row in ([4.0, 0], [0, 4.0], [0.5, 0], [0, 0.4])]
    target = {"label": np.array([0, 1, NOTHING, NOTHING])}
    task = task.tune(logits, Features([], [], np.arange(4), target), dev)
    found = task.decode(logits, ROWS, dev)
    assert [p["label"] for p in found] == ["a", "b", "oos", "oos"]
    assert found[3]["nearest"] == "b"
    figures = task.metrics(found, dev)
    assert figures["accuracy"] == figures["in_scope_accuracy"] == 1.0
    assert figures["out_of_scope_recall"] == figures["out_of_scope_precision"] == 1.0
    assert figures["out_of_scope_auroc"] == 1.0
    # One of the four pairs of a text in and a text out of scope is in the wrong order.
    unsure = [
        {"label": label, "score": s} for label, s in zip("abab", (0.9, 0.4, 0.5, 0.3), strict=True)
    ]
    assert task.metrics(unsure, dev)["out_of_scope_auroc"] == 0.75


def test_softmax_is_its_formula_and_does_not_overflow():
    logits = np.array([[1e4, 0.0], [0.0, np.log(3)]], np.float32)
    np.testing.assert_allclose(softmax(logits), [[1.0, 0.0], [0.25, 0.75]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"select": "f2"}, "choose from accuracy, macro_f1"),
        ({"problem": "multi", "out_of_scope": "x"}, "needs problem 'single'"),
        ({"labels": ("a", "oos"), "out_of_scope": "oos"}, "never learned"),
        ({"labels": ("a", "b"), "class_weights": (1.0,)}, "1 weights for 2 labels"),
        ({"problem": "multi", "separator": ""}, "separator is empty"),
        ({"class_weights": (1.0, float("nan"))}, "has one that is not above 0"),
        ({"class_weights": (1.0, 0.0)}, "has one that is not above 0"),
        ({"activation": "sigmoid"}, "activation needs problem 'regression'"),
        ({"problem": "regression", "balanced": True}, "balanced needs problem 'single' or 'multi'"),
        ({"numbered_from": 1}, "numbered_from needs label_names"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Classification(**options)
