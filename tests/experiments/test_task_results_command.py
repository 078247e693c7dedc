"""`python -m experiments.task_results`: every model on a task once, and nothing twice."""

import json

import jax
import pytest

from distilflax import models, settings, weights
from distilflax.text import tokenizer

GOOD = ["very good film", "good film", "film was good", "good good"]
BAD = ["very bad film", "bad film", "film was bad", "bad bad"]
RATE = "rate0.0001"
ARMS = ["teacher", "copied", "copied+", "distilled", "distilled+"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher of two layers, a student of one, and files of an easy task.

    Without dropout, whose random numbers are half of what there would be to compile.
    """
    folder = tmp_path_factory.mktemp("task_results")
    rows = [f"{text}\t{name}" for name, texts in (("n", BAD), ("y", GOOD)) for text in texts * 4]
    (folder / "data" / "sst2").mkdir(parents=True)
    for name in ("train", "dev", "test"):
        text = "\n".join(["sentence\tlabel", *rows]) + "\n"
        (folder / "data" / "sst2" / f"{name}.tsv").write_text(text)
    (folder / "data" / "sst2" / "more.tsv").write_text("sentence\n" + "\n".join(GOOD[:3]) + "\n")
    words = tokenizer.train(lambda: GOOD + BAD, folder / "words", 90, min_frequency=1)
    for name, layers in (("teacher", 2), ("student", 1)):
        encoder = settings.Encoder(
            vocab_size=words.vocab_size,
            hidden_size=16,
            num_layers=layers,
            num_heads=2,
            intermediate_size=24,
            max_positions=32,
            type_vocab_size=0,
            pooler=False,
            dropout=0.0,
            attention_dropout=0.0,
        )
        params = jax.device_get(models.init(encoder, jax.random.key(layers)))
        weights.save(folder / name, encoder, params, tokenizer_folder=folder / "words")
    return folder


@pytest.mark.slow
def test_runs_are_made_once_rates_are_chosen_and_mistakes_are_one_sentence(place, several):
    given = [f"--data={place / 'data'}", f"--workdir={place / 'w'}", "--variant=runlocal"]
    given += [f"--teacher={place / 'teacher'}", "--seeds=1"]
    whole = [*given, f"--distilled={place / 'student'}", "--tasks=sst2"]
    layers = ["--taught=intermediate.losses.cosine.weight=1", "--taught=intermediate.epochs=1.0"]
    # Of one task, and of another that is not asked for.
    layers += ["--taught=sst2.data.unlabelled=more.tsv", "--taught=wnut17.distillation.weight=1.0"]
    # The config's own rate, so that its runs are taken as they are, and one that learns nothing.
    chosen = [*whole, "--rates=1e-4,1e-12", "--set=sst2.training.epochs=1.0"]
    v = f"--workdir={place / 'v'}"
    done, again, rates, apart, told, one, other, last, *wrong = several(
        "task_results",
        [
            whole,
            whole,
            chosen,
            [*whole, v, "--seeds=2", "--arms=distilled+", *layers],
            [*whole, v, "--seeds=3", "--report", *layers],
            [*whole, v, "--arms=distilled"],
            [*whole, v, "--arms=copied"],
            [*whole, v, "--seeds=3", "--report", *layers],
            [*whole, "--tasks=sst3"],
            [*whole, "--tasks=sst2,stsb"],
            [*whole, "--set=sst2.training.epoch=2"],
            [*whole, "--set=sst2.training.epochs=2.0"],
            [*whole, "--taught=training.epochs=2.0"],
            [*whole, "--taught=intermediate.losses.cosin.weight=1"],
            given,
            [*whole, "--rates=fast"],
            [*whole, "--rates=0"],
            [*whole, "--set=sst2.training.mode=probe"],
            [*whole, "--set=sst2.data.test="],
            [*whole, "--set=sst2.training.seeds=2"],
            [*whole, "--taught=distillation.teacher=t"],
        ],
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "w" / "task_results.json").read_text())
    (task,) = report["tasks"]
    assert list(task["runs"]) == report["arms"] == ARMS
    for arm in ARMS:
        result = json.loads(
            (place / "w" / "sst2" / arm / RATE / "seed0" / "result.json").read_text()
        )
        assert task["runs"][arm]["0"]["accuracy"] == result["test"]["accuracy"]
        assert ("teacher: " in done.stderr) and (arm in done.stderr)
    config = json.loads(
        (place / "w" / "sst2" / "copied+" / RATE / "seed0" / "config.json").read_text()
    )
    assert config["distillation"]["teacher"].endswith("sst2/teacher/rate0.0001/seed0/model")
    (copied,) = (place / "w" / "students").iterdir()
    assert weights.load(copied).encoder.num_layers == 1
    assert task["classic"]["figures"]["accuracy"] == 1.0
    assert set(task["seconds_per_1000"]) == {"teacher", "copied", "distilled", "classic"}

    assert again.returncode == 0, again.stderr
    assert "seed 0" not in again.stderr and again.stdout == done.stdout

    assert rates.returncode == 0, rates.stderr
    report = json.loads((place / "w" / "task_results.json").read_text())
    (task,) = report["tasks"]
    for arm in ARMS:
        tried = task["tried"][arm.removesuffix("+")]
        best = max(tried, key=tried.get)
        folder = place / "w" / "sst2" / arm / f"rate{float(best):g}" / "seed0"
        result = json.loads((folder / "result.json").read_text())
        assert arm.endswith("+") or tried[best] == result["dev"]["accuracy"]
        assert task["runs"][arm]["0"]["accuracy"] == result["test"]["accuracy"]
    assert (
        list(task["tried"]) == ["teacher", "copied", "distilled"]
        and "Learning rates" in rates.stdout
    )
    assert f"rate {1e-4:g}" not in rates.stderr  # those runs were there

    # Who teaches is there, though nobody asked for it.
    assert apart.returncode == 0, apart.stderr
    for arm, terms in (("teacher", []), ("distilled+", ["cosine"])):
        folder = place / "v" / "sst2" / arm / RATE / "seed1"
        config = json.loads((folder / "config.json").read_text())
        assert list(config["intermediate"]["losses"]) == terms
        assert config["distillation"]["weight"] == 0.5
        result = json.loads((folder / "result.json").read_text())
        assert result["training_rows"] == (35 if terms else 32)
        assert (folder / "intermediate").is_dir() == bool(terms)

    # Of all that could be, only what there is, and nothing is run for it.
    assert told.returncode == 0 and "seed 0" not in told.stderr, told.stderr
    missing = "sst2: its classic baseline, seconds and data were not measured; the same command"
    assert missing in apart.stderr and missing in told.stderr
    # What is measured beside the runs is so when the last of several commands has made its own.
    assert [done.returncode for done in (one, other, last)] == [0, 0, 0]
    assert [missing in done.stderr for done in (one, other, last)] == [True, False, False]
    report = json.loads((place / "v" / "task_results.json").read_text())
    assert "classic" in report["tasks"][0]["seconds_per_1000"] and report["data"]["sst2"]
    made = {arm: sorted(of) for arm, of in report["tasks"][0]["runs"].items()}
    both, first = ["0", "1"], ["0"]
    made_of = {"teacher": both, "copied": first, "copied+": [], "distilled": first}
    assert made == made_of | {"distilled+": both}

    sentences = [
        "did you mean 'sst2'",
        "has no folder 'stsb'",
        "did you mean 'epochs'",
        "belongs to another config: training.epochs is 1.0 there and 2.0 here",
        "is not [TASK.]distillation",
        "there is no 'cosin'",
        "--distilled is missing",
        "--rates: could not convert string to float: 'fast'",
        "learning rates are above 0",
        "config.training.mode of sst2 is 'probe'",
        "config.data.test of sst2 is empty",
        "training.seeds is decided by --seeds",
        "distillation.teacher is decided by the fine-tuned --teacher",
    ]
    for mistake, sentence in zip(wrong, sentences, strict=True):
        assert mistake.returncode == 2 and sentence in mistake.stderr
        assert len(mistake.stderr.splitlines()) == 1

    # A run of other data than the others have is told.
    file = place / "w" / "sst2" / "distilled" / RATE / "seed0" / "sources.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test": "other"}))
    (mixed,) = several("task_results", [[*whole, "--report"]])
    assert mixed.returncode == 2 and "seed0 are of different test data; delete" in mixed.stderr
