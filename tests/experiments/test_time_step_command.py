"""`python -m experiments.time_step` on tiny models: both steps do the same work; no timing."""

import json

import pytest


@pytest.mark.slow
@pytest.mark.parity
def test_both_steps_find_the_same_terms(tmp_path, several):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    sizes = ("--layers=2", "--width=64", "--words=1000", "--batch=2", "--length=16", "--rounds=3")
    (found,) = several("time_step", [(*sizes, f"--output={tmp_path / 'out.json'}")])
    assert found.returncode == 0, found.stderr
    out = json.loads((tmp_path / "out.json").read_text())
    assert set(out["differences"]) == {"kl", "mlm", "cosine"}
    assert max(out["differences"].values()) < 1e-4
    assert out["ratios"]["distilflax"]["value"] == 1.0
    assert {name: len(seconds) for name, seconds in out["seconds"].items()} == {
        "distilflax": 3,
        "torch": 3,
    }
