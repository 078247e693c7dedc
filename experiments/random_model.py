"""Models of random weights as folders, for what is timed and not asked for answers."""

from pathlib import Path

from distilflax import weights
from distilflax.settings import Encoder
from distilflax.text import tokenizer


def save(folder: Path, encoder: Encoder, params: dict) -> Path:
    """An HF folder at `folder`, with a tokenizer beside it that has as many words as the encoder.

    Ids are drawn where these models are used, so that the words have no part in it.
    """
    words = folder.with_name(f"{folder.name}-words")
    tokenizer.train(lambda: [__doc__], words, encoder.vocab_size, min_frequency=1)
    vocabulary = (words / "vocab.txt").read_text().splitlines()
    vocabulary += [f"[unused{i}]" for i in range(encoder.vocab_size - len(vocabulary))]
    (words / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
    (words / "tokenizer.json").unlink()
    return weights.save(folder, encoder, params, tokenizer_folder=words)
