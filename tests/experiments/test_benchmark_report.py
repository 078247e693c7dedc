"""What a benchmark leaves: parts that fit together, and nothing of another machine."""

import json

import pytest

from distilflax.errors import UserError
from experiments import benchmark_report

CONDITIONS = {
    "model": {"layers": 6, "hidden_size": 768},
    "threads": 2,
    "clock": "wall",
    "against": "onnx",
    "machine": {"processor": "P", "cores": 2},
    "versions": {"python": "3.11"},
    "commit": "abc",
}


def record_of(shape, **seconds):
    return CONDITIONS | {
        "commands": [f"python -m experiments.benchmark --shape={shape}"],
        "seconds": {shape: seconds},
        "mean_difference": {shape: dict.fromkeys(seconds, 0.0)},
        "absent": {"peer: CTranslate2": "ctranslate2 is not installed"},
        "text": {},
        "footprint": {},
        "load_average": (0.1, 0.2, 0.3),
    }


def write(folder, record):
    before = benchmark_report.earlier(folder, CONDITIONS)
    benchmark_report.write(folder, benchmark_report.joined(before, record))


def test_parts_of_a_benchmark_come_together(tmp_path):
    folder = tmp_path / "new" / "out"
    # A machine that is half as fast in its last round slows both: no round's ratio changes.
    write(folder, record_of("1x16", onnx=[1.0, 2.0, 4.0], other=[2.0, 4.0, 8.0]))
    write(folder, record_of("8x128", onnx=[1.0] * 3))
    found = json.loads((folder / "benchmark.json").read_text())
    assert set(found["seconds"]) == {"1x16", "8x128"} and len(found["commands"]) == 2
    assert benchmark_report.ratios(found, "1x16", "other") == (2.0, 2.0, 2.0)
    text = (folder / "benchmark.md").read_text()
    assert "| other | 2.00 [2.00, 2.00] | – |" in text
    assert "not installed" in text and "--shape=8x128" in text
    write(folder, record_of("1x16", onnx=[1.0] * 3, other=[5.0] * 3))
    again = json.loads((folder / "benchmark.json").read_text())
    assert benchmark_report.ratios(again, "1x16", "other")[0] == 5.0


def test_texts_by_length_are_a_column_over_the_same_reference(tmp_path):
    by_length = benchmark_report.BY_LENGTH
    times = {"onnx": [2.0] * 3, "jax.jit": [4.0] * 3}
    write(tmp_path, record_of("texts by 32", **times, **{"jax.jit" + by_length: [3.0] * 3}))
    text = (tmp_path / "benchmark.md").read_text()
    assert f"| texts by 32 | texts by 32{by_length} |" in text
    assert "| onnx | 1.00 [1.00, 1.00] | – |" in text
    assert "| jax.jit | 2.00 [2.00, 2.00] | 1.50 [1.50, 1.50] |" in text


@pytest.mark.parametrize(
    "change", [{"threads": 1}, {"machine": {"processor": "Q", "cores": 2}}, {"commit": "abd"}]
)
def test_what_was_measured_otherwise_is_no_part(tmp_path, change):
    write(tmp_path, record_of("1x16", onnx=[1.0] * 3))
    with pytest.raises(UserError, match=f"another {next(iter(change))}"):
        benchmark_report.earlier(tmp_path, CONDITIONS | change)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        benchmark_report.earlier(tmp_path / "file" / "out", CONDITIONS)
