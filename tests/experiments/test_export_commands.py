"""`python -m experiments.trim` and `.export` as a user calls them, one after the other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def command(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_model_is_trimmed_and_exported(tmp_path):
    (tmp_path / "own.txt").write_text("the student reads\na bed\n" * 10)
    texts = f"--texts={tmp_path / 'own.txt'}"
    small = tmp_path / "small"
    found = command("trim", f"--model={GOLDEN / 'distilbert'}", texts, f"--output={small}")
    assert found.returncode == 0, found.stderr
    assert "kept of a held-out tenth" in found.stdout

    given = (f"--model={small}", texts, f"--output={tmp_path / 'out'}", "--part=encoder")
    found = command("export", *given, "--format=numpy", "--format=tflite")
    assert (found.returncode, (tmp_path / "out").exists()) == (2, False)
    assert found.stderr.startswith("error: --format is 'tflite'; choose from hf")
    found = command("export", *given, "--format=numpy")
    assert found.returncode == 0, found.stderr
    manifest = json.loads((tmp_path / "out" / "numpy" / "manifest.json").read_text())
    assert (manifest["parity"]["texts"], manifest["model"]["part"]) == (20, "encoder")
