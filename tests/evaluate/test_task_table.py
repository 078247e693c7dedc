"""The table of tasks: pairs by seed, averages of what was run everywhere, and dashes elsewhere."""

import json

import numpy as np
import pytest
from scipy import stats

from distilflax.errors import UserError
from distilflax.evaluate import tables, task_table
from distilflax.evaluate.task_table import AVERAGE, Put

ARMS, PAIRS = ("teacher", "small", "small+"), (("small+", "small"),)
RNG = np.random.default_rng(0)
SEEDS = (0, 1, 2)
# Seeds are unlike each other and tasks too; what is compared within a seed is not.
LEVEL = {(task, seed): 0.7 + 0.2 * RNG.random() for task in ("a", "b") for seed in SEEDS}
SHIFT = {"teacher": 0.0, "small": -0.05, "small+": -0.03}


def runs(task, seeds=SEEDS):
    return {
        arm: {s: {"f1": LEVEL[task, s] + shift, "exact": 0.5} for s in seeds}
        for arm, shift in SHIFT.items()
    }


def built(*tasks, **facts):
    given = {"title": "T", "explained": {}, "notes": [], "command": "c", "config": {}} | facts
    return task_table.build(tasks, ARMS, PAIRS, **given)


def test_what_is_kept_and_differs_is_paired_by_seed():
    (entry,) = built(Put("a", ("f1", "exact"), runs("a")))["tasks"]
    ratios = [1 + SHIFT["small"] / LEVEL["a", s] for s in SEEDS]
    low, high = stats.t.interval(0.95, 2, np.mean(ratios), stats.sem(ratios))
    kept = entry["kept"]["small"]
    assert (kept["value"], kept["low"], kept["high"]) == pytest.approx((np.mean(ratios), low, high))
    (gap,) = entry["differences"]
    assert gap["value"] == pytest.approx(0.02)
    # All seeds have the same difference, though their scores are far apart.
    assert gap["high"] - gap["low"] < 1e-9
    means = entry["means"]["small"]["f1"]
    assert means["high"] - means["low"] > 0.05


def test_of_nothing_there_is_a_difference_and_no_share():
    figures = {"teacher": (-0.1, 0.4), "small": (-0.1, 0.2), "small+": (0.3, 0.2)}
    found = {arm: {s: {"f1": f} for s, f in enumerate(of)} for arm, of in figures.items()}
    (entry,) = built(Put("a", ("f1",), found))["tasks"]
    assert entry["differences"][0]["value"] == pytest.approx(0.2)
    assert entry["kept"]["small"]["value"] == pytest.approx(0.5)


def test_the_average_counts_tasks_alike_and_seeds_that_all_have():
    first = Put("a", ("f1",), runs("a"), classic=("none", {"f1": 0.2}))
    second = Put("b", ("f1",), runs("b", (0, 2)), classic=("none", {"f1": 0.4}))
    aside = Put("c", ("f1",), runs("a"), averaged=False)
    *_, whole = built(first, second, aside)["tasks"]
    assert whole["name"] == AVERAGE and whole["of"] == ["a", "b"]
    found = {int(seed): of[AVERAGE] for seed, of in whole["runs"]["teacher"].items()}
    assert found == pytest.approx({s: (LEVEL["a", s] + LEVEL["b", s]) / 2 for s in (0, 2)})
    assert whole["classic"]["figures"][AVERAGE] == pytest.approx(0.3)


def test_the_note_says_who_has_fewer_seeds():
    assert "fewer" not in scores_note(Put("a", ("f1",), runs("a")), Put("b", ("f1",), runs("b")))
    fewer = runs("b", (0, 1))
    fewer["small"] = {0: fewer["small"][0]}
    note = scores_note(Put("a", ("f1",), runs("a")), Put("b", ("f1",), fewer))
    assert "means over seeds 0, 1, 2, with" in note
    assert "several (fewer seeds: b: 0, 1; small of b: 0). The" in note


def scores_note(*tasks):
    return task_table.tables(built(*tasks))[0].note


def test_what_was_not_run_is_a_dash(tmp_path):
    some = {"teacher": runs("a")["teacher"], "small": {0: {"f1": 0.5}}}
    report = built(Put("a", ("f1",), some), Put("b", ("f1",), {}))
    scores, kept, differences, _ = task_table.tables(report)
    assert scores.rows[0][1] == tables.MISSING and scores.rows[0][3] == "50.0"
    assert scores.rows[0][4] == tables.MISSING
    assert set(scores.rows[1][1:]) == set(kept.rows[1][1:]) == {tables.MISSING}
    assert differences.rows[0][1:] == (tables.MISSING,)
    path = task_table.write(tmp_path, report)
    assert "50.0" in path.read_text()
    assert json.loads(path.with_suffix(".json").read_text())["tasks"][1]["name"] == "b"


def test_learning_rates_are_shown_where_they_were_chosen():
    tried = {"teacher": {1e-4: 0.8, 2e-4: 0.9}, "small": {1e-4: 0.7, 2e-4: 0.6}}
    report = built(Put("a", ("f1",), runs("a"), tried=tried), Put("b", ("f1",), runs("b")))
    titles = {table.title: table for table in task_table.tables(report)}
    assert titles["Learning rates"].rows == (("a", "0.0002 ↑ (10.0)", "0.0001 ↓ (10.0)"),)
    alone = built(Put("a", ("f1",), runs("a"), tried={"teacher": {1e-4: 0.8}}))
    assert "Learning rates" not in {table.title for table in task_table.tables(alone)}


def test_a_figure_that_there_is_none_of():
    with pytest.raises(UserError, match="has 'f2'; choose from exact, f1"):
        built(Put("a", ("f2",), runs("a")))
