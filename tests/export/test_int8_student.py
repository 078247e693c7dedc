"""A student that was trained for its int8 file computes what that file computes."""

from dataclasses import replace

import numpy as np
import pytest

from distilflax import export
from distilflax.export import samples
from distilflax.export.formats import jitted
from distilflax.export.samples import Batch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from distilflax.export import onnx_file


def batch_of(encoder):
    ids = np.random.default_rng(0).integers(5, min(64, encoder.vocab_size), (3, 9))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    return Batch(np.where(mask, ids, encoder.pad_token_id), mask, np.zeros_like(ids))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("int8_range", ["portable", "full"])
@pytest.mark.parametrize("kind", ["sentence", "token"])
def test_the_file_is_what_was_trained(folder_of, tmp_path, family, int8_range, kind):
    if int8_range == "full" and not onnx_file.has_wide_sums():
        pytest.skip("products of 8 bits saturate on this processor")
    subject = export.open_subject(folder_of(family, kind))
    given = batch_of(subject.encoder)
    loose = {"least_cosine": 0.5, "least_agreement": 0.0, "allow_slower": True}
    options = export.Options(int8_range=int8_range)
    export.export(
        subject, "onnx-int8", tmp_path / "out", options=options, texts=samples.TEXTS[:2], **loose
    )
    output = subject.outputs[0]
    from_file = export.load(tmp_path / "out")(given)[output]
    trained, exact = (outputs(subject, one, given) for one in (int8_range, "none"))
    # A number at the edge of two steps may fall to either side: hence no 1e-5.
    apart = np.abs(trained - from_file)[given.attention_mask > 0].mean()
    assert apart < 0.05 * np.abs(exact - from_file)[given.attention_mask > 0].mean()


def outputs(subject, int8_range, given):
    encoder = replace(subject.encoder, int8_range=int8_range)
    trained = replace(subject, checkpoint=replace(subject.checkpoint, encoder=encoder))
    return jitted(trained)(given)[subject.outputs[0]]
