"""`python -m experiments.time_predict` on tiny models: both sides give equal answers; no timing."""

import json

import pytest

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "birds", "sang")
PEERS = {
    "BertForSequenceClassification": "transformers.pipeline",
    "BertModel": "sentence-transformers",
    "pooled": "sentence-transformers",
}


@pytest.fixture
def folder(tmp_path):
    """folder("BertModel") -> that class of transformers', with random weights, saved; "pooled" is a
    BertModel whose sentence-transformers files name mean pooling and no unit length."""
    for package in ("torch", "sentence_transformers"):
        pytest.importorskip(package)
    transformers = pytest.importorskip("transformers")

    def save(name):
        path = tmp_path / name
        config = transformers.BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        cls = getattr(transformers, "BertModel" if name == "pooled" else name)
        cls(config).save_pretrained(path)
        (path / "vocab.txt").write_text("\n".join(WORDS))
        vocabulary = {word: number for number, word in enumerate(WORDS)}
        transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(path)
        if name == "pooled":
            import sentence_transformers

            sentence_transformers.SentenceTransformer(str(path), device="cpu").save(str(path))
        return path

    return save


@pytest.mark.slow
@pytest.mark.parity
def test_both_give_the_same_answers(tmp_path, folder, several):
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat sat\nbirds sang while the cat sat\n" * 6)
    given = (f"--texts={texts}", "--rounds=3", "--batch=4")
    lines = [
        (f"--model={folder(name)}", *given, f"--output={tmp_path / name}.json") for name in PEERS
    ]
    for (name, peer), found in zip(PEERS.items(), several("time_predict", lines), strict=True):
        assert found.returncode == 0, found.stderr
        out = json.loads((tmp_path / f"{name}.json").read_text())
        assert out["peer"] == peer and out["largest_difference"] < 1e-4
        assert {how: one["texts"] for how, one in out["measured"].items()} == {
            "one at a time": 12,
            "by 4": 12,
        }
