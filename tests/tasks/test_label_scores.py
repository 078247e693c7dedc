"""Figures of drawn examples: those of `metrics`, and intervals that hold what they are of."""

import numpy as np
import pytest

from distilflax.evaluate import fine_tuned, intervals
from distilflax.tasks import Classification, label_scores
from distilflax.tasks.classification import Example

RNG = np.random.default_rng(3)
ROWS = 200


def examples(labels):
    return [Example(f"line {i}", "a film", None, label) for i, label in enumerate(labels)]


def one_of(names, wrong=0.3):
    """Labels, of which the later are rarer, and what a model says that is often wrong."""
    share = 1 / (1 + np.arange(len(names)))
    truth = RNG.choice(names, ROWS, p=share / share.sum())
    said = np.where(RNG.random(ROWS) < wrong, RNG.choice(names, ROWS), truth)
    return truth.tolist(), said.tolist()


def single(labels, names=None, **options):
    truth, said = one_of(labels if names is None else names)
    predictions = [
        {"label": name, "score": score}
        for name, score in zip(said, RNG.random(ROWS).tolist(), strict=True)
    ]
    return Classification(labels=labels, **options), predictions, examples(truth)


def several(labels, used):
    sets = RNG.random((2, ROWS, used)) < 0.4
    truth, said = ([tuple(np.array(labels)[:used][row].tolist()) for row in side] for side in sets)
    task = Classification(problem="multi", labels=labels)
    return task, [{"labels": list(names)} for names in said], examples(truth)


def out_of_scope():
    task, predictions, rows = single(("a", "b"), ("a", "b", "oos"), out_of_scope="oos")
    nearest = [{"nearest": "a"} if p["label"] == "oos" else {} for p in predictions]
    return task, [p | n for p, n in zip(predictions, nearest, strict=True)], rows


CASES = {
    "many classes": lambda: single(tuple(f"class {i}" for i in range(60))),
    "two classes": lambda: single(("no", "yes")),
    "two, of which the data has one": lambda: single(("no", "yes"), ("no",)),
    "two, of which the data has the other": lambda: single(("no", "yes"), ("yes",)),
    "out of scope": out_of_scope,
    "sets": lambda: several(("a", "b", "c", "d", "e"), 5),
    "sets of labels that no text has": lambda: several(("a", "b", "c", "d", "e"), 3),
    "sets of one label": lambda: several(("a",), 1),
}


@pytest.mark.filterwarnings("ignore:A single label was found")  # by scikit-learn, of such data
@pytest.mark.parametrize("case", CASES)
def test_a_draw_has_the_figures_of_its_examples(case):
    task, predictions, rows = CASES[case]()
    number, figures = task.by_index(predictions, rows)
    assert number == ROWS
    for at in (np.arange(ROWS), *RNG.integers(0, ROWS, (20, ROWS)), RNG.integers(0, ROWS, 50)):
        own = task.metrics([predictions[i] for i in at], [rows[i] for i in at])
        assert figures(at) == pytest.approx(own, rel=0, abs=1e-12)


def test_numbers_are_drawn_too():
    task = Classification(problem="regression", labels=("score",))
    rows, at = examples(RNG.random(ROWS).tolist()), RNG.integers(0, ROWS, ROWS)
    predictions = [{"value": value} for value in RNG.random(ROWS).tolist()]
    number, figures = task.by_index(predictions, rows)
    own = task.metrics([predictions[i] for i in at], [rows[i] for i in at])
    assert (number, figures(at)) == (ROWS, own)


# Most labels are of one text or two, as in Reuters, and one is of none.
RARE = [(f"l{i}",) for i, times in enumerate([1] * 20 + [2] * 15 + [20] * 5) for _ in range(times)]


def test_labels_that_a_draw_lacks_are_left_out_of_it():
    task = Classification(problem="multi", labels=tuple(f"l{i}" for i in range(41)))
    rows, sure = examples(RARE), [{"labels": list(names)} for names in RARE]
    unsure = [p if RNG.random() < 0.8 else {"labels": []} for p in sure]
    # What no text has and a model says of one is 0 in the figure, and in draws without that text.
    strange = [{"labels": [*sure[0]["labels"], "l40"]}, *sure[1:]]
    drawn = [fine_tuned.draws(task, found, rows, 200) for found in (sure, unsure, strange)]
    best, other, third = (task.metrics(p, rows)["macro_f1"] for p in (sure, unsure, strange))
    assert best == third == 40 / 41
    np.testing.assert_allclose(drawn[0]["macro_f1"], best)
    np.testing.assert_allclose(drawn[2]["macro_f1"], best)
    apart = intervals.compare_draws((other, best), drawn[1]["macro_f1"], drawn[0]["macro_f1"])
    low, high = apart.difference.low, apart.difference.high
    assert low < other - best < high
    assert (low + high) / 2 == pytest.approx(other - best, abs=0.03)


def test_a_draw_without_any_label_is_nothing_right():
    figures = label_scores.of_sets(("a", "b"), [("a",), ()], [("a",), ()])
    assert figures(np.array([1, 1])) == {"micro_f1": 0.0, "macro_f1": 0.0, "accuracy": 1.0}


def test_matthews_of_many_examples_is_within_its_bounds():
    truth = ["a", "b"] * 50_000
    said = [{"label": name} for name in [*truth[:-1], "a"]]
    figures = label_scores.of_one(truth, said, None)(np.arange(len(truth)))
    assert figures["matthews"] == pytest.approx(1 - 2e-5, abs=1e-7)
