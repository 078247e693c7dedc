"""Rows of two texts, as the tokenizers of folders that others wrote lay them out."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, processors

import distilflax
from distilflax.export.subject import open_subject

BERT, XLM_R = "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS] $A [SEP] [SEP] $B [SEP]"


def _lay_out(folder, template, config):
    """The folder with this template of pairs."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=template,
        special_tokens=[(name, fast.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    fast.save(str(folder / "tokenizer.json"))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("template", "config"),
    [
        (BERT, {"model_input_names": ["input_ids", "attention_mask"]}),
        (BERT, {"tokenizer_class": "DistilBertTokenizer"}),
        (XLM_R, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_pairs_are_the_rows_of_the_models_own_tokenizer(models_by_kind, tmp_path, template, config):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    for kind in ("pairs", "answer"):
        shutil.copytree(models_by_kind[kind], tmp_path / kind)
        _lay_out(tmp_path / kind, template, config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pairs")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "pairs")
    pairs = distilflax.load(tmp_path / "pairs")
    given = "the cat sat", "a dog ran " * 20
    batch = tokenizer(*given, return_tensors="pt", truncation="longest_first", max_length=16)
    with torch.no_grad():
        logits = model.eval()(**batch).logits[0]
    pairs.max_length = 16
    found = pairs.classify(*given)
    assert found["score"] == pytest.approx(float(torch.softmax(logits, -1).max()), abs=1e-5)

    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "answer").eval()
    given = "where does Anna live?", "Anna sat in Paris"
    batch = tokenizer(*given, return_tensors="pt")
    with torch.no_grad():
        start, end = (part[0] for part in model(**batch).values())
    inside = [i for i, part in enumerate(batch.sequence_ids()) if part == 1]
    best = max(float(start[i] + end[j]) for i in inside for j in inside if i <= j)
    found = distilflax.load(tmp_path / "answer").answer(*given)
    assert found["no_answer"] == pytest.approx(float(start[0] + end[0]) - best, abs=1e-4)


def test_what_is_exported_asks_for_types_where_transformers_gives_some(models_by_kind, tmp_path):
    for names, asked in ((["input_ids", "attention_mask"], False), (None, True)):
        folder = tmp_path / str(asked)
        shutil.copytree(models_by_kind["pairs"], folder)
        _lay_out(folder, BERT, {"model_input_names": names})
        assert ("token_type_ids" in open_subject(folder).inputs) is asked
