import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from distilflax.train import arms, progress
from distilflax.train.arms_report import ArmsReport
from distilflax.train.gradients import Accounts
from distilflax.train.metrics import Diverged
from distilflax.train.reporter import Reporter
from distilflax.train.throughput import Peak
from distilflax.train.workdir import Workdir


def on_device(step, loss=None):
    return {
        "loss": jnp.float32(step if loss is None else loss),
        "grad_norm": jnp.float32(0.5),
        "tokens": jnp.int32(64),
        "terms": {"kl": (jnp.float32(2.0 * step), jnp.float32(2.0))},
    }


def reporter(tmp_path, start=0, terminal=False, log_every=2, tensorboard=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    report = Reporter(
        Workdir(tmp_path),
        log_every=log_every,
        tensorboard=tensorboard,
        total_steps=6,
        start_step=start,
        schedule=lambda step: 0.1 * (step + 1),
        peak=Peak(1e12, "made up"),
        console=console,
    )
    return report, console.file


def lines(tmp_path, kind):
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def test_gradients_are_written_by_group_and_shown_as_a_whole(tmp_path):
    report, shown = reporter(tmp_path)
    products = np.array([[4.0, -1.0], [-1.0, 1.0]])
    with report:
        report.gradients(3, Accounts(("kl", "mlm"), {"layers_0": products / 4, "all": products}))
    (record,) = lines(tmp_path, "gradients")
    assert record["step"] == 3
    assert record["norm/all/kl"] == 2.0 and record["norm/layers_0/kl"] == 1.0
    assert record["cosine/all/kl/mlm"] == -0.5
    assert "gradients after step 3: kl 2, mlm 1; cosines kl·mlm -0.50" in shown.getvalue()


def test_every_step_is_written_and_every_second_one_shown(tmp_path):
    report, shown = reporter(tmp_path)
    with report:
        for step in range(1, 7):
            report.step(step, on_device(step), flops=1e6)
            assert len(lines(tmp_path, "train")) == step - 1
        report.flush()
    records = lines(tmp_path, "train")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[2]["loss"] == 3.0 and records[2]["loss/kl"] == 3.0
    assert records[2]["grad_norm"] == 0.5 and records[2]["tokens"] == 64
    assert records[2]["learning_rate"] == pytest.approx(0.3)  # That of the third update.
    assert records[0]["tokens_per_second"] is None and records[2]["tokens_per_second"] > 0
    said = shown.getvalue().splitlines()
    assert [line.split()[1] for line in said] == ["2/6", "4/6", "6/6"]
    assert "loss 3.5 (kl 3.5)" in said[1]  # The average of steps 3 and 4.
    assert "tokens/s" in said[1] and "MFU" in said[1] and "0:00 left" in said[2]


def test_on_a_terminal_there_is_one_line(tmp_path):
    report, shown = reporter(tmp_path, terminal=True)
    with report:
        for step in range(1, 7):
            report.step(step, on_device(step), flops=1e6)
        report.flush()
    drawn = shown.getvalue()
    assert drawn.count("\n") == 1  # Drawn over and over, on one line.
    final = drawn.split("\r")[-1]
    assert "step 6/6" in final and "loss 5.5 (kl 5.5)" in final


def test_divergence_is_written_down_and_stops_the_run(tmp_path):
    report, _ = reporter(tmp_path)
    with report, pytest.raises(Diverged, match=r"^step 2: the total loss is nan"):
        for step in range(1, 4):
            report.step(step, on_device(step, loss=float("nan") if step == 2 else None), 1.0)
    assert [record["loss"] for record in lines(tmp_path, "train")] == [1.0, None]


def test_nothing_is_saved_after_a_step_that_diverged(tmp_path):
    report, _ = reporter(tmp_path)
    report.step(1, on_device(1, loss=float("inf")), 1.0)
    with report, pytest.raises(Diverged), report.paused():
        pytest.fail("a checkpoint of NaN would be saved here")


def test_evaluation_is_written_and_said(tmp_path):
    report, shown = reporter(tmp_path)
    with report:
        report.step(1, on_device(1), 1.0)
        with report.paused():
            report.evaluation(1, {"loss": 2.5, "accuracy": 0.25})
    (record,) = lines(tmp_path, "evaluation")
    assert record == {"kind": "evaluation", "step": 1, "loss": 2.5, "accuracy": 0.25}
    assert "evaluation after step 1: loss 2.5, accuracy 0.25" in shown.getvalue()


def test_a_resumed_run_writes_what_an_uninterrupted_one_does(tmp_path):
    for start, stop in ((0, 4), (2, 6)):
        report, _ = reporter(tmp_path, start=start)
        with report:
            for step in range(start + 1, stop + 1):
                report.step(step, on_device(step), 1.0)
            report.flush()
    assert [record["step"] for record in lines(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_if_asked(tmp_path):
    pytest.importorskip("tensorboardX")
    report, _ = reporter(tmp_path, tensorboard=True)
    with report:
        report.step(1, on_device(1), 1.0)
        report.flush()
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    "seconds, text",
    [(0.0, "0:00"), (59.6, "1:00"), (200.0, "3:20"), (3800.0, "1:03:20"), (187400.0, "2d 4:03:20")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_the_description_says_only_what_is_known():
    assert progress.describe(6.1234, {}, None, None, None) == "loss 6.123"
    full = progress.describe(6.0, {"kl": 0.8123, "mlm": 2.9}, 12345.0, 0.412, 200.0)
    assert full == "loss 6 (kl 0.8123, mlm 2.9)  12.3k tokens/s  MFU 41%  3:20 left"


def test_a_pause_of_several_arms_waits_for_the_step_that_runs(experiment, tmp_path):
    (group,) = arms.groups_of({"full": experiment(), "again": experiment()})
    each = jnp.ones(2)
    metrics = {"loss": each, "terms": dict.fromkeys(group.program.losses, (each, each))}
    with ArmsReport(tmp_path, group, 4, 0, {}) as report:
        report.step(1, metrics | {"grad_norm": each, "tokens": jnp.int32(8)})
        assert report.tokens == 0
        with report.paused():
            assert report.tokens == 8
