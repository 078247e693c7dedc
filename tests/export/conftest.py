"""Golden models as they leave: alone, as sentence encoders, and with each kind of head."""

from pathlib import Path

import jax
import numpy as np
import pytest

from distilflax import models, weights
from distilflax.models import TaskHead

GOLDEN = Path(__file__).parents[1] / "golden"
HEADS = {
    "sequence": TaskHead("sequence", ("bad", "good", "neither")),
    "token": TaskHead("token", ("O", "B-per", "I-per")),
    "answer": TaskHead("answer", dropout=0.0),
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """folder_of("bert", "token") -> an HF folder; "masked_lm" and "sentence" have no task head."""
    made = {}

    def find(family, kind):
        if (family, kind) not in made:
            made[family, kind] = _make(tmp_path_factory.mktemp("model"), family, kind)
        return made[family, kind]

    return find


def _make(folder, family, kind):
    base = weights.load(GOLDEN / family)
    encoder, params, more = base.encoder, base.params, {}
    if kind == "sentence":
        more["sentence"] = weights.SentenceFiles("mean", True, 16)
    elif kind in HEADS:
        encoder, params = weights.task_head.prepare(encoder, params, kind, jax.random.key(0))
        shapes = models.head_shapes(HEADS[kind], encoder)
        draw = np.random.default_rng(0)
        # Far apart, so that a decision is one.
        params["task_head"] = {
            name: {
                "kernel": draw.normal(size=shape).astype(np.float32),
                "bias": draw.normal(size=shape[1]).astype(np.float32),
            }
            for name, shape in shapes.items()
        }
        more["head"] = HEADS[kind]
    return weights.save(folder / "m", encoder, params, tokenizer_folder=base.folder, **more)
