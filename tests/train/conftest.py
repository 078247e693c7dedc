"""A tiny teacher on disk, a text, and the experiment that distils the one on the other."""

import dataclasses

import jax
import numpy as np
import pytest

from distilflax import settings, weights
from distilflax.text import tokenizer as text_tokenizer

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "while", "birds", "sang")


@pytest.fixture(scope="module")
def compiled_quickly():
    """In half the time: speed is not what is tested."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def place(tmp_path_factory, drawn):
    """A folder with a text and tiny teachers: BERTs of four layers and, "shallow", of two, without
    a masked-LM head."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(4, 14))) for _ in range(240)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    text_tokenizer.train(lambda: lines, folder / "words", 64, min_frequency=1)
    words = text_tokenizer.load(folder / "words")
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_heads=2,
        intermediate_size=32,
        max_positions=24,
        pooler=False,
    )
    for name, layers in (("teacher", 4), ("shallow", 2)):
        one = dataclasses.replace(encoder, num_layers=layers)
        weights.save(folder / name, one, drawn(one, 0), tokenizer_folder=folder / "words")
    return folder


@pytest.fixture(scope="session")
def experiment(place):
    """experiment(group={...}, ...): a tiny run with both, and with those values changed."""

    def make(**groups):
        values = {
            "teacher": {"path": str(place / "teacher")},
            "student": {"num_layers": 2},
            "data": {
                "sources": str(place / "text.txt"),
                "cache": str(place / "cache"),
                "max_length": 16,
                "buckets": (16,),
                "validation_fraction": 0.2,
            },
            "losses": {
                "kl": {"weight": 5.0, "temperature": 2.0},
                "mlm": {"weight": 2.0},
                "cosine": {"weight": 1.0},
            },
            "training": {"batch_size": 8, "steps": 6, "checkpoint_every": 2, "evaluate_every": 3},
            "head_fit": {"tokens": 200, "passes": 1, "batch_rows": 16},
        }
        for group, changes in groups.items():
            values[group] = values.get(group, {}) | changes
        return settings.from_config(values)

    return make


@pytest.fixture(scope="session")
def small(place, experiment):
    """The same with little to compile, where models and terms do not matter: two layers teach one
    without dropout, and nothing of words, for which the teacher would need a head."""

    def make(**groups):
        values = {
            "teacher": {"path": str(place / "shallow")},
            "student": {"num_layers": 1, "dropout": 0.0, "attention_dropout": 0.0},
            "losses": {"kl": {"weight": 0.0}, "mlm": {"weight": 0.0}},
        }
        return experiment(**values | groups)

    return make
