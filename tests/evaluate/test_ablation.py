"""The table of an ablation: paired differences, intervals by Student's t, and nothing claimed."""

import inspect
import json
import typing

import numpy as np
import pytest
from scipy import stats

from distilflax import settings
from distilflax.errors import UserError
from distilflax.evaluate import ablation, grid, tables

SEEDS = (0, 1, 2, 3, 4)
RNG = np.random.default_rng(0)
# The seeds are unlike each other, the arms' differences are not: pairing is what shows them.
BASE = {seed: 0.5 + 0.1 * RNG.normal() for seed in SEEDS}


def figures(value):
    return {"mrr@10": value, "ndcg@10": value + 0.1, "mlm_accuracy": None, "agreement": value / 2}


def runs_of(shift, noise=0.002):
    return {seed: figures(BASE[seed] + shift + noise * RNG.normal()) for seed in SEEDS}


RUNS = {
    "full": {seed: figures(BASE[seed]) for seed in SEEDS},
    "worse": runs_of(-0.02),
    "same": {seed: figures(BASE[seed] + 0.01 * (-1) ** seed) for seed in SEEDS},
    "broken": {seed: None if seed == 2 else figures(BASE[seed] - 0.3) for seed in SEEDS},
}


def built(runs=RUNS, **facts):
    given = {"title": "T", "command": "c", "config": {"a": 1}} | facts
    return ablation.build(
        runs,
        full="full",
        metric="mrr@10",
        teacher=figures(0.9) | {"agreement": None},
        changes={"worse": "losses.kl.weight=0.0"},
        **given,
    )


def arm(report, name):
    return next(entry for entry in report["arms"] if entry["name"] == name)


def test_differences_are_paired_and_their_intervals_students():
    report = built()
    gaps = [RUNS["worse"][s]["mrr@10"] - RUNS["full"][s]["mrr@10"] for s in SEEDS]
    low, high = stats.t.interval(0.95, 4, np.mean(gaps), stats.sem(gaps))
    found = arm(report, "worse")["difference"]["mrr@10"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (np.mean(gaps), low, high)
    )
    # Unpaired, the seeds' own spread would hide it.
    own = arm(report, "worse")["figures"]["mrr@10"]
    assert own["low"] < np.mean(list(BASE.values())) < own["high"]
    assert ablation.separates(found)
    assert not ablation.separates(arm(report, "same")["difference"]["mrr@10"])


def test_the_table_says_what_separates_and_what_diverged():
    shown = ablation.table(built())
    rows = {row[0]: row for row in shown.rows}
    assert [rows[name][3] for name in RUNS] == [tables.MISSING, "yes", "no", "yes"]
    assert rows["full"][2] == tables.MISSING
    assert rows["teacher"][1] == "0.900"
    assert "Diverged, and left out: broken under seed 2" in shown.note
    assert rows["broken"][2].startswith("-0.300")


def test_one_seed_has_no_interval_and_separates_nothing():
    one = {name: {0: of_seeds[0]} for name, of_seeds in RUNS.items()}
    shown = ablation.table(built(one))
    assert {row[0]: row[3] for row in shown.rows}["worse"] == "no"
    assert shown.rows[0][1] == f"{BASE[SEEDS[0]]:.3f}"


def test_it_is_written_with_its_figure(tmp_path):
    pytest.importorskip("matplotlib")
    path = ablation.write(tmp_path, built())
    report = json.loads((tmp_path / ablation.FILE).read_text())
    assert arm(report, "broken")["diverged"] == [2]
    text = path.read_text()
    assert "losses.kl.weight=0.0" in text and "(ablation.png)" in text
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.part*"))


def test_what_is_no_json_is_loud_and_no_place_for_it_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        ablation.write(tmp_path, built() | {"title": float("nan")})
    with pytest.raises(UserError, match="cannot be written"):
        ablation.write(tmp_path / "nowhere", built())


def test_every_metric_that_may_be_chosen_is_measured():
    choices = settings.Ablation.__dataclass_fields__["metric"].metadata["choices"]
    assert set(choices) == set(ablation.METRICS)


def test_a_metric_that_needs_a_head_is_refused_without_one():
    class Teacher(typing.NamedTuple):
        params: dict

    class Materials(typing.NamedTuple):
        teacher: Teacher

    which = settings.Experiment(ablation=settings.Ablation(metric="mlm_accuracy"))
    # Without the check of its annotations: only what it asks of the materials first is here.
    init = inspect.unwrap(ablation.Yardstick.__init__)
    with pytest.raises(UserError, match="neither the teacher nor any term has a masked-LM head"):
        init(object.__new__(ablation.Yardstick), which, Materials(Teacher({"encoder": {}})))


def test_a_recipe_alone_is_compared_with_nothing():
    note = ablation.table(built({"full": RUNS["full"]})).note
    assert note.endswith("over the seeds.") and "difference" not in note


@pytest.mark.parametrize("content", ["{}", "5", '{"figures": {'])
def test_results_that_are_damaged_are_told(tmp_path, content):
    assert grid.read_results(tmp_path / "results.json") is None
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json is damaged .*trains those arms again"):
        grid.read_results(tmp_path / "results.json")
