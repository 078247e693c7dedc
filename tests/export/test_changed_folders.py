"""Folders that were trimmed or pruned, as transformers reads them with its own tokenizer."""

import numpy as np
import pytest

from distilflax import export, weights
from distilflax.export import pruning, vocabulary
from distilflax.export.formats import in_numpy
from distilflax.export.importance import Importance
from distilflax.export.samples import Batch
from distilflax.text import tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# transformers and torch deprecate things of their own while they load.
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TEXTS = ["the student reads.", "a student", "bed dab fade cab reads the bad"]
CLASSES = {"masked_lm": "AutoModelForMaskedLM", "sequence": "AutoModelForSequenceClassification"}


def theirs(folder, kind):
    """(logits of `TEXTS`, what their tokenizer made of them)."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, CLASSES[kind]).from_pretrained(folder).eval()
    given = words(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**given).logits.numpy()
    return logits, {name: tensor.numpy() for name, tensor in given.items()}


@pytest.mark.parametrize(("family", "kind"), [("bert", "masked_lm"), ("distilbert", "sequence")])
def test_a_trimmed_folder_answers_as_before(folder_of, tmp_path, family, kind):
    source = folder_of(family, kind)
    words = tokenizer.load(source)
    kept = vocabulary.choose(words, TEXTS)
    checkpoint = weights.load(source, with_task_head=True)
    folder = vocabulary.trim(checkpoint, words, kept, tmp_path / "trimmed")
    assert len(kept) < words.vocab_size
    before, old = theirs(source, kind)
    after, new = theirs(folder, kind)
    real = old["attention_mask"] > 0
    np.testing.assert_array_equal(kept[new["input_ids"]][real], old["input_ids"][real])
    if kind == "masked_lm":
        before, after = before[..., kept][real], after[real]
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("bert", "sequence"), ("distilbert", "masked_lm")])
def test_a_pruned_folder_answers_as_it_does_here(folder_of, tmp_path, family, kind):
    subject = export.open_subject(folder_of(family, kind))
    encoder = subject.encoder
    draw = np.random.default_rng(0)
    sizes = [(encoder.num_layers, n) for n in (encoder.num_heads, encoder.intermediate_size)]
    given = Importance(*(draw.random(size) for size in sizes))
    folder = pruning.prune(subject, given, TEXTS * 10, tmp_path / "pruned", heads=3, neurons=9)
    logits, batch = theirs(folder, kind)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    run = in_numpy(export.open_subject(folder))
    ours = run(Batch(ids, mask, batch.get("token_type_ids", np.zeros_like(ids))))["logits"]
    kept = mask > 0 if kind == "masked_lm" else slice(None)
    np.testing.assert_allclose(logits[kept], ours[kept], atol=1e-5)
