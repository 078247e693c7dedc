"""ONNX files: what they compute, what is stored, and where they run."""

import numpy as np
import pytest

from distilflax import export
from distilflax.errors import UserError
from distilflax.export import samples, speed
from distilflax.export.samples import Batch

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from distilflax.export import onnx_blocks, onnx_graph  # noqa: E402 - needs onnx.
from distilflax.export.onnx_weights import quantized  # noqa: E402 - needs onnx.

TEXTS = samples.TEXTS[:5]
KINDS = ("masked_lm", "sentence", "sequence", "token", "answer")


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_in_float32(folder_of, tmp_path, family, kind):
    """`export` itself refuses more than 1e-4; a tiny model is closer."""
    subject = export.open_subject(folder_of(family, kind))
    for name in ("onnx", "onnx-ort"):
        manifest = export.export(subject, name, tmp_path / name, texts=TEXTS)
        for output in subject.outputs:
            assert manifest["parity"][output]["max_difference"] < 1e-5
        model = onnx.load(tmp_path / name / "model.onnx")
        assert [value.name for value in model.graph.input] == list(subject.inputs)
        assert [value.name for value in model.graph.output] == list(subject.outputs)
        domains = {opset.domain for opset in model.opset_import}
        assert domains == ({"", "com.microsoft"} if name == "onnx-ort" else {""})
    onnx.checker.check_model(onnx.load(tmp_path / "onnx" / "model.onnx"), full_check=True)


@pytest.mark.parametrize("name", ["onnx", "onnx-ort", "onnx-int8"])
def test_one_file_takes_any_batch_and_padding_changes_nothing(folder_of, tmp_path, name):
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    loose = {"least_cosine": 0.5, "allow_slower": True}
    export.export(subject, name, tmp_path / "out", texts=TEXTS, **loose)
    run = export.load(tmp_path / "out")
    ids = np.random.default_rng(0).integers(5, 64, (5, 7))
    alone = run(Batch(ids, np.ones_like(ids), 0 * ids))["sentence_embedding"]
    assert alone.shape == (5, subject.encoder.hidden_size)
    wide = np.pad(ids, ((0, 0), (0, 9)))
    mask = np.pad(np.ones_like(ids), ((0, 0), (0, 9)))
    padded = run(Batch(wide, mask, 0 * wide))["sentence_embedding"]
    # Activations in int8 are measured over all tokens of a call, padding among them.
    np.testing.assert_allclose(padded, alone, atol=0.05 if "int8" in name else 1e-6)
    assert run(Batch(ids[:1, :3], np.ones((1, 3), int), 0 * ids[:1, :3]))


def test_a_row_of_padding_stays_finite(folder_of, tmp_path):
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    for name in ("onnx", "onnx-ort"):
        export.export(subject, name, tmp_path / name, texts=TEXTS)
        zeros = np.zeros((2, 4), np.int64)
        found = export.load(tmp_path / name)(Batch(zeros, zeros, zeros))
        assert all(np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("opset", [17, 20, 22])
def test_opsets(folder_of, tmp_path, opset):
    subject = export.open_subject(folder_of("bert", "sequence"))
    options = export.Options(opset=opset)
    assert export.export(subject, "onnx", tmp_path / "out", options=options)["opset"] == opset
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert model.opset_import[0].version == opset


def test_an_opset_that_is_not_to_be_had(folder_of, tmp_path):
    subject = export.open_subject(folder_of("bert", "sequence"))
    with pytest.raises(UserError, match="--opset is 9"):
        export.export(subject, "onnx", tmp_path / "new" / "out", options=export.Options(opset=9))
    assert not list(tmp_path.iterdir())


def test_numbers_of_8_bits_are_as_near_as_they_can_be():
    matrix = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    matrix[:, 2] = 0.0
    for axis in (0, 1):
        numbers, scale = quantized(matrix, 64, axis)
        assert numbers.dtype == np.int8 and np.abs(numbers.astype(int)).max() <= 64
        again = numbers * np.expand_dims(scale, axis)
        assert (np.abs(again - matrix) <= np.expand_dims(scale, axis) * 0.5001).all()
    assert not quantized(matrix, 64, 0)[0][:, 2].any()


@pytest.mark.parametrize(("given", "largest"), [("portable", 64), ("full", 127)])
def test_int8_files_hold_int8(folder_of, tmp_path, given, largest):
    """Portable: two products of 255 with a weight fit in 16 bits, which is what some add in."""
    subject = export.open_subject(folder_of("bert", "masked_lm"))
    options = export.Options(int8_range=given)
    loose = {"texts": TEXTS, "least_cosine": 0.5, "allow_slower": True}
    export.export(subject, "onnx-int8", tmp_path / "out", options=options, **loose)
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    }
    matrices = {
        name: array
        for name, array in stored.items()
        if name.endswith("/kernel") or name.endswith("embeddings/word")
    }
    layers = 6 * subject.encoder.num_layers
    assert len(matrices) == layers + 2  # the head's transform and the table of words
    for array in matrices.values():
        assert array.dtype == np.int8
        assert np.abs(array.astype(int)).max() == largest
    if given == "portable":
        assert 2 * 255 * largest < 2**15 <= 2 * 255 * 127


def test_fp16_is_stored_and_not_computed_with(folder_of, tmp_path):
    subject = export.open_subject(folder_of("bert", "token"))
    manifest = export.export(subject, "onnx-fp16", tmp_path / "out", texts=TEXTS)
    assert 0 < manifest["parity"]["logits"]["max_difference"] < 0.05
    kinds = {t.data_type for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_near_and_packed_as_they_are_read(bits):
    """ONNX Runtime's product with the packed numbers is that with the numbers themselves."""
    draw = np.random.default_rng(0)
    kernel, bias = draw.normal(size=(70, 6)).astype(np.float32), draw.normal(size=6)
    kernel[:, 2] = 0.0
    numbers, scale = onnx_blocks.blocks(kernel, bits, block=onnx_blocks._BLOCK[bits])
    again = ((numbers.astype(np.float32) - 2 ** (bits - 1)) * scale[..., None]).reshape(6, -1)
    again, greatest = again[:, :70].T, np.abs(kernel).max()
    assert np.abs(again - kernel).max() <= greatest / 2 ** (bits - 1)
    # A random number's rounding error is a step / sqrt(12); the search may only better it.
    assert np.sqrt(np.square(again - kernel).mean()) < greatest / 2 ** (bits - 1) / 12**0.5
    graph = onnx_graph.Graph()
    found = onnx_blocks.BlockWeights(bits).dense(graph, "x", "a", kernel, bias.astype(np.float32))
    model = graph.model({"ids": (1,)}, {"y": (found, (5, 6))})
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", 1, (5, 70)))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = draw.normal(size=(5, 70)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ again + bias, atol=1e-4)


@pytest.mark.parametrize("kind", ["masked_lm", "sentence", "sequence"])
def test_weights_alone_in_few_bits(folder_of, tmp_path, kind):
    subject = export.open_subject(folder_of("bert", kind))
    distance = []
    for name in ("onnx-w8", "onnx-w4"):
        found = export.export(subject, name, tmp_path / name, texts=TEXTS, least_cosine=0.9)
        distance.append(1 - found["parity"][subject.outputs[0]]["mean_cosine"])
        stored = onnx.load(tmp_path / name / "model.onnx").graph.initializer
        tables = [t for t in stored if t.name.endswith("embeddings/word")]
        assert [t.data_type for t in tables] == [onnx.TensorProto.INT8], "stored once, small"
        kernels = [t.data_type for t in stored if t.name.endswith("/kernel")]
        assert set(kernels) == {onnx.TensorProto.UINT8}
    assert 0 < distance[0] < distance[1]
    sizes = [(tmp_path / n / "model.onnx").stat().st_size for n in ("onnx-w8", "onnx-w4")]
    assert sizes[1] < sizes[0]


def test_int8_that_is_slower_is_refused_unless_asked(folder_of, tmp_path, monkeypatch):
    """By given times: how fast this machine is decides nothing here."""
    times = {"1x16": 1.3, "8x24": 0.7}
    figures = {shape: {"ratio": ratio} for shape, ratio in times.items()}
    monkeypatch.setattr(speed, "measure", lambda *_, **__: figures)
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    given = {"texts": TEXTS, "least_cosine": 0.5}
    with pytest.raises(UserError, match=r"slower than onnx on this machine .*: 1x16: 1.30\); no f"):
        export.export(subject, "onnx-int8", tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())
    allowed = export.export(subject, "onnx-int8", tmp_path / "out", **given, allow_slower=True)
    assert "speed" not in allowed
    figures["1x16"]["ratio"] = speed.TIE
    found = export.export(subject, "onnx-int8", tmp_path / "out", **given)
    assert found["speed"] == {"against": "onnx", **figures}


def test_both_take_turns_at_every_shape():
    seen = []

    def of(name):
        return lambda batch: seen.append((name, batch.input_ids.shape))

    found = speed.measure(of("a"), of("b"), words=9, positions=20, shapes=((1, 16), (2, 64)))
    assert list(found) == ["1x16", "2x20"]
    for shape in ((1, 16), (2, 20)):
        turns = [name for name, given in seen if given == shape]
        assert turns.count("a") == turns.count("b") > 10
        assert {tuple(turns[i : i + 2]) for i in range(4, 8, 2)} == {("a", "b"), ("b", "a")}
