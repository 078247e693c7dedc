"""Exports beside each other: scores through their own files, bytes without the tokenizer."""

import shutil

import numpy as np
import pytest

from distilflax import export
from distilflax.errors import UserError
from distilflax.evaluate import sts
from distilflax.export import samples, tradeoff, tradeoff_plot
from distilflax.tasks.classification import Classification, Example

pytest.importorskip("onnxruntime")

LOOSE = {"texts": samples.TEXTS[:3], "least_cosine": 0.0, "least_agreement": 0.0}
FEW = {"batch_size": 4, "timed": 3, "rounds": 3}


def written(folder, model, *names):
    subject = export.open_subject(model)
    for name in names:
        export.export(subject, name, folder / name, allow_slower=True, **LOOSE)
    return folder


@pytest.fixture(scope="module")
def encoders(folder_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return written(folder, folder_of("distilbert", "sentence"), "numpy", "onnx", "onnx-int8")


@pytest.fixture(scope="module")
def pairs():
    words = np.array(" ".join(samples.TEXTS).split())
    rng = np.random.default_rng(0)
    first, second = (
        tuple(" ".join(rng.choice(words, size)) for size in rng.integers(1, 12, 20))
        for _ in range(2)
    )
    return sts.Pairs(first, second, rng.uniform(0, 5, 20))


def test_what_is_the_same_model_keeps_all_and_int8_is_smaller(encoders, pairs):
    found = tradeoff.weigh(tradeoff.open_exports([encoders]), tradeoff.Similarity(pairs), **FEW)
    rows = {row["name"]: row for row in found}
    assert list(rows) == ["numpy", "onnx", "onnx-int8"]
    assert rows["onnx"]["score"] == pytest.approx(rows["numpy"]["score"], abs=1e-9)
    assert rows["onnx"]["change"]["low"] <= 0 <= rows["onnx"]["change"]["high"]
    assert "change" not in rows["numpy"] and rows["numpy"]["time_ratio"]["value"] == 1.0
    sizes = {name: (encoders / name / "model.onnx").stat().st_size for name in list(rows)[1:]}
    for name, size in sizes.items():
        assert size <= rows[name]["bytes"] < size + 2_000  # config.json is beside it
    figure = tradeoff_plot.figure(found, "Spearman")
    assert [one.get_text() for one in figure.legends[0].get_texts()] == list(rows)


def test_the_order_and_the_batch_of_texts_change_nothing(encoders, pairs):
    export_ = tradeoff.open_exports([encoders / "onnx"])[0]
    features = tradeoff.Similarity(pairs).features(export_)
    together, alone = (export_.outputs(features, size) for size in (7, 1))
    for one, other in zip(together, alone, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-5)


def test_the_figure_of_a_head(folder_of, tmp_path):
    folder = written(tmp_path, folder_of("bert", "sequence"), "onnx")
    task = Classification(labels=("bad", "good", "neither"))
    texts = [text[:40] for text in samples.TEXTS]
    examples = [Example("", text, None, "good") for text in texts]
    judged = tradeoff.Headed(task, examples, max_length=16)
    exports = tradeoff.open_exports([folder])
    (row,) = tradeoff.weigh(exports, judged, **FEW)
    says = exports[0].outputs(judged.features(exports[0]), 32)
    share = np.mean([out["logits"].argmax() == 1 for out in says])
    assert row["score"] == pytest.approx(share)


def test_exports_are_named_by_what_tells_them_apart(encoders, tmp_path):
    again = shutil.copytree(encoders / "onnx", tmp_path / "more" / "onnx")
    names = [one.name for one in tradeoff.open_exports([encoders / "onnx", again, again])]
    assert names == [f"{encoders.name}/onnx", "more/onnx"]


def test_what_cannot_be_weighed(encoders, folder_of, tmp_path, pairs):
    with pytest.raises(UserError, match="holds no export"):
        tradeoff.open_exports([tmp_path])
    headed = written(tmp_path, folder_of("bert", "sequence"), "numpy")
    with pytest.raises(UserError, match="makes no sentence vectors"):
        tradeoff.weigh(tradeoff.open_exports([headed]), tradeoff.Similarity(pairs), **FEW)
