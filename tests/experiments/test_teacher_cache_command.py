"""`python -m experiments.teacher_cache` on a tiny model: what it finds, and no timing."""

import json

import jax
import numpy as np
import pytest

from distilflax import models, settings, weights
from distilflax.text import tokenizer

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "while", "birds", "sang")

CONFIG = """
from distilflax.settings import default_config, term

def get_config():
    config = default_config()
    config.teacher.path = "{folder}/model"
    config.student.num_layers = 1
    config.student.init = "random"
    config.student.dropout = config.student.attention_dropout = 0.0
    config.data.sources = "{folder}/text.txt"
    config.data.cache = "{folder}/cache"
    config.data.max_length = 16
    config.data.buckets = (16,)
    config.masking.sequences = 0.3
    config.losses.kl = term(weight=1.0, temperature=2.0, positions="masked")
    config.losses.cosine = term(weight=1.0)
    config.training.batch_size = 4
    config.training.steps = 4
    config.teacher_cache.number = 4
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny teacher, a text, and the config that distils the one on the other."""
    folder = tmp_path_factory.mktemp("teacher_cache")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(4, 14))) for _ in range(80)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    words = tokenizer.train(lambda: lines, folder / "words", 64, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=24,
        max_positions=16,
    )
    params = models.init(encoder, jax.random.key(0), mlm_head=True)
    # Far from uniform over the words, so that a few of them tell something.
    params["encoder"]["embeddings"]["word"] *= 20.0
    weights.save(folder / "model", encoder, params, tokenizer_folder=folder / "words")
    (folder / "config.py").write_text(CONFIG.format(folder=folder))
    return folder


@pytest.mark.slow
def test_what_a_cache_costs_and_saves(folder, several):
    given = [f"--config={folder / 'config.py'}", "--batches=3", "--draws=6", "--rounds=3"]
    done, wrong = several(
        "teacher_cache",
        [
            [*given, f"--workdir={folder / 'run'}", "--only=sampled", "--only=top_k"],
            [*given, f"--workdir={folder / 'x'}", "--only=sampeld"],
        ],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "run" / "teacher_cache.json").read_text())
    columns = {way: list(one["a_position"].values()) for way, one in found["bytes"].items()}
    assert columns == {"sampled": [16 * 2, 4 * 2 + 4], "top_k": [16 * 2, 4 * 4 + 4]}
    assert found["terms"] == {"kl": ["kl"], "all terms": ["cosine", "kl"]}
    for of_ways in found["gaps"].values():
        mean = {
            way: {name: np.mean([gap[name] for gap in gaps]) for name in gaps[0]}
            for way, gaps in of_ways.items()
        }
        assert mean["top_k"]["bias_squared"] > 1e-3 and not mean["top_k"]["noise_squared"]
        noise = mean["sampled"]["noise_squared"]
        assert noise > 1e-2
        assert abs(mean["sampled"]["bias_squared"]) < 2 * noise / found["draws"]
    rounds = {name: len(own) for name, own in found["seconds"].items()}
    assert rounds == {"live": 3, "sampled": 3, "top_k": 3}
    table = (folder / "run" / "teacher_cache.md").read_text()
    assert "The gradient of kl" in table and "| sampled | 32 + 12 |" in table
    assert "The gradient of all terms" in done.stderr
    assert wrong.returncode == 2 and "did you mean 'sampled'" in wrong.stderr, wrong.stderr
    assert not (folder / "x").exists()
