"""Tiny models with each kind of head, in folders."""

import jax
import pytest

import distilflax
from distilflax import models, settings, weights
from distilflax.models import TaskHead
from distilflax.text import tokenizer as text_tokenizer

TEXT = "the cat sat on a mat and dog ran while birds sang where does Anna live in Paris ? . , !"
HEADS = {
    "sequence": TaskHead("sequence", ("bad", "good")),
    "token": TaskHead("token", ("O", "B-per", "I-per")),
    "answer": TaskHead("answer", dropout=0.0),
}


@pytest.fixture(scope="session")
def models_by_kind(tmp_path_factory):
    """{"sequence", "token", "answer", "none", "pairs"} to folders of one-layer BERTs."""
    folder = tmp_path_factory.mktemp("heads")
    words = text_tokenizer.train(lambda: [TEXT] * 3, folder / "words", 120, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_positions=32,
    )
    base = jax.device_get(models.init(encoder, jax.random.key(0)))
    weights.save(folder / "none", encoder, base, tokenizer_folder=folder / "words")
    for name, kind in (*zip(HEADS, HEADS, strict=True), ("pairs", "sequence")):
        below, params = weights.task_head.prepare(encoder, base, kind, jax.random.key(1))
        head = HEADS[kind]
        drawn = models.init_head(head, below, jax.random.key(2))
        params["task_head"] = jax.device_get(jax.tree.map(lambda x: 30 * x, drawn))
        own = {"pair": "second"} if name == "pairs" else {}
        weights.save(
            folder / name, below, params, tokenizer_folder=folder / "words", head=head, own=own
        )
    return {name: folder / name for name in (*HEADS, "pairs", "none")}


@pytest.fixture(scope="module")
def loaded(models_by_kind):
    return {name: distilflax.load(folder) for name, folder in models_by_kind.items()}
