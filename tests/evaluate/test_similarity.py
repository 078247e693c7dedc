import jax
import numpy as np
import pytest

from distilflax import models, settings
from distilflax.evaluate import heat_maps, similarity
from distilflax.evaluate.held_out import held_out_batches
from distilflax.evaluate.vectors import tokenize

COMPUTE = settings.Compute()


@pytest.fixture(scope="module")
def batches(words, sentences):
    data = settings.Data(max_length=32, buckets=(16, 32))
    evaluation = settings.Evaluation(batch_size=3, masked_lm_batches=5)
    return held_out_batches(tokenize(words, sentences, 32), data, evaluation)


def states(model, batches):
    """Of real tokens alone."""

    @jax.jit
    def encoded(params, ids, mask):
        out = models.encode(model.encoder, COMPUTE, params, ids, mask, outputs=("hidden_states",))
        return out["hidden_states"]

    found = []
    for batch in batches:
        hidden = encoded(model.params["encoder"], batch["input_ids"], batch["attention_mask"])
        found.append([np.asarray(state)[batch["attention_mask"] > 0] for state in hidden])
    return [np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True)]


def formula(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return np.linalg.norm(x.T @ y) ** 2 / norms


def test_it_is_the_formula_over_all_real_tokens(make_model, teacher, batches):
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    narrow = make_model("narrow", 1, seed=1, hidden_size=16)
    ours, theirs = states(narrow, batches), states(teacher, batches)
    expected = [[formula(x, y) for y in theirs] for x in ours]
    found = similarity.cka(narrow, teacher, batches, COMPUTE)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_picture_frames_what_is_most_alike():
    pytest.importorskip("matplotlib")
    alike = np.array([[1.0, 0.5, 0.2], [0.6, 0.7, 0.9]])
    picture = heat_maps.cka({"copied": alike, "full": alike[:, ::-1]})
    copied, full, bar = picture.get_axes()
    assert (copied.get_title(), full.get_title()) == ("copied", "full")
    assert [label.get_text() for label in copied.get_xticklabels()] == ["emb.", "1", "2"]
    assert "teacher" in copied.get_xlabel() and "student" in copied.get_ylabel()
    assert [frame.get_xy() for frame in copied.patches] == [(-0.5, -0.5), (1.5, 0.5)]
    assert bar.get_ylabel() == "linear CKA"
