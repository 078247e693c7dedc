"""Whole or not at all, checked, read back with suspicion; StableHLO, HF folders, the card."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from distilflax import export, weights
from distilflax.errors import UserError
from distilflax.export import card, leave, manifest, numpy_model, parity, samples, stablehlo
from distilflax.models import TaskHead

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = samples.TEXTS[:5]


@pytest.fixture
def subject(folder_of):
    return export.open_subject(folder_of("distilbert", "sentence"))


def numpy_export(subject, folder, **more):
    return export.export(subject, "numpy", folder, texts=TEXTS, **more)


@pytest.fixture(scope="module")
def exported(folder_of, tmp_path_factory):
    """(an export to numpy, what was returned of it); not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    return folder, numpy_export(export.open_subject(folder_of("distilbert", "sentence")), folder)


@pytest.fixture
def out(exported, tmp_path):
    """A copy of that export, which may be changed."""
    return shutil.copytree(exported[0], tmp_path / "out")


def test_the_manifest_describes_every_file(subject, exported):
    out, found = exported
    assert found == json.loads((out / "manifest.json").read_text())
    names = {path.name for path in out.iterdir()} - {"manifest.json"}
    assert names == set(found["files"]) >= {"weights.safetensors", "model.py", "tokenizer.json"}
    assert found["model"]["fingerprint"] == subject.checkpoint.fingerprint
    assert found["model"]["outputs"] == ["last_hidden_state", "sentence_embedding"]
    assert export.load(out)


def test_the_manifest_says_how_a_head_is_read(folder_of, tmp_path, monkeypatch):
    """By the settings of its folder; and the comparison hears the same."""
    model, held = folder_of("distilbert", "sequence"), []

    def compared(*given):
        held.append(given[-1])
        return parity.compare(*given)

    monkeypatch.setattr(leave, "parity", SimpleNamespace(compare=compared, check=parity.check))

    def said(name, **config):
        shutil.copytree(model, tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        out = tmp_path / f"{name}.out"
        export.export(export.open_subject(tmp_path / name), "hf", out, texts=TEXTS)
        assert export.load(out)
        found = json.loads((out / "manifest.json").read_text())["model"]
        return {key: found.get(key) for key in ("problem", "out_of_scope", "threshold")}

    own = {"out_of_scope": "oos", "threshold": 0.6, "pair": "", "max_length": 16}
    scope = {"out_of_scope": "oos", "threshold": 0.6}
    assert said("scoped", distilflax=own) == {"problem": "single"} | scope
    none = {"out_of_scope": None, "threshold": None}
    assert said("plain", distilflax=own | {"out_of_scope": ""}) == {"problem": "single"} | none
    several = "multi_label_classification"
    assert said("several", problem_type=several) == {"problem": "multi"} | none
    assert held == ["single", "single", "multi"]
    with pytest.raises(UserError, match=r"config.json: distilflax: threshold is 'x'; it must be"):
        said("wrong", distilflax=own | {"threshold": "x"})
    with pytest.raises(UserError, match=r"out_of_scope is \[1\]; it must be a text"):
        said("worse", distilflax=own | {"out_of_scope": [1]})


def test_the_manifest_says_what_a_number_goes_through(folder_of):
    subject = export.open_subject(folder_of("distilbert", "sequence"))

    def said(activation):
        head = TaskHead("sequence", ("score",), "regression", activation=activation)
        checkpoint = replace(subject.checkpoint, head=head)
        return leave._model(replace(subject, checkpoint=checkpoint)).get("activation")

    assert said("sigmoid") == "sigmoid" and said("identity") is None


def test_what_computes_something_else_is_refused(subject, out, tmp_path, monkeypatch):
    before = json.loads((out / "manifest.json").read_text())
    read = numpy_model.read_safetensors
    monkeypatch.setattr(
        numpy_model, "read_safetensors", lambda path: {k: 1.01 * v for k, v in read(path).items()}
    )
    with pytest.raises(UserError, match=r"numpy export does not compute .* differs by .*no file"):
        numpy_export(subject, tmp_path / "new")
    with pytest.raises(UserError, match="does not compute"):
        numpy_export(subject, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "manifest.json").read_text()) == before


@pytest.mark.parametrize("name", ["hf", "numpy", "stablehlo", "onnx", "litert"])
def test_the_files_of_a_format_are_those_that_it_writes(name, subject, tmp_path):
    if name in (needed := {"onnx": "onnxruntime", "litert": "ai_edge_litert"}):
        pytest.importorskip(needed[name])
    form = export.FORMATS[name]
    form.write(subject, tmp_path, export.Options())
    assert {*form.files} <= {path.name for path in tmp_path.iterdir()}


def test_a_full_disk_leaves_nothing(subject, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(UserError, match="No space left on device"):
        numpy_export(subject, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_an_export_is_replaced(subject, out, tmp_path):
    numpy_export(subject, out)
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something that is not an export"):
        numpy_export(subject, out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        numpy_export(subject, tmp_path / "file")
    assert (out / "thesis.tex").read_text() == "mine"


def _rewrite(change):
    def apply(folder):
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_rewrite(lambda m: m.update(version=99)), "is of version 99 and this package reads 1"),
        (_rewrite(lambda m: m.update(format="onix")), "'onix' is no format.*did you mean 'onnx'"),
        (_rewrite(lambda m: m["files"].update({"../x": {}})), "outside the folder"),
        (_rewrite(lambda m: m["files"].clear()), "should list its files, weights.safetensors,"),
        (_rewrite(lambda m: m["files"]["model.py"].pop("bytes")), "another checksum"),
        (_rewrite(lambda m: m["model"].pop("outputs")), "does not describe its model"),
        *(
            (_rewrite(lambda m, wrong=wrong: m["model"].update(wrong)), "does not describe its mod")
            for wrong in (
                {"max_positions": "512"},
                {"vocab_size": "64"},
                {"max_seq_length": "128"},
                {"default_prompt": [1]},
                {"problem": "several"},
                {"threshold": "0.5"},
            )
        ),
        *(
            (_rewrite(lambda m, key=key, value=value: m.update({key: value})), f": {key} is")
            for key, value in [
                ("length", []),
                ("length", 5),
                ("length", None),
                ("platforms", None),
                ("signatures", {"all": "9"}),
            ]
        ),
        (lambda f: (f / "weights.safetensors").write_bytes(b"half"), "another checksum"),
        (lambda f: (f / "settings.json").unlink(), "lacks settings.json"),
        (lambda f: (f / "manifest.json").unlink(), "is no export"),
    ],
)
def test_damaged_exports_get_one_sentence(out, damage, says):
    damage(out)
    with pytest.raises(UserError, match=says):
        export.load(out)


@pytest.mark.parametrize(("family", "kind"), [("bert", "sequence"), ("distilbert", "sentence")])
def test_stablehlo_is_for_every_device_and_read_without_us(folder_of, tmp_path, family, kind):
    subject = export.open_subject(folder_of(family, kind))
    found = export.export(subject, "stablehlo", tmp_path / "out", texts=TEXTS)
    assert found["platforms"] == ["cpu", "cuda", "tpu"]
    assert found["files"]["model.stablehlo"]["bytes"] < 200_000  # the weights lie beside it
    program = jax.export.deserialize(bytearray((tmp_path / "out/model.stablehlo").read_bytes()))
    assert {str(aval.shape) for aval in program.in_avals[-2:]} == {"(batch, length)"}
    given = json.loads((tmp_path / "out" / "manifest.json").read_text())
    with pytest.raises(UserError, match=r"calling convention 1, and jax .* reads"):
        stablehlo.load(tmp_path / "out", given | {"calling_convention": 1})
    with pytest.raises(UserError, match="is for tpu, and this machine's jax runs on cpu"):
        stablehlo.load(tmp_path / "out", given | {"platforms": ["tpu"]})
    (tmp_path / "out" / "model.stablehlo").write_bytes(b"not a program at all")
    with pytest.raises(UserError, match="cannot be read"):
        stablehlo.load(tmp_path / "out", given)


@pytest.mark.parametrize("kind", ["masked_lm", "sentence", "sequence", "answer"])
def test_an_hf_folder_is_the_model_again(folder_of, tmp_path, kind):
    subject = export.open_subject(folder_of("bert", kind))
    export.export(subject, "hf", tmp_path / "out", texts=TEXTS)
    again = weights.load(tmp_path / "out", with_task_head=True)
    assert again.fingerprint == subject.checkpoint.fingerprint
    assert again.sentence == subject.checkpoint.sentence
    assert again.head == subject.checkpoint.head
    assert export.load(tmp_path / "out")


@pytest.mark.parametrize("kind", ["token", "answer"])
def test_a_pooler_that_no_head_reads_stays_behind(folder_of, tmp_path, kind):
    plain = export.open_subject(folder_of("bert", kind)).checkpoint
    size = plain.encoder.hidden_size
    pooler = {"kernel": np.eye(size, dtype=np.float32), "bias": np.zeros(size, np.float32)}
    params = plain.params | {"encoder": plain.params["encoder"] | {"pooler": pooler}}
    pooled = replace(plain.encoder, pooler=True)
    more = {"tokenizer_folder": plain.folder, "head": plain.head}
    subject = export.open_subject(weights.save(tmp_path / "pooled", pooled, params, **more))
    assert subject.encoder.pooler
    export.FORMATS["hf"].write(subject, tmp_path / "out", export.Options())
    again = weights.load(tmp_path / "out", with_task_head=True)
    assert again.fingerprint == plain.fingerprint and again.head == plain.head


def run_folder(tmp_path, model):
    """A finished run of experiments.distill, as far as its records matter."""
    run = tmp_path / "demo" / "distilled"
    run.mkdir(parents=True)
    (run / "model").symlink_to(model)
    config = {"teacher": {"path": "someone/some-bert"}, "student": {}}
    (run / "config.json").write_text(json.dumps(config))
    kept = {"value": 0.91, "low": 0.8125, "high": 0.96}
    own = {"name": "distilled", "parameters": 1234, "masked_lm": {"accuracy": 0.4321}}
    own |= {"retrieval": {"mrr@10": {"mean": 0.6543, "retention": kept}}}
    own |= {"training": {"steps": 17, "tokens": 5150}}
    report = {"models": [{"name": "teacher", "parameters": 4321}, own], "command": "python -m x"}
    (run.parent / "report.json").write_text(json.dumps(report))
    return run


def test_the_card_is_made_of_the_records(folder_of, tmp_path):
    run = run_folder(tmp_path, folder_of("distilbert", "sentence"))
    subject = export.open_subject(run.parent)
    assert subject.run == run
    text = card.write(subject)
    for said in ("1,234", "4,321", "0.4321", "0.6543", "91.0%", "81.2", "5,150", "python -m x"):
        assert said in text, said
    assert 'base_model: "someone/some-bert"' in text and str(tmp_path) not in text
    # As a report has it of a teacher that found nothing.
    report = (run.parent / "report.json").read_text()
    (run.parent / "report.json").write_text(report.replace('"value": 0.91', '"value": null'))
    text = card.write(subject)
    assert "MRR@10 kept" not in text and "| 0.6543 | – |\n\nTrained for 17 steps" in text
    (run.parent / "report.json").unlink()
    bare = card.write(export.open_subject(run / "model"))
    assert "Figures" not in bare and "0.6543" not in bare


def test_the_card_of_a_fine_tuned_model(folder_of, tmp_path):
    runs = []
    for seed, score in ((0, 0.5), (1, 0.75), (2, 0.6)):
        run = tmp_path / f"seed{seed}"
        run.mkdir()
        (run / "model").symlink_to(folder_of("bert", "sequence"))
        result = {"seed": seed, "metric": "accuracy", "dev": {"accuracy": score}}
        (run / "result.json").write_text(json.dumps(result))
        runs.append(result)
    subject = export.open_subject(tmp_path)
    assert subject.run == tmp_path / "seed1", "the best on development data"
    assert "| accuracy (chosen by) | 0.75 |" in card.write(subject)
    assert "`bad`, `good`, `neither`" in card.write(subject)
    assert "\n\nSeed 1.\n" in card.write(subject)
    (tmp_path / "report.json").write_text(json.dumps({"runs": runs}))
    assert "\n\nSeed 1, the best of 3 by its figure on dev.\n" in card.write(subject)
    named = export.open_subject(tmp_path / "seed2")
    assert "\n\nSeed 2, one of 3.\n" in card.write(named), "named, and not the best"
    runs[0]["dev"]["accuracy"] = None
    (tmp_path / "report.json").write_text(json.dumps({"runs": runs}))
    assert "\n\nSeed 1, one of 3.\n" in card.write(subject), "one has no figure"


def test_mistakes_in_what_is_named(folder_of, tmp_path):
    with pytest.raises(UserError, match="has no part 'head' to export; it has: masked_lm, encoder"):
        export.open_subject(GOLDEN / "bert", "head")
    with pytest.raises(UserError, match="did you mean 'encoder'"):
        export.open_subject(GOLDEN / "bert", "encodr")
    (tmp_path / "distilled" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "distilled"):
        with pytest.raises(UserError, match="distilled is a run that has not finished"):
            export.open_subject(path)
    subject = export.open_subject(GOLDEN / "bert")
    with pytest.raises(UserError, match=r"'onxx'.*did you mean 'onnx'"):
        export.export(subject, "onxx", tmp_path / "out")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="holds no text"):
        samples.read(str(tmp_path / "empty.txt"), 9, subject.words)
    (tmp_path / "greek.txt").write_text("το μοντέλο διαβάζει\n")
    with pytest.raises(UserError, match="unknown to the model's tokenizer"):
        samples.read(str(tmp_path / "greek.txt"), 9, subject.words)


def test_pairs_are_checked_where_a_model_reads_pairs(folder_of):
    subject = export.open_subject(folder_of("bert", "answer"))
    batches = list(samples.batches(subject, TEXTS))
    assert sum(len(b.input_ids) for b in batches[2:]) == 2 * len(TEXTS) - 1
    assert any(b.token_type_ids.any() for b in batches)
    assert len({b.input_ids.shape for b in batches}) > 2, "shapes of many kinds"
    assert any((b.attention_mask == 0).any() for b in batches), "padding too"
    without = export.open_subject(folder_of("distilbert", "answer"))
    assert not any(b.token_type_ids.any() for b in samples.batches(without, TEXTS))
    assert np.array_equal(batches[0].attention_mask, np.ones((1, batches[0].input_ids.shape[1])))


def test_rows_are_padded_to_their_longest():
    batch = samples.padded([np.array([7, 8, 9]), np.array([5])])
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert not batch.token_type_ids.any()
