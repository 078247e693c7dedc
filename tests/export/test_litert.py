"""LiteRT files: what they compute, what is stored, and what takes which length."""

import numpy as np
import pytest

from distilflax import export
from distilflax.errors import UserError
from distilflax.export import samples
from distilflax.export.samples import Batch

pytest.importorskip("ai_edge_litert")

from distilflax.export import litert_file

TEXTS = samples.TEXTS[:5]
KINDS = ("masked_lm", "sentence", "sequence", "token", "answer")


def tensors(folder):
    """{name: its details} of the file's first graph."""
    opened = litert_file.interpreter(folder / "model.tflite")
    return {tensor["name"]: tensor for tensor in opened.get_tensor_details()}


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_in_float32(folder_of, tmp_path, family, kind):
    """`export` itself refuses more than 1e-4; a tiny model is closer."""
    subject = export.open_subject(folder_of(family, kind))
    manifest = export.export(subject, "litert", tmp_path / "out", texts=TEXTS)
    for output in subject.outputs:
        assert manifest["parity"][output]["max_difference"] < 1e-5
    opened = litert_file.interpreter(tmp_path / "out" / "model.tflite")
    signature = opened.get_signature_list()["any_length"]
    assert sorted(signature["inputs"]) == sorted(subject.inputs)
    assert sorted(signature["outputs"]) == sorted(subject.outputs)


@pytest.mark.parametrize("name", ["litert", "litert-int8"])
def test_xnnpack_takes_the_layers_in_one_piece(folder_of, tmp_path, name):
    subject = export.open_subject(folder_of("bert", "sentence"))
    export.export(subject, name, tmp_path / "out", texts=TEXTS)
    opened = litert_file.interpreter(tmp_path / "out" / "model.tflite")
    opened.allocate_tensors()
    kinds = [operator["op_name"] for operator in opened._get_ops_details()]
    assert kinds.count("DELEGATE") == 1


def test_lengths_are_graphs_that_share_their_weights(folder_of, tmp_path):
    subject = export.open_subject(folder_of("distilbert", "token"))
    every, two = tmp_path / "any", tmp_path / "two"
    export.export(subject, "litert", every, texts=TEXTS)
    options = export.Options(lengths=(8, 16, 8))
    manifest = export.export(subject, "litert", two, texts=TEXTS, options=options)
    assert manifest["signatures"] == {"length_8": 8, "length_16": 16}
    weights = sum(array.nbytes for array in subject.flat().values())
    one, both = ((folder / "model.tflite").stat().st_size for folder in (every, two))
    assert both - one < weights < one
    ids = np.random.default_rng(0).integers(5, 60, (3, 16))
    mask = (np.arange(16) < np.array([[5], [8], [16]])).astype(np.int64)
    wanted, found = (export.load(folder)(Batch(ids, mask, 0 * ids)) for folder in (every, two))
    assert found["logits"].shape == (3, 16, 3)
    # A token's vector depends on no padding, and what comes of padding is zeros.
    np.testing.assert_allclose(found["logits"], wanted["logits"] * mask[..., None], atol=1e-5)
    wide = np.ones((1, 17), np.int64)
    with pytest.raises(UserError, match=r"takes at most 16 tokens, and a text has 17"):
        export.load(two)(Batch(wide, wide, 0 * wide))


def test_the_shortest_graph_takes_texts_and_pairs(folder_of, tmp_path):
    subject = export.open_subject(folder_of("bert", "sequence"))
    options = export.Options(lengths=(3,))
    manifest = export.export(subject, "litert", tmp_path / "out", texts=TEXTS, options=options)
    assert manifest["signatures"] == {"length_3": 3}


def test_a_row_of_padding_stays_finite(folder_of, tmp_path):
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    export.export(subject, "litert", tmp_path / "out", texts=TEXTS)
    zeros = np.zeros((2, 4), np.int64)
    found = export.load(tmp_path / "out")(Batch(zeros, zeros, zeros))
    assert all(np.isfinite(array).all() for array in found.values())
    # As an app gives it, padding and all.
    opened = litert_file.interpreter(tmp_path / "out" / "model.tflite")
    run = opened.get_signature_runner("any_length")
    given = zeros[:1].astype(np.int32)
    assert np.isfinite(run(input_ids=given, attention_mask=given)["sentence_embedding"]).all()


def test_int8_files_hold_int8(folder_of, tmp_path):
    subject = export.open_subject(folder_of("distilbert", "masked_lm"))
    manifest = export.export(subject, "litert-int8", tmp_path / "lm", texts=TEXTS)
    assert manifest["parity"]["logits"]["max_difference"] > 0
    # One table of words, looked up in and multiplied with.
    found = tensors(tmp_path / "lm")
    matrices = [name for name in found if name.endswith("/kernel") or name.endswith("/word")]
    assert len(matrices) == 6 * subject.encoder.num_layers + 2
    for name in matrices:
        scales = found[name]["quantization_parameters"]["scales"]
        assert found[name]["dtype"] == np.int8 and len(scales) == found[name]["shape"][0]
    headed = export.open_subject(folder_of("bert", "sequence"))
    export.export(headed, "litert-int8", tmp_path / "head", texts=TEXTS)
    found = tensors(tmp_path / "head")
    assert found["encoder/pooler/kernel"]["dtype"] == np.int8
    assert found["task_head/classifier/kernel"]["dtype"] == np.float32


def test_mistakes(folder_of, tmp_path):
    subject = export.open_subject(folder_of("bert", "sequence"))
    for length in (0, 2, 99999):
        options = export.Options(lengths=(length,))
        says = rf"--lengths={length}: .* up to 3 tokens, and the model has \d+ pos.*choose 3"
        with pytest.raises(UserError, match=says):
            export.export(subject, "litert", tmp_path / "out", options=options)
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.tflite").write_bytes(b"not a model at all")
    with pytest.raises(UserError, match="LiteRT does not load"):
        litert_file.interpreter(tmp_path / "model.tflite")
    with pytest.raises(UserError, match="names no signatures"):
        export.export(subject, "litert", tmp_path / "out", texts=TEXTS)
        manifest = {"model": {}, "signatures": {}}
        litert_file.load(tmp_path / "out", manifest)
