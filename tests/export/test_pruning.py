"""Heads and neurons taken away by what they matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import export, models, weights
from distilflax.errors import UserError
from distilflax.export import importance, parity, pruning, samples
from distilflax.export.formats import in_numpy
from distilflax.export.importance import Importance
from distilflax.export.subject import forward
from distilflax.settings import Compute

TEXTS = ("the student reads.", "a small model", "bed dab fade cab reads the bad")


def layers_of(subject):
    params = subject.checkpoint.params["encoder"]
    return [params[f"layers_{i}"] for i in range(subject.encoder.num_layers)]


def silence(subject, head, neurons):
    """Take from every layer what that head and those neurons write."""
    size = subject.encoder.hidden_size // subject.encoder.num_heads
    for layer in layers_of(subject):
        layer["attention"]["output"]["kernel"][head * size : (head + 1) * size] = 0
        layer["ffn"]["down"]["kernel"][neurons] = 0


def test_the_gradient_is_that_of_a_mask(folder_of):
    """By differences: what the loss does when a head or a neuron is turned up and down a little."""
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    batch = next(samples.unpadded(subject, TEXTS))
    given = [jnp.asarray(x[:1], jnp.int32) for x in batch][: len(subject.inputs)]
    key = jax.random.key(1)
    heads, neurons = importance.masks_gradient(subject)(subject.params, key, *given)
    run = forward(subject)

    @jax.jit
    def loss(params):
        return importance.surprise(subject, run(params, *given), given[1], key)

    def slope(rows, part, step=3e-3):
        values = []
        for factor in (1 + step, 1 - step):
            params = jax.tree.map(np.array, subject.params)
            parts = params["encoder"]["layers_1"]
            kernel = {"output": parts["attention"]["output"], "down": parts["ffn"]["down"]}[part]
            kernel["kernel"][rows] *= factor
            values.append(float(loss(params)))
        return (values[0] - values[1]) / (2 * step)

    size = subject.encoder.hidden_size // subject.encoder.num_heads
    for head in (0, 2):
        measured = slope(slice(head * size, (head + 1) * size), "output")
        np.testing.assert_allclose(heads[1, head], measured, rtol=0.03, atol=3e-3)
    strongest = int(np.abs(neurons[1]).argmax())
    np.testing.assert_allclose(
        neurons[1, strongest], slope([strongest], "down"), rtol=0.03, atol=3e-3
    )


def test_what_does_nothing_goes_first_and_changes_nothing(folder_of, tmp_path):
    subject = export.open_subject(folder_of("bert", "masked_lm"))
    encoder = subject.encoder
    silence(subject, head=1, neurons=slice(0, 8))
    found = importance.measure(subject, TEXTS)
    assert (found.heads[:, 1] == 0).all() and (np.delete(found.heads, 1, axis=1) > 0).all()
    assert (found.neurons[:, :8] == 0).all() and (found.neurons[:, 8:] > 0).mean() > 0.9
    sizes = {"heads": encoder.num_heads - 1, "neurons": encoder.intermediate_size - 8}
    folder = pruning.prune(subject, found, TEXTS * 20, tmp_path / "pruned", **sizes)
    after = export.open_subject(folder)
    assert after.encoder.intermediate_size == encoder.intermediate_size - 8
    assert after.encoder.num_heads == encoder.num_heads
    assert (after.part, after.sentence) == (subject.part, subject.sentence)
    for batch in samples.batches(subject, TEXTS):
        wanted, given = in_numpy(subject)(batch), in_numpy(after)(batch)
        for name in wanted:
            np.testing.assert_allclose(given[name], wanted[name], atol=2e-5)


HEADS = 2  # kept


@pytest.fixture(scope="module")
def pruned(folder_of, tmp_path_factory):
    """(the model, what its heads and neurons are said to matter, the pruned folder)."""
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    encoder = subject.encoder
    draw = np.random.default_rng(0)
    sizes = [(encoder.num_layers, n) for n in (encoder.num_heads, encoder.intermediate_size)]
    given = Importance(*(draw.random(size) for size in sizes))
    folder = tmp_path_factory.mktemp("pruned") / "model"
    kept = {"heads": HEADS, "neurons": encoder.intermediate_size // 2}
    return subject, given, pruning.prune(subject, given, TEXTS * 20, folder, **kept)


def test_a_silent_head_stays_silent_through_training(pruned):
    _, given, folder = pruned
    after = weights.load(folder)
    ids = jax.random.randint(jax.random.key(0), (2, 7), 5, 64)

    def loss(params):
        out = models.encode(after.encoder, Compute(), params, ids, jnp.ones_like(ids))
        return jnp.square(out["last_hidden_state"][..., :3]).sum()

    gradient = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, after.params["encoder"]))
    size = after.encoder.hidden_size // after.encoder.num_heads
    for i in range(after.encoder.num_layers):
        silent = np.repeat(given.heads[i] < np.sort(given.heads[i])[-2], size)
        assert silent.sum() == size * (after.encoder.num_heads - 2)
        of_heads = gradient[f"layers_{i}"]["attention"]
        for part in ("query", "key", "value"):
            kernel = np.asarray(of_heads[part]["kernel"])
            assert not kernel[:, silent].any() and kernel[:, ~silent].any()
            assert not np.asarray(of_heads[part]["bias"])[silent].any()
        kernel = np.asarray(of_heads["output"]["kernel"])
        assert not kernel[silent].any() and kernel[~silent].any()


def test_the_rest_is_fitted_to_stand_in(pruned):
    """Nearer to the model than the same heads and neurons simply taken away."""
    subject, given, folder = pruned
    after, bare = export.open_subject(folder), export.open_subject(folder)
    for i, (layer, old) in enumerate(zip(layers_of(bare), layers_of(subject), strict=True)):
        half = subject.encoder.intermediate_size // 2
        kept = np.sort(np.argsort(-given.neurons[i], kind="stable")[:half])
        layer["ffn"]["down"]["kernel"][:] = old["ffn"]["down"]["kernel"][kept]
        layer["ffn"]["down"]["bias"][:] = old["ffn"]["down"]["bias"]
        layer["attention"]["output"]["bias"][:] = old["attention"]["output"]["bias"]
    batches = list(samples.batches(subject, TEXTS))
    near, far = (
        parity.compare(in_numpy(subject), in_numpy(one), batches)["last_hidden_state"]
        for one in (after, bare)
    )
    assert near["relative_error"] < 0.7 * far["relative_error"]


def test_onnx_leaves_silent_heads_out(pruned, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    _, _, folder = pruned
    after = export.open_subject(folder)
    size = after.encoder.hidden_size // after.encoder.num_heads
    for name in ("onnx", "onnx-ort"):
        export.export(after, name, tmp_path / name, texts=TEXTS)  # checked against all heads
        for tensor in onnx.load(tmp_path / name / "model.onnx").graph.initializer:
            if tensor.name.endswith("attention/query/kernel"):
                assert tensor.dims[1] == 2 * size
    flat = after.flat()
    for path in flat:
        if "attention/output/kernel" in path:
            flat[path][:] = 0
    cut = pruning.without_silent_heads(flat, size)
    assert cut["encoder/layers_0/attention/query/kernel"].shape[1] == size, "one stays"


def test_more_than_there_are(folder_of, tmp_path):
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    nothing = Importance(np.zeros((3, 4)), np.zeros((3, 32)))
    with pytest.raises(UserError, match="--heads=9: the model has 4 a layer; keep 1 to 4"):
        pruning.prune(subject, nothing, TEXTS, tmp_path / "out", heads=9)
    with pytest.raises(UserError, match="15 neurons want 150 to be fitted on"):
        pruning.prune(subject, nothing, TEXTS, tmp_path / "out", neurons=15)
    assert not list(tmp_path.iterdir())


def test_what_stays_is_fitted_on_each_text_once(folder_of, tmp_path, monkeypatch):
    """And on pairs with their token types, where there are any; the guard counts no text twice."""
    subject = export.open_subject(folder_of("bert", "answer"))
    nothing, seen = Importance(np.zeros((3, 4)), np.zeros((3, 32))), []
    with pytest.raises(UserError, match="texts have 31 tokens; 8 neurons want 80 to be fitted"):
        pruning.prune(subject, nothing, TEXTS, tmp_path / "out", neurons=8)

    def moments(encoder, params, batches, with_neurons):
        seen.extend(batches)
        raise UserError("enough seen")

    monkeypatch.setattr(pruning, "all_moments", moments)
    with pytest.raises(UserError, match="enough seen"):
        pruning.prune(subject, nothing, TEXTS, tmp_path / "out", heads=2)
    # Three texts and two pairs of neighbours, of which the second is cut to the 24 positions.
    assert sorted(n for b in seen for n in b["attention_mask"].sum(axis=1)) == [5, 6, 10, 20, 24]
    assert {b["input_ids"].shape[1] for b in seen} == {24}, "one length, compiled once"
    types = [kinds for batch in seen for kinds in batch["token_type_ids"]]
    assert sum(bool(kinds.any()) for kinds in types) == 2
