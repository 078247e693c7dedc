"""What lies beside the weights and decides vectors as they do: the tokenizer, prompts, the card."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from distilflax import export, weights
from distilflax.errors import UserError
from distilflax.evaluate import sts
from distilflax.export import card, leave, manifest, samples, tradeoff
from distilflax.predict import load as predictor
from distilflax.text import tokenizer

TEXT = "the model reads"
PROMPTS = {"query": "a query: ", "document": ""}


def altered(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def padding(folder_of, tmp_path):
    """A sentence encoder whose tokenizer.json pads and cuts, as that of all-MiniLM-L6-v2 does."""
    folder = shutil.copytree(folder_of("bert", "sentence"), tmp_path / "padding")
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.enable_padding(length=12)
    words.enable_truncation(5)
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def prompted(padding):
    """The same with prompts, compared by inner product."""
    said = {"prompts": PROMPTS, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    altered(padding / "config_sentence_transformers.json", lambda c: c.update(said))
    return padding


@pytest.mark.parametrize("given", ["padding", "prompted"])
def test_a_tokenizer_that_pads_changes_no_vector(given, request, tmp_path):
    folder = request.getfixturevalue(given)
    export.export(export.open_subject(folder), "numpy", tmp_path / "out", texts=samples.TEXTS[:3])
    for text in (TEXT, 40 * TEXT):
        line = [sys.executable, "model.py", *text.split()]
        options = {"cwd": tmp_path / "out", "capture_output": True, "text": True, "check": True}
        found = subprocess.run(line, **options)
        numbers = re.search(r"sentence_embedding \(1, \d+\) \[\[(.*?)\]\]", found.stdout, re.S)[1]
        wanted = predictor(folder).encode(text)
        np.testing.assert_allclose(np.array(numbers.split(), float), wanted, atol=1e-6)


def test_tokenizers_leave_without_padding_but_for_those_of_hugging_face(padding, tmp_path):
    subject = export.open_subject(padding)
    subject.words.fast.enable_padding(length=9)  # as whoever exports it may have asked for
    plain = len(tokenizer.load(padding).fast.encode(TEXT).ids)
    for name, length in (("numpy", plain), ("stablehlo", plain), ("hf", 12)):
        export.export(subject, name, tmp_path / name, texts=samples.TEXTS[:2])
        words = Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        assert len(words.encode(TEXT).ids) == length, name
        assert (words.truncation is None) == (name != "hf")


def test_a_word_list_is_there_where_the_tokenizer_is_saved_without(padding, tmp_path):
    before = (padding / "vocab.txt").read_text()
    (padding / "vocab.txt").unlink()
    subject = export.open_subject(padding)
    export.export(subject, "numpy", tmp_path / "out", texts=samples.TEXTS[:2])
    assert (tmp_path / "out" / "vocab.txt").read_text() == before


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", ["sequence", "answer"])
def test_the_encoder_of_a_fine_tuned_model_leaves_without_its_head(
    family, kind, folder_of, tmp_path
):
    subject = export.open_subject(folder_of(family, kind), "encoder")
    export.export(subject, "hf", tmp_path / "out", texts=samples.TEXTS[:2])
    again = weights.load(tmp_path / "out", with_task_head=True)
    assert again.head is None and "task_head" not in again.params
    assert again.fingerprint == subject.checkpoint.fingerprint


def test_prompts_and_similarity_are_in_the_manifest_and_the_card(prompted, padding, tmp_path):
    subject = export.open_subject(prompted)
    out = tmp_path / "out"
    found = export.export(subject, "numpy", out, texts=samples.TEXTS[:2])["model"]
    assert (found["prompts"], found["default_prompt"]) == (PROMPTS, "query")
    assert found["similarity"] == "dot"
    text = card.write(subject)
    assert "compared by their dot product. Before a text goes, `query` where no other" in text
    assert '- `query`: `"a query: "`' in text and "`document`" not in text
    for wrong in ({"prompts": ["query: "]}, {"prompts": {"query": 1}}):
        altered(out / manifest.FILE, lambda content, wrong=wrong: content["model"].update(wrong))
        with pytest.raises(UserError, match="does not describe its model"):
            leave.load(out)


def test_models_without_prompts_say_nothing_of_them(folder_of, tmp_path):
    subject = export.open_subject(folder_of("bert", "sentence"))
    found = export.export(subject, "numpy", tmp_path / "out", texts=samples.TEXTS[:2])["model"]
    assert "prompts" not in found and "default_prompt" not in found
    assert "compared by their cosine.\n\n```python" in card.write(subject)


def test_what_is_weighed_reads_the_models_own_prompt(prompted, tmp_path):
    export.export(export.open_subject(prompted), "numpy", tmp_path / "out", texts=[TEXT, "a bed"])
    pairs = sts.Pairs((TEXT, "a bed"), ("a small model", "the teacher"), np.array([1.0, 2.0]))
    (opened,) = tradeoff.open_exports([tmp_path / "out"])
    judged = tradeoff.Similarity(pairs)
    rows = opened.outputs(judged.features(opened), 4)
    wanted = predictor(prompted).encode([*pairs.first, *pairs.second])
    found = np.stack([row["sentence_embedding"] for row in rows])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "there", "said"),
    [
        ("someone/some-bert", False, "someone/some-bert"),
        ("someone/some-bert@v1", False, "someone/some-bert"),
        ("runs/new_words", True, None),
        ("../bert", False, None),
        ("/bert", False, None),
        ("package:some/bert", False, None),
    ],
)
def test_a_base_on_this_disk_is_no_name_of_the_hub(path, there, said, folder_of, tmp_path):
    run = tmp_path / "runs" / "demo" / "distilled"
    run.mkdir(parents=True)
    (run / "model").symlink_to(folder_of("distilbert", "sentence"))
    (run / "config.json").write_text(json.dumps({"teacher": {"path": path}, "student": {}}))
    if there:
        (tmp_path / path).mkdir()
    text = card.write(export.open_subject(run))
    assert "Distilled from" in text
    assert (f'base_model: "{said}"' in text) if said else ("base_model" not in text)
