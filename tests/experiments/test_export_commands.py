"""`python -m experiments.trim` and `.export` as a user calls them, one after the other."""

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.slow
def test_a_model_is_trimmed_and_exported(tmp_path, in_turn):
    (tmp_path / "own.txt").write_text("the student reads\na bed\n" * 10)
    texts = f"--texts={tmp_path / 'own.txt'}"
    small = tmp_path / "small"
    given = ("export", f"--model={small}", texts, "--part=encoder", "--format=numpy")
    trimmed, refused, found = in_turn(
        (
            ("trim", f"--model={GOLDEN / 'distilbert'}", texts, f"--output={small}"),
            (*given, f"--output={tmp_path / 'none'}", "--format=tflite"),
            (*given, f"--output={tmp_path / 'out'}"),
        )
    )
    assert trimmed.returncode == 0, trimmed.stderr
    assert "kept of a held-out tenth" in trimmed.stdout
    assert (refused.returncode, (tmp_path / "none").exists()) == (2, False)
    assert refused.stderr.startswith("error: --format is 'tflite'; choose from hf")
    assert found.returncode == 0, found.stderr
    manifest = json.loads((tmp_path / "out" / "numpy" / "manifest.json").read_text())
    assert (manifest["parity"]["texts"], manifest["model"]["part"]) == (20, "encoder")


INT8, STATIC = "--format=onnx-int8", "--format=onnx-int8-static"
REFUSED = (
    (
        ("--format=litert-int8", "--most_loss=0.01"),
        "--most_loss changes nothing in --format=litert",
    ),
    (("--format=litert", "--int8_range=full"), "hears it: onnx-int8, onnx-ort-int8, onnx-int8-"),
    (("--format=litert", "--format=hf", "--opset=20"), "changes nothing in --format=litert, hf;"),
    ((INT8, "--lengths=32"), "choose a format that hears it: litert, litert-int8."),
    (("--format=hf", "--least_cosine=0.5"), "--least_cosine changes nothing"),
    (("--format=onnx", "--allow_slower"), "hears it: onnx-int8, onnx-ort-int8, onnx-int8-static."),
    ((INT8, "--calibration=a.txt"), "hears it: onnx-int8-static."),
    ((INT8, "--calibration=a.txt", "--percentile=99"), "--percentile changes nothing in"),
    ((STATIC, "--percentile=99"), "--percentile changes nothing without --calibration; give that"),
    ((INT8, "--most_texts=9"), "--most_texts changes nothing without --texts or --calibration"),
    ((INT8, "--column=body"), "--column changes nothing without --texts or --calibration"),
    ((INT8, "--least_agreement=0.5"), "of a task head's labels, and this is the part 'masked_lm'"),
)
HEARD = (
    ("--format=hf", "--format=onnx-w4", "--most_loss=0.1", "--opset=20", "--least_cosine=0.5"),
    (INT8, "--most_loss=0.1", "--calibration=a.txt", "--most_texts=9", "--allow_slower"),
    ("--format=litert", "--format=onnx", "--lengths=32", "--opset=20"),
    (STATIC, "--calibration=a.txt", "--percentile=99", "--int8_range=full", "--column=body"),
    ("--format=hf", "--opset=17", "--percentile=100"),  # what is so anyway
)


def test_flags_that_no_format_would_hear_are_refused(tmp_path, several):
    out, none = f"--output={tmp_path / 'out'}", f"--model={tmp_path / 'none'}"
    lines = [(f"--model={GOLDEN / 'bert'}", out, *given) for given, _ in REFUSED]
    found = several("export", [*lines, *((none, out, *given) for given in HEARD)])
    for (given, says), refused in zip(REFUSED, found, strict=False):
        assert refused.returncode == 2 and says in refused.stderr, (given, refused.stderr)
    for given, heard in zip(HEARD, found[len(REFUSED) :], strict=True):
        assert heard.stderr.startswith("error: There is no folder"), (given, heard.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_columns_are_asked_for_by_a_flag_and_names_are_printed_whole(tmp_path, in_turn):
    pytest.importorskip("onnxruntime")
    rows = [
        json.dumps({"body": text}) for text in ("the student reads", "the model", "the teacher") * 9
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    model, texts = f"--model={GOLDEN / 'distilbert'}", f"--texts={tmp_path / 'own.jsonl'}"
    says = "error: {0} has no column 'text' (--column); choose from body".format

    out = tmp_path / ("folder_of_a_long_name_" * 5) / ("and_more_" * 5)
    given = ("export", model, f"--output={out}", "--part=encoder", "--format=numpy", STATIC)
    given += (f"--calibration={tmp_path / 'own.jsonl'}", "--allow_slower", "--least_cosine=0")
    prune = ("prune", model, texts, f"--output={out / 'pruned'}", "--heads=1")
    refused, astray, found, unpruned, pruned, trimmed = in_turn(
        (
            (*given, texts),
            (*given, f"--texts={tmp_path / 'none*'}"),
            (*given, texts, "--column=body"),
            prune,
            (*prune, "--column=body"),
            ("trim", model, texts, f"--output={out / 'trimmed'}", "--column=body"),
        )
    )
    assert refused.stderr.startswith(says(tmp_path / "own.jsonl"))
    assert astray.stderr == f"error: No file matches '{tmp_path / 'none*'}' in --texts; " + (
        "check the pattern.\n"
    )
    assert found.returncode == 0, found.stderr
    assert f"exported to {out}\n" in found.stderr
    for cell in ("numpy", "onnx-int8-static", "last_hidden_state"):
        assert cell in found.stdout
    assert "\u2026" not in found.stdout

    assert unpruned.stderr.startswith(says(tmp_path / "own.jsonl"))
    assert pruned.returncode == 0, pruned.stderr
    assert f"model: {out / 'pruned'}\n" in pruned.stdout
    assert f"model: {out / 'trimmed'}\n" in trimmed.stdout, trimmed.stderr
