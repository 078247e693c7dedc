"""The reference itself: against transformers' golden arrays, and against the jitted model."""

import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distilflax import export
from distilflax.export import numpy_model
from distilflax.export.subject import forward

GOLDEN = Path(__file__).parents[1] / "golden"


def inputs(subject):
    draw = np.random.default_rng(1)
    ids = draw.integers(0, subject.encoder.vocab_size, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    mask[2] = 0  # nothing but padding
    types = (np.arange(9) > 3) * mask
    return ids, mask, types if subject.with_types else None


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_it_computes_what_transformers_does(family):
    subject = export.open_subject(GOLDEN / family, "masked_lm")
    model = numpy_model.Model(subject.settings(), subject.flat())
    with np.load(GOLDEN / f"{family}.npz") as theirs:
        mask = theirs["attention_mask"]
        types = theirs["token_type_ids"] if subject.with_types else None
        found = model(theirs["input_ids"], mask, types)["logits"]
        hidden = model.encode(theirs["input_ids"], mask > 0, types)
        real = mask > 0
        np.testing.assert_allclose(hidden[real], theirs["hidden_states"][-1][real], atol=1e-5)
        np.testing.assert_allclose(found[real], theirs["logits"][real], atol=1e-4)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "masked_lm"),
        ("bert", "sequence"),
        ("bert", "answer"),
        ("distilbert", "sentence"),
        ("distilbert", "sequence"),
        ("distilbert", "token"),
    ],
)
def test_it_computes_what_the_jitted_model_does(folder_of, family, kind):
    subject = export.open_subject(folder_of(family, kind))
    ids, mask, types = inputs(subject)
    given = (ids, mask) if types is None else (ids, mask, types)
    ours = jax.jit(forward(subject))(subject.params, *(x.astype(np.int32) for x in given))
    found = numpy_model.Model(subject.settings(), subject.flat())(ids, mask, types)
    assert list(found) == list(subject.outputs) == list(subject.settings()["outputs"])
    for name, array in found.items():
        assert array.dtype == np.float32
        kept = mask > 0 if array.ndim > 1 and array.shape[:2] == mask.shape else slice(None)
        np.testing.assert_allclose(array[kept], ours[name][kept], atol=1e-5, err_msg=name)


def test_erf_is_exact_to_float32():
    x = np.linspace(-5, 5, 1001, dtype=np.float32)
    np.testing.assert_allclose(numpy_model.erf(x), [math.erf(v) for v in x], atol=3e-7)


def test_it_runs_as_a_file_of_its_own(folder_of, tmp_path):
    subject = export.open_subject(folder_of("bert", "token"))
    export.export(subject, "numpy", tmp_path / "out")
    code = "import sys, model; model.load('.'); print('jax' in sys.modules, len(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, check=True
    )
    assert found.stdout.startswith(b"False")
    found = subprocess.run(
        [sys.executable, "model.py", "the model"], cwd=tmp_path / "out", capture_output=True
    )
    assert b"logits (1, 4, 3)" in found.stdout, found.stderr
