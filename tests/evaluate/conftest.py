"""Two small models of one vocabulary, its tokenizer, and a few sentences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, settings
from distilflax.batches.masking import mask_table
from distilflax.evaluate import Model
from distilflax.text import tokenizer

SENTENCES = (
    "return the mean of the array along the given axis",
    "open the file and read every line of it",
    "sort the list in place and return none",
    "close the connection",
    "the array is copied when it does not own its memory",
    "raise an error when the file is not found",
    "a connection that is closed cannot be opened a second time without raising an error",
)


@pytest.fixture(scope="session")
def words_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="session")
def words(words_folder):
    return tokenizer.train(lambda: SENTENCES, words_folder, 160, min_frequency=1)


@pytest.fixture(scope="session")
def sentences():
    return SENTENCES


def lively(encoder, seed, mlm_head=True):
    """Parameters far from an initialisation's, so that every one of them shows in the outputs."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        unit = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(unit + 0.2 * rng.normal(size=shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, models.shapes(encoder, mlm_head=mlm_head))


@pytest.fixture(scope="session")
def make_model(words):
    def make(name, layers, *, role="other", seed=0, mlm_head=True, **sizes):
        encoder = settings.Encoder(
            **{
                "vocab_size": words.vocab_size,
                "hidden_size": 24,
                "num_layers": layers,
                "num_heads": 4,
                "intermediate_size": 40,
                "max_positions": 64,
                **sizes,
            }
        )
        return Model(name, encoder, lively(encoder, seed, mlm_head), role)

    return make


@pytest.fixture(scope="session")
def teacher(make_model):
    return make_model("teacher", 2, role="teacher")


@pytest.fixture(scope="session")
def student(make_model):
    return make_model("student", 1, role="distilled", seed=1, type_vocab_size=0, pooler=False)


@pytest.fixture(scope="session")
def table(words):
    return mask_table(
        words.special,
        words.continuation,
        words.mask_id,
        np.ones(words.vocab_size, np.int64),
        settings.Masking(rate=0.3),
    )
