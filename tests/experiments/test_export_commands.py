"""`python -m experiments.trim` and `.export` as a user calls them, one after the other."""

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.slow
def test_a_model_is_trimmed_and_exported(tmp_path, command, several):
    (tmp_path / "own.txt").write_text("the student reads\na bed\n" * 10)
    texts = f"--texts={tmp_path / 'own.txt'}"
    small = tmp_path / "small"
    found = command("trim", f"--model={GOLDEN / 'distilbert'}", texts, f"--output={small}")
    assert found.returncode == 0, found.stderr
    assert "kept of a held-out tenth" in found.stdout

    given = (f"--model={small}", texts, "--part=encoder", "--format=numpy")
    lines = (
        (*given, f"--output={tmp_path / 'none'}", "--format=tflite"),
        (*given, f"--output={tmp_path / 'out'}"),
    )
    refused, found = several("export", lines)
    assert (refused.returncode, (tmp_path / "none").exists()) == (2, False)
    assert refused.stderr.startswith("error: --format is 'tflite'; choose from hf")
    assert found.returncode == 0, found.stderr
    manifest = json.loads((tmp_path / "out" / "numpy" / "manifest.json").read_text())
    assert (manifest["parity"]["texts"], manifest["model"]["part"]) == (20, "encoder")
