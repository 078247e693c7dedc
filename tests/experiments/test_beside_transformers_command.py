"""`python -m experiments.beside_transformers`: both sides learn the same task."""

import json

import jax
import pytest

from distilflax import models, settings, weights
from distilflax.text import tokenizer

GOOD = ["very good film", "good film", "film was good", "good good"]
BAD = ["very bad film", "bad film", "film was bad", "bad bad"]


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_learn_an_easy_task(tmp_path, command):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    rows = [f"{text}\t{name}" for name, texts in (("n", BAD), ("y", GOOD)) for text in texts * 4]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    words = tokenizer.train(lambda: GOOD + BAD, tmp_path / "words", 90, min_frequency=1)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24}
    encoder = settings.Encoder(vocab_size=words.vocab_size, max_positions=32, **sizes)
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    weights.save(tmp_path / "model", encoder, params, tokenizer_folder=tmp_path / "words")
    given = [
        "--config=configs/sst2.py:runlocal",
        f"--data={tmp_path}",
        f"--workdir={tmp_path / 'w'}",
        f"--config.model.path={tmp_path / 'model'}",
        "--config.optimizer.learning_rate=0.01",
        "--config.training.epochs=60.0",
        "--config.training.evaluate_epochs=60.0",
    ]
    done = command("beside_transformers", *given)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "w" / "beside.json").read_text())["runs"]
    for (found,) in runs.values():
        assert found["steps"] == 120 and found["test"]["accuracy"] >= 0.9
    wrong = command("beside_transformers", "--config=configs/wnut17.py", *given[1:3])
    assert wrong.returncode == 2 and "give such a config" in wrong.stderr
