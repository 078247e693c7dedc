"""Where dropout stands, and at which rate, against transformers: each drops "on average" here.

Masks are drawn at random, so both sides scale by 1 - rate instead, which every output then shows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, weights
from distilflax.models import dropout, task_heads
from distilflax.settings import Compute

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "Bert": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
        "classifier_dropout": 0.4,
    },
    "DistilBert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "seq_classif_dropout": 0.4,
        "qa_dropout": 0.5,
    },
}
KINDS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")


@pytest.fixture
def on_average(monkeypatch):
    def scaled(x, p=0.5, training=True, inplace=False):
        return x * (1 - p) if training else x

    monkeypatch.setattr(torch.nn.functional, "dropout", scaled)
    for module in (dropout, task_heads):
        monkeypatch.setattr(module, "dropped", lambda key, x, rate: x * (1 - rate))


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_training_drops_what_transformers_drops(tmp_path, on_average, family, kind):
    sizes = SIZES[family] | {"vocab_size": 30, "initializer_range": 0.5, "num_labels": 2}
    config = getattr(transformers, f"{family}Config")(**sizes, attn_implementation="eager")
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}For{kind}")(config).train()
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(1, 30, (3, 7))
    mask = (np.arange(7) < [[7], [4], [2]]).astype(np.int64)
    with torch.no_grad():
        out = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask))
    both = [out[name] for name in ("start_logits", "end_logits") if name in out]
    expected = torch.stack(both, dim=-1) if both else out["logits"]

    found = weights.load(tmp_path, with_task_head=True)
    ours = models.task_logits(
        found.encoder,
        Compute(),
        found.head,
        found.params,
        jnp.asarray(ids),
        jnp.asarray(mask),
        dropout_key=jax.random.key(0),
    )
    real = slice(None) if ours.ndim == 2 else mask > 0
    np.testing.assert_allclose(ours[real], expected.numpy()[real], atol=1e-4)
