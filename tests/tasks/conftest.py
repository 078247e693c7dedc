"""A vocabulary of a few words, a tiny encoder in a folder, and files written on the spot."""

import json

import jax
import pytest
from tokenizers import Tokenizer, processors

from distilflax import models, settings, weights
from distilflax.tasks.settings import default_config, from_values
from distilflax.text import tokenizer as text_tokenizer

TEXT = (
    "the cat sat on a mat and dog ran while birds sang good bad film was very Anna lives in Paris "
    "who where does live tower is high city river @ # ! ? . , ' -"
)


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return text_tokenizer.train(lambda: [TEXT] * 3, folder, 160, min_frequency=1)


@pytest.fixture(scope="session")
def laid_out(words, tmp_path_factory):
    """laid_out(template of a pair, ...) -> the words of a tokenizer that has it, of no known class;
    what else is given stands in its tokenizer_config.json."""

    def make(pair, **config):
        folder = tmp_path_factory.mktemp("words")
        description = json.loads(words.fast.to_str())
        special = [("[CLS]", words.cls_id), ("[SEP]", words.sep_id)]
        fast = Tokenizer.from_str(json.dumps(description | {"post_processor": None}))
        fast.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=pair, special_tokens=special
        )
        fast.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return text_tokenizer.load(folder)

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, words):
    """A BERT of one layer with token types and a pooler, and random weights."""
    folder = tmp_path_factory.mktemp("model")
    text_tokenizer.train(lambda: [TEXT] * 3, folder / "words", 160, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_positions=32,
        dropout=0.0,
        attention_dropout=0.0,
    )
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    weights.save(folder / "model", encoder, params, tokenizer_folder=folder / "words")
    return folder / "model"


@pytest.fixture
def write(tmp_path):
    """write("a.tsv", text or records) -> its path; records become JSON lines."""

    def write_file(name, content):
        path = tmp_path / name
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(record) + "\n" for record in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture(scope="session")
def settings_of(model_folder):
    """settings_of("classification", folder, options={...}, training={...}) -> a `FineTuning`."""

    def make(task, folder, /, **groups):
        values = default_config(task).to_dict()
        defaults = {
            "model": {"path": str(model_folder)},
            "data": {"folder": str(folder), "max_length": 16, "buckets": (16,), "test": ""},
            "training": {"batch_size": 8, "log_every": 100},
            "optimizer": {"learning_rate": 1e-2},
        }
        for group in (defaults, groups):
            for name, changes in group.items():
                values[name] = values[name] | changes if isinstance(changes, dict) else changes
        return from_values(values)

    return make
