import copy
import io
import math
import re
import struct

import pytest
from rich.console import Console

from distilflax.errors import UserError
from distilflax.evaluate import across_seeds, plots, report, tables


def comparison(value):
    return {"value": value, "low": value - 0.0111, "high": value + 0.0222}


def model(name, role, layers, mrr, reference_mrr):
    """Figures that are all different, so that one in another's place would show."""
    found = {
        "mrr@10": {"mean": mrr},
        "recall@1": {"mean": mrr - 0.1234},
        "recall@10": {"mean": mrr + 0.0567},
        "recall@100": {"mean": mrr + 0.0789},
        "ndcg@10": {"mean": mrr + 0.0345},
        "queries": 4321,
        "documents": 4319,
        "per_query": {"mrr@10": [mrr, mrr / 2, mrr, mrr / 3]},
    }
    if role != "teacher":
        for metric in ("mrr@10", "recall@1", "recall@10", "recall@100", "ndcg@10"):
            found[metric] |= {
                "difference": comparison(mrr - reference_mrr),
                "retention": comparison(mrr / reference_mrr),
            }
    return {
        "name": name,
        "role": role,
        "about": f"what {name} is",
        "layers": layers,
        "hidden_size": 384,
        "parameters": 1_234_567 * layers,
        "head_parameters": 178_000,
        "megabytes": 4.938268 * layers,
        "masked_lm": {
            "accuracy": 0.4 + mrr / 10,
            "perplexity": 10 / mrr,
            "cross_entropy": math.log(10 / mrr),
            "positions": 9876,
        },
        "agreement": None
        if role == "teacher"
        else {
            "kl": 1.5 - mrr,
            "top_1": mrr - 0.07,
            "cosines": (0.99, 0.9 - mrr / 10, 0.8 - mrr / 9, 0.7 - mrr / 8),
            "layers": ((0, 0), (1, 2), (2, 4), (3, 6)),
            "positions": 9876,
            "tokens": 65432,
        },
        "retrieval": found,
        "speed": {
            kind: {
                "median": seconds * layers,
                "p10": seconds * layers * 0.95,
                "p90": seconds * layers * 1.2,
                "rounds": 31,
                "batch": batch,
                "length": 128,
                "speed_up": 6 / layers,
            }
            for kind, seconds, batch in (("latency", 0.00213, 1), ("throughput", 0.0531, 32))
        },
    }


TEACHER = 0.8125
MODELS = [
    model("teacher", "teacher", 6, TEACHER, TEACHER),
    model("copied", "copied", 3, 0.6012, TEACHER),
    model("mlm_only", "mlm_only", 3, 0.4523, TEACHER),
    model("distilled", "distilled", 3, 0.7834, TEACHER),
]
TRAINING = {
    "distilled": {
        "steps": 777,
        "tokens": 1_234_500,
        "seconds": 250.0,
        "curve": {
            "step": [10, 20, 30],
            "loss": [9.0, 7.0, 6.0],
            "kl": [1.5, None, 0.9],  # a step without a masked word
            "mlm": [3.0, 2.5, 2.2],
        },
    },
    "mlm_only": {
        "steps": 778,
        "tokens": 1_234_600,
        "seconds": 200.0,
        "curve": {"step": [10, 20, 30], "loss": [6.0, 5.0, 4.5], "mlm": [3.1, 2.4, 2.1]},
    },
}


@pytest.fixture(scope="module")
def built():
    return report.build(
        copy.deepcopy(MODELS),
        title="A distillation",
        command="python -m experiments.distill --config=x",
        config={"seed": 17, "losses": {"kl": {"weight": 5.25}}},
        text={"sources": "documentation", "sequences": 31415},
        training=TRAINING,
        notes={"summary": "Its head was fitted.", "training": "Two at a time."},
    )


def test_a_report_of_what_could_not_be_measured_is_a_report_all_the_same(tmp_path):
    """A file of one-line texts has nothing to search for, and a run may hold no text out."""
    models = [m | {"retrieval": None, "masked_lm": None, "agreement": None} for m in MODELS]
    built = report.build(models, title="T", command="c", config={"seed": 0}, text={})
    text = report.write(tmp_path, built).read_text()
    assert "No retrieval" in text and "## Speed" in text and "## Retrieval" not in text
    assert not (tmp_path / "retention.png").exists()


def test_notes_stand_below_their_tables(built):
    assert "128 tokens. Its head was fitted.\n" in tables.markdown(tables.summary(built)) + "\n"
    assert tables.training(built).note.endswith("Two at a time.")


def rendered(text):
    """Every number in some text, without thousands separators."""
    return {float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))}


def shown(value, numbers, scale=1.0):
    """Whether a figure is there, rounded to at least one decimal."""
    return any(round(scale * value, digits) in numbers for digits in (1, 2, 3, 4))


def test_every_figure_is_in_the_markdown(built, tmp_path):
    text = report.write(tmp_path, built).read_text()
    numbers = rendered(text)
    for entry in MODELS:
        assert f"**{entry['name']}**: {entry['about']}." in text
        assert shown(entry["parameters"] / 1e6, numbers)
        assert shown(entry["megabytes"], numbers)
        assert shown(entry["masked_lm"]["accuracy"], numbers, 100)
        assert shown(entry["masked_lm"]["perplexity"], numbers)
        for metric in ("mrr@10", "recall@1", "recall@10", "ndcg@10"):
            assert shown(entry["retrieval"][metric]["mean"], numbers)
        for kind in ("difference", "retention"):
            for value in entry["retrieval"]["mrr@10"].get(kind, {}).values():
                assert shown(value, numbers, 1 if kind == "difference" else 100)
        alike = entry["agreement"] or {"cosines": []}
        for value in (*alike["cosines"], *([alike["kl"]] if "kl" in alike else [])):
            assert shown(value, numbers)
        if "top_1" in alike:
            assert shown(alike["top_1"], numbers, 100)
        latency, bulk = entry["speed"]["latency"], entry["speed"]["throughput"]
        for name in ("median", "p10", "p90"):
            assert shown(latency[name], numbers, 1000)
        assert shown(32 / bulk["median"], numbers)
        assert shown(latency["speed_up"], numbers)
    for run in TRAINING.values():
        assert {run["steps"], run["tokens"], run["seconds"]} <= numbers
        assert run["tokens"] / run["seconds"] in numbers
    assert {4321, 4319, 31415, 17, 5.25, 31} <= numbers
    assert "python -m experiments.distill --config=x" in text
    assert built["machine"]["processor"] in text
    assert built["versions"]["jax"] in text


def test_no_figure_comes_from_anywhere_else(built, tmp_path):
    """A report of other figures shares with this one only what does not depend on them."""
    other = copy.deepcopy(built)

    def change(value):
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        return value * 1.37 if isinstance(value, float) else value

    other["models"], other["comparisons"] = change(built["models"]), change(built["comparisons"])
    for name in ("retrieval", "comparisons", "agreement"):
        before, after = getattr(tables, name)(built), getattr(tables, name)(other)
        for row, changed in zip(before.rows, after.rows, strict=True):
            for cell, new in zip(row[1:], changed[1:], strict=True):
                assert cell != new or cell in (tables.MISSING, "yes", "no")


def test_distilled_is_compared_with_each_other_student(built):
    pairs = [(entry["model"], entry["against"]) for entry in built["comparisons"]]
    assert pairs == [("distilled", "copied"), ("distilled", "mlm_only")]
    ours, theirs = (MODELS[i]["retrieval"]["per_query"]["mrr@10"] for i in (3, 1))
    gap = sum(ours) / 4 - sum(theirs) / 4
    assert built["comparisons"][0]["difference"]["value"] == pytest.approx(gap)


def test_two_distilled_arms_are_compared_once():
    models = [*copy.deepcopy(MODELS), model("triple", "distilled", 3, 0.75, TEACHER)]
    built = report.build(models, title="", command="", config={}, text={})
    pairs = [(entry["model"], entry["against"]) for entry in built["comparisons"]]
    assert pairs.count(("distilled", "triple")) == 1
    assert ("triple", "distilled") not in pairs
    assert ("triple", "copied") in pairs


def test_json_holds_everything_and_reads_back(built, tmp_path):
    report.write(tmp_path, built)
    assert report.read(tmp_path) == built
    assert report.read(tmp_path / "report.json")["models"][3]["training"]["steps"] == 777


def test_what_is_not_finite_becomes_null_and_a_dash(tmp_path):
    models = copy.deepcopy(MODELS)
    models[1]["masked_lm"]["perplexity"] = math.inf
    models[2]["masked_lm"] = None
    built = report.build(models, title="", command="", config={}, text={})
    assert built["models"][1]["masked_lm"]["perplexity"] is None
    rows = tables.summary(built).rows
    assert rows[1][5] == tables.MISSING
    assert rows[2][4:6] == (tables.MISSING, tables.MISSING)
    report.write(tmp_path, built)


def test_figures_are_written_and_linked(built, tmp_path):
    pytest.importorskip("matplotlib")
    text = report.write(tmp_path, built).read_text()
    for name in ("losses.png", "retention.png"):
        data = (tmp_path / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width > 800 and height > 300
        assert f"({name})" in text


def test_without_training_there_is_no_loss_figure(tmp_path):
    pytest.importorskip("matplotlib")
    built = report.build(copy.deepcopy(MODELS), title="", command="", config={}, text={})
    text = report.write(tmp_path, built).read_text()
    assert not (tmp_path / "losses.png").exists()
    assert "losses.png" not in text
    assert "## Training" not in text


def test_a_reference_that_finds_nothing_has_no_retention_figure(tmp_path):
    models = copy.deepcopy(MODELS)
    for entry in models[1:]:
        entry["retrieval"]["mrr@10"]["retention"] = dict.fromkeys(
            ("value", "low", "high"), math.nan
        )
    built = report.build(models, title="", command="", config={}, text={})
    report.write(tmp_path, built)
    assert not (tmp_path / "retention.png").exists()
    assert [row[-1] for row in tables.retrieval(built).rows] == [tables.MISSING] * 4


def test_a_report_of_text_without_titles_has_no_retrieval(tmp_path):
    measured = [entry | {"retrieval": None} for entry in copy.deepcopy(MODELS)]
    built = report.build(measured, title="", command="", config={}, text={})
    text = report.write(tmp_path, built).read_text()
    assert "MRR@10:" not in text and "## Retrieval" not in text
    assert built["comparisons"] == [] and not (tmp_path / "retention.png").exists()
    assert [row[6:8] for row in tables.summary(built).rows] == [(tables.MISSING,) * 2] * 4


def test_one_model_alone_is_a_report(tmp_path):
    built = report.build(copy.deepcopy(MODELS[:1]), title="", command="", config={}, text={})
    text = report.write(tmp_path, built).read_text()
    assert "## Agreement" not in text and "## Against" not in text


def test_the_summary_fits_a_terminal_of_80_columns(built):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.terminal(tables.summary(built)))
    text = console.export_text()
    for row in tables.summary(built).rows:
        assert any(all(cell in line for cell in row) for line in text.splitlines())


def test_without_matplotlib_the_report_says_so(built, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    text = report.write(tmp_path, built).read_text()
    assert "no figures because matplotlib is not installed; `pip install matplotlib`" in text
    assert not list(tmp_path.glob("*.png"))


def test_terminal_shows_what_markdown_shows(built):
    for table in report.all_tables(built):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(tables.terminal(table))
        text = console.export_text()
        for row in table.rows:
            assert all(cell in text for cell in row)


def test_names_cannot_break_a_table():
    table = tables.Table("T", ("Model", "x"), (("a|b", "1"),))
    assert r"| a\|b | 1 |" in tables.markdown(table)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read as a report"),
        ("[]", "is not a report: it has no list of models"),
        ('{"models": [], "version": 99}', "is a report of version 99"),
    ],
)
def test_other_files_are_no_reports(tmp_path, content, sentence):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        report.read(tmp_path)


def test_missing_report_and_unwritable_folder_are_errors(built, tmp_path):
    with pytest.raises(UserError, match="There is no report"):
        report.read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        report.write(tmp_path / "file", built)


def seeds(*distilled):
    out = []
    for seed, mrr in enumerate(distilled):
        models = [*copy.deepcopy(MODELS[:3]), model("distilled", "distilled", 3, mrr, TEACHER)]
        config = {"seed": seed, "training": {"steps": 100, "log_every": 10}, "arms": {}}
        text = {"fingerprint": "abc"}
        out.append(report.build(models, title="", command="", config=config, text=text))
    return out


def test_seeds_are_summed_up():
    table = across_seeds(seeds(0.78, 0.80, 0.79))
    by_name = {row[0]: row[1:] for row in table.rows}
    assert by_name["distilled"][1] == "0.790 ± 0.010"
    assert by_name["distilled"][2] == "97.2 ± 1.2"
    assert by_name["copied"][1] == "0.601 ± 0.000"
    assert by_name["copied"][3] == "0.179"  # 0.78 - 0.6012, the worst seed
    assert by_name["distilled"][3] == tables.MISSING


def test_seeds_of_a_reference_that_found_nothing_keep_no_share_of_it():
    reports = seeds(0.78, 0.80)
    reports[1]["models"][0]["retrieval"]["mrr@10"]["mean"] = 0.0
    by_name = {row[0]: row[1:] for row in across_seeds(reports).rows}
    assert by_name["distilled"][1:3] == ("0.790 ± 0.014", f"{tables.MISSING} ± {tables.MISSING}")


def test_seeds_that_cannot_be_compared_are_errors():
    one, two = seeds(0.7, 0.8)
    with pytest.raises(UserError, match="at least two"):
        across_seeds([one])
    with pytest.raises(UserError, match=r"the seeds \[0, 0\]"):
        across_seeds([one, one])
    two["models"].pop()
    with pytest.raises(UserError, match="give reports of the same models"):
        across_seeds([one, two])


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("config", "training", "steps"), 9, "training.steps is 100 in the one and 9 in the other"),
        (("config", "arms", "no_kl"), {"a": 1}, "arms.no_kl.a is absent in the one and 1 in the"),
        (("config", "evaluation"), {"retrieval_entries": 5}, "evaluation.retrieval_entries is"),
        (("text", "fingerprint"), "d", "different text: its fingerprint is abc in the one and d"),
        (("config", "training", "log_every"), 1, None),
        (("config", "evaluation"), {"latency_repeats": 3}, None),
    ],
)
def test_seeds_are_of_one_experiment(place, value, says):
    reports = seeds(0.78, 0.80, 0.79)
    *groups, name = place
    within = reports[2]
    for group in groups:
        within = within[group]
    within[name] = value
    if says is None:
        assert across_seeds(reports).title == "Over 3 seeds"
        return
    with pytest.raises(UserError, match=f"The reports of seeds 0 and 2 are of .*{says}"):
        across_seeds(reports)
