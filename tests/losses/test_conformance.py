"""Our terms against published losses, by what those made of the arrays of tests/golden."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import losses
from distilflax.batches.masking import Masked
from distilflax.settings import Term

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.npz"
TABLE = (Path(losses.__file__).parent / "CONFORMANCE.md").read_text(encoding="utf-8")
D, V, T = 8, 11, 2.0

CLS = Term(1.0, positions="cls")
FITTED = Term(1.0, layers="embeddings,uniform_last", projection="shared")
# Theirs: (our term, its settings, what theirs is in units of ours).
OURS = {
    "distilbert loss_ce": ("kl", Term(1.0, temperature=T), 1),
    "distilbert loss_mlm": ("mlm", Term(1.0), 1),
    "distilbert loss_mse": ("mse", Term(1.0), 1),
    "distilbert loss_cos": ("cosine", Term(1.0), 1),
    "torch CrossEntropyLoss(label_smoothing)": ("mlm", Term(1.0, label_smoothing=0.1), 1),
    "torch KLDivLoss, reversed": ("reverse_kl", Term(1.0), 1),
    "textbrewer kd_ce_loss": ("soft_cross_entropy", Term(1.0, temperature=T), 1 / T**2),
    "textbrewer kd_mse_loss": ("mse", Term(1.0), 1 / (V * T**2)),
    "textbrewer cos_loss": ("cosine", Term(1.0), 1),
    "textbrewer hid_mse_loss": ("hidden_mse", Term(1.0), 1),
    "textbrewer pkd_loss": ("normalized_mse", CLS, 1),
    "textbrewer att_mse_loss": ("attention_mse", Term(1.0), 1),
    "textbrewer att_ce_loss": ("attention_kl", Term(1.0), 1),
    "tinybert soft_cross_entropy": (
        "soft_cross_entropy",
        Term(1.0, temperature=T),
        1 / (V * T**2),
    ),
    "tinybert att_loss": ("attention_mse", Term(1.0, layers="uniform_last"), 2),
    "tinybert rep_loss": ("hidden_mse", FITTED, 3),
    "pkd distillation_loss": ("kl", Term(1.0, temperature=T), 1 / V),
    "pkd patience_loss": ("normalized_mse", CLS, 1 / D),
    "minilmv2.bb loss": ("relations", Term(1.0, relation_heads=4), 1 / 3),
    "mdistiller dkd_loss": ("dkd", Term(1.0, temperature=T, non_target_weight=8.0), 1),
    "sentence-transformers MultipleNegativesRankingLoss": (
        "info_nce",
        Term(1.0, temperature=1 / 20),
        1,
    ),
    "sentence-transformers MarginMSELoss": ("margin_mse", Term(1.0, similarity="dot"), 1),
    "sentence-transformers MSELoss": ("hidden_mse", Term(1.0, positions="pooled"), 1),
    "sentence-transformers EmbedDistillLoss(cosine)": ("sentence", Term(1.0), 1),
}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


def view(golden, whose, name):
    hidden_states = golden[f"{whose}/hidden_states"]
    outputs = {
        "hidden_states": tuple(hidden_states),
        "last_hidden_state": hidden_states[-1],
        **{
            name: tuple(golden[f"{whose}/{name}"])
            for name in ("attention_scores", "queries", "keys", "values")
        },
    }
    if losses.TERMS[name].over == "logits":
        # Their logits are given: as hidden states, with a decoder that changes nothing.
        outputs["last_hidden_state"] = golden[f"{whose}/logits"]
    learned = {part: golden[f"projection/{part}"] for part in ("kernel", "bias")}
    return losses.View(
        jax.tree.map(jnp.asarray, outputs),
        lambda hidden: hidden,
        jnp.eye(V),
        jnp.zeros(V),
        {"hidden_mse": {"shared": learned}},
    )


@pytest.fixture(scope="module")
def ours(golden):
    """Every row's number, computed in one program."""
    mask, labels = golden["attention_mask"].astype(np.int32), golden["labels"].astype(np.int32)
    positions = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape)
    # Every real token is a masked one: theirs have the truth of all.
    masked = Masked(*map(jnp.asarray, (labels, positions, labels, mask.astype(np.float32))))

    def number(name, term):
        views = (view(golden, whose, name) for whose in ("student", "teacher"))
        batch = (jnp.asarray(labels), jnp.asarray(mask), masked)
        return losses.total_loss({name: term}, *views, *batch, progress=jnp.zeros(()))[0]

    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    everything = jax.jit(
        lambda: {theirs: number(name, term) for theirs, (name, term, _) in OURS.items()},
        compiler_options=quickly,
    )
    return everything()


@pytest.mark.parametrize("theirs", OURS)
def test_their_number_is_ours_times_the_factor(golden, ours, theirs):
    *_, factor = OURS[theirs]
    expected = golden[f"theirs/{theirs}"]
    if theirs == "textbrewer att_ce_loss":
        # A cross-entropy: KL and the teacher's entropy, which is what it gives the teacher.
        expected = expected - golden[f"theirs/{theirs}, of the teacher with itself"]
    np.testing.assert_allclose(ours[theirs] * factor, expected, rtol=1e-5)


def test_the_table_names_what_was_compared(golden):
    listed = re.findall(r"^\| `([^`]+)` \| `(\w+)`", TABLE, re.MULTILINE)
    assert listed == [(theirs, name) for theirs, (name, *_) in OURS.items()]
    pinned = {name.removeprefix("theirs/") for name in golden if name.startswith("theirs/")}
    assert pinned - set(OURS) == {"textbrewer att_ce_loss, of the teacher with itself"}
