"""Static int8 fitted to texts, and layers left in float32 by what they lose."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from distilflax import export
from distilflax.errors import UserError
from distilflax.export import calibration, numpy_model, parity, samples
from distilflax.export.sensitivity import Sensitivity

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = ("the student reads.", "a small model", "the teacher", "bed dab fade cab reads the bad")
NONE = export.Options()
LOOSE = {"texts": TEXTS, "least_cosine": 0.9, "least_agreement": 0.0, "allow_slower": True}


@pytest.fixture
def subject(folder_of):
    return export.open_subject(folder_of("distilbert", "sentence"))


def given_to_products(subject):
    """{path: every number that goes into that product}, on `TEXTS` without padding."""
    seen = {}

    class Watched(numpy_model.Model):
        def dense(self, path, x):
            seen.setdefault(path, []).append(x.ravel())
            return super().dense(path, x)

    model = Watched(subject.settings(), subject.flat())
    for batch in samples.unpadded(subject, TEXTS):
        assert batch.attention_mask.all()
        model(*batch)
    return {path: np.concatenate(parts) for path, parts in seen.items()}


def fitted(subject, **more):
    return export.Options(calibration=calibration.measure(subject, TEXTS), **more)


@pytest.mark.parametrize("percentile", [100.0, 99.0, 90.0])
def test_ranges_are_the_texts_own_quantiles(subject, percentile):
    given = given_to_products(subject)
    found = calibration.measure(subject, TEXTS, percentile).ranges
    assert set(found) == set(given)
    for path, numbers in given.items():
        share = (100 - percentile) / 200
        ends = np.sort(numbers)[[int(share * len(numbers)), -1 - int(share * len(numbers))]]
        wanted = (min(ends[0], 0), max(ends[1], 0))
        np.testing.assert_allclose(found[path], wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["masked_lm", "sentence", "sequence"])
def test_static_int8_does_not_depend_on_the_texts_beside(folder_of, tmp_path, kind):
    subject = export.open_subject(folder_of("bert", kind))
    manifest = export.export(
        subject, "onnx-int8-static", tmp_path, options=fitted(subject), **LOOSE
    )
    assert manifest["activations"] == "uint8, calibrated on 4 texts, percentile 100"
    model = onnx.load(tmp_path / "model.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert not {"DynamicQuantizeLinear", "MatMulInteger"} & kinds
    assert {opset.domain for opset in model.opset_import} == {""}
    run = export.load(tmp_path)
    ids = np.random.default_rng(0).integers(5, 64, (3, 7))
    together = run(samples.Batch(ids, np.ones_like(ids), 0 * ids))
    for i in range(3):
        alone = run(samples.Batch(*(x[i : i + 1] for x in (ids, np.ones_like(ids), 0 * ids))))
        for name, array in alone.items():
            np.testing.assert_allclose(array[0], together[name][i], atol=1e-5)


def test_weights_of_static_int8_are_in_the_range_that_adds_up(subject, tmp_path):
    export.export(subject, "onnx-int8-static", tmp_path, options=fitted(subject), **LOOSE)
    for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer:
        if tensor.name.endswith("/kernel"):
            array = onnx.numpy_helper.to_array(tensor)
            assert array.dtype == np.int8 and np.abs(array.astype(int)).max() == 64


def test_calibration_that_says_nothing_of_the_model(subject, tmp_path):
    with pytest.raises(UserError, match="give a file of it in --calibration"):
        export.export(subject, "onnx-int8-static", tmp_path / "out", texts=TEXTS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no text to calibrate on"):
        calibration.measure(subject, [])
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"--calibration=.*empty.txt holds no text"):
        samples.read_calibration(str(tmp_path / "empty.txt"), 9, subject.words)
    (tmp_path / "own.txt").write_text("the student reads\n")
    assert samples.read_calibration(str(tmp_path / "own.txt"), 9, subject.words)
    (tmp_path / "other.txt").write_text("abgefahren bebend\n")
    with pytest.raises(UserError, match="pieces inside of words, as of a language"):
        samples.read_calibration(str(tmp_path / "other.txt"), 9, subject.words)


@pytest.mark.parametrize("name", ["onnx-int8", "onnx-int8-static", "onnx-w4"])
def test_groups_left_in_float(folder_of, tmp_path, name):
    subject = export.open_subject(folder_of("bert", "masked_lm"))
    left = ("layers_0.qkv", "layers_1.down", "embeddings")
    options = fitted(subject, in_float=left)
    assert export.export(subject, name, tmp_path, options=options, **LOOSE)["in_float"] == [
        "embeddings", "layers_0.qkv", "layers_1.down",
    ]  # fmt: skip
    kinds = {t.name: t.data_type for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    for path in ("layers_0/attention/query", "layers_0/attention/value", "layers_1/ffn/down"):
        assert kinds[f"encoder/{path}/kernel"] == onnx.TensorProto.FLOAT
    assert kinds["encoder/embeddings/word"] == onnx.TensorProto.FLOAT
    for path in ("encoder/layers_1/attention/query", "encoder/layers_0/ffn/down"):
        assert kinds[f"{path}/kernel"] != onnx.TensorProto.FLOAT


def test_the_worst_is_left_in_float_until_little_is_lost(subject):
    # One great weight in each column takes the digits of all others there.
    subject.params["encoder"]["layers_1"]["ffn"]["up"]["kernel"][3] += 60.0
    measured = Sensitivity(subject, "onnx-int8", TEXTS, NONE)
    assert set(measured.groups) == {"embeddings"} | {
        f"layers_{i}.{part}" for i in (0, 1, 2) for part in ("qkv", "output", "up", "down")
    }
    alone = measured.alone
    errors = [loss.error for loss in alone.values()]
    assert next(iter(alone)) == "layers_1.up" and errors == sorted(errors, reverse=True)
    everything = measured.of(())
    half = measured.choose(everything.error / 2)
    assert half.in_float[0] == "layers_1.up"
    assert half.in_float == tuple(alone)[: len(half.in_float)]
    assert half.whole.error <= everything.error / 2
    assert measured.choose(1.0).in_float == ()
    assert measured.of(measured.groups).error < 1e-9 < half.whole.error


@pytest.mark.parametrize("kind", ["masked_lm", "sentence"])
def test_logits_over_all_words_are_not_kept(folder_of, monkeypatch, kind):
    form, made = export.FORMATS["onnx-int8"], []

    def watched(subject):
        run = form.reference(subject)

        def call(batch):
            found = run(batch)
            made.extend(map(weakref.ref, found.values()))
            return found

        return call

    monkeypatch.setitem(export.FORMATS, "onnx-int8", replace(form, reference=watched))
    measured = Sensitivity(export.open_subject(folder_of("bert", kind)), "onnx-int8", TEXTS, NONE)
    assert measured.of(measured.groups).error < 1e-9
    kept = [array for array in made if array() is not None]
    assert made and kept == ([] if kind == "masked_lm" else made)


def test_a_group_that_overflows_is_the_worst(subject, monkeypatch):
    measured = Sensitivity(subject, "onnx-fp16", TEXTS, NONE)
    form = SimpleNamespace(write=lambda *given: given[-1].in_float, load=lambda _, left: left)
    monkeypatch.setattr(measured, "_form", form)

    def compare(_, left, *__):
        fine = {"relative_error": len(left) / 100, "mean_cosine": 1.0}
        lost = {"relative_error": np.nan, "mean_cosine": np.nan}
        return {"first": fine, "second": fine if "layers_1.up" in left else lost}

    monkeypatch.setattr(parity, "compare", compare)
    assert np.isnan(measured.of(())[:2]).all()
    assert next(iter(measured.alone)) == "layers_1.up"
    assert measured.choose(0.5).in_float == ("layers_1.up",)


def test_formats_without_groups_say_which_have_them(subject):
    with pytest.raises(UserError, match=r"numpy has no layers to leave in float32.*onnx-int8"):
        Sensitivity(subject, "numpy", TEXTS, NONE)
