"""`python -m experiments.benchmark` on a tiny model: what it counts, and no timing."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.slow
def test_what_a_benchmark_leaves(tmp_path, command):
    pytest.importorskip("onnxruntime")
    lite = bool(find_spec("ai_edge_litert"))
    (tmp_path / "texts.tsv").write_text("one\ttwo\na bed\tx\nthe student reads a bed\ty\na\tz\n")
    found = command(
        "benchmark",
        f"--model={GOLDEN / 'distilbert'}",
        *("--only=onnx", "--only=litert-int8", "--shape=2x8", "--rounds=3", "--starts=1"),
        *(f"--texts={tmp_path / 'texts.tsv'}", "--column=one", "--batch=2"),
        f"--output={tmp_path / 'out'}",
    )
    assert found.returncode == 0, found.stderr
    out = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    names = {"onnx", "litert-int8"} if lite else {"onnx"}
    assert set(out["seconds"]) == {"2x8", "texts by 1", "texts by 2"}
    for shape, row in out["seconds"].items():
        sorted_too = {f"{name}, by length" for name in names if shape == "texts by 2"}
        assert set(row) == names | sorted_too
        assert {len(seconds) for seconds in row.values()} == {3}
    assert out["mean_difference"]["2x8"]["onnx"] == 0.0
    assert out["text"]["texts"] == 3 and out["text"]["tokens"] > 3 * 2
    costs = out["footprint"]
    assert set(costs) == names | {"nothing"}
    for name in names:
        assert costs[name]["file_bytes"] > 10_000
        # A runtime is megabytes above Python; a tiny model is far below what jax would add.
        assert 2e6 < costs[name]["peak_bytes"][0] - costs["nothing"]["peak_bytes"][0] < 300e6
