"""A small WordPiece tokenizer whose pieces a reader can predict."""

import json

import pytest

from distilflax.text import tokenizer

WORDS = """
    [PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog sat ran on under mat house red blue . , ?
    un ##known ##s ##ing walk mask sep [ ]
"""


@pytest.fixture(scope="session")
def vocabulary_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS.split()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


@pytest.fixture(scope="session")
def small(vocabulary_folder):
    return tokenizer.load(vocabulary_folder)
