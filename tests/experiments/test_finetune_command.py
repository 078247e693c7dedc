"""`python -m experiments.finetune` as a user calls it, and the configs that it is called with."""

import json
import runpy
from pathlib import Path

import jax
import pytest

from distilflax import models, settings, weights
from distilflax.tasks import TASKS
from distilflax.tasks.settings import from_values, task_of
from distilflax.text import tokenizer

ROOT = Path(__file__).parents[2]
TASK_CONFIGS = sorted(
    path for path in ROOT.glob("configs/*.py") if "distilflax.tasks" in path.read_text()
)
GOOD = ["very good film", "good film", "film was good", "good good"]
BAD = ["very bad film", "bad film", "film was bad", "bad bad"]


@pytest.mark.parametrize("variant", ["", "runlocal"])
@pytest.mark.parametrize("path", TASK_CONFIGS, ids=lambda path: path.stem)
def test_configs_hold_what_a_run_may_say(path, variant):
    run = from_values(runpy.run_path(str(path))["get_config"](variant))
    assert task_of(run).name == run.task
    assert not run.data.folder


def test_there_is_a_config_for_each_task():
    tasks = {runpy.run_path(str(path))["get_config"]().task for path in TASK_CONFIGS}
    assert tasks == set(TASKS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny encoder and TSV files of an easy task."""
    folder = tmp_path_factory.mktemp("finetune")
    rows = [f"{text}\t{name}" for name, texts in (("n", BAD), ("y", GOOD)) for text in texts * 2]
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    words = tokenizer.train(lambda: GOOD + BAD, folder / "words", 90, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=24,
        max_positions=32,
        type_vocab_size=0,
        pooler=False,
    )
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    weights.save(folder / "model", encoder, params, tokenizer_folder=folder / "words")
    return folder


@pytest.mark.slow
def test_seeds_are_reported_and_the_model_answers_a_pipe(place, command, in_turn):
    of_data = ["--config=configs/sst2.py:runlocal", f"--data={place}"]
    of_data.append("--config.options.text=text")
    given = [
        *of_data,
        f"--workdir={place / 'run'}",
        f"--config.model.path={place / 'model'}",
        "--config.optimizer.learning_rate=0.01",
        "--config.training.epochs=2.0",
        "--config.training.evaluate_epochs=1.0",
        "--config.training.seeds=2",
        "--config.training.batch_size=8",
    ]
    mistake = ["--config=configs/sst2.py", f"--data={place}", "--workdir=w"]
    model = place / "run" / "seed0" / "model"
    done, wrong, measured = in_turn(
        [
            ("finetune", *given),
            ("finetune", *mistake),
            ("evaluate", f"--model={model}", *of_data, f"--json={place / 'out.json'}"),
        ]
    )
    assert done.returncode == 0, done.stderr
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    assert "has no column 'sentence'" in wrong.stderr and "choose from text, label" in wrong.stderr
    report = json.loads((place / "run" / "report.json").read_text())
    assert [one["seed"] for one in report["runs"]] == [0, 1]
    accuracy = report["figures"]["test"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] == sum(one["test"]["accuracy"] for one in report["runs"]) / 2
    assert f"{accuracy['value']:.4f}" in done.stdout
    assert "train: 16 examples" in done.stderr
    assert done.stderr.count("4 steps in all are few") == 2  # one line for each seed

    # The saved folder has the figures of its run.
    assert measured.returncode == 0, measured.stderr
    (found,) = json.loads((place / "out.json").read_text())["tasks"].values()
    (figure,) = found["metrics"]["accuracy"]
    assert figure["score"] == report["runs"][0]["test"]["accuracy"]
    assert figure["interval"]["low"] <= figure["score"] <= figure["interval"]["high"]

    done = command("predict", f"--model={model}", given="good film\n\nbad film\n")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["line"] for one in found] == [1, 3]
    assert {one["label"] for one in found} <= {"y", "n"}
