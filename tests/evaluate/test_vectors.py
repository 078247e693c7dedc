import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import evaluate, models
from distilflax.errors import UserError
from distilflax.evaluate import vectors
from distilflax.settings import Compute
from distilflax.weights import SentenceFiles


def embed(model, words, texts, **options):
    return evaluate.embed(
        model, words, texts, compute=Compute(), **{"max_length": 32, "batch_size": 4, **options}
    )


def plainly(model, words, text, pooling):
    """One text, alone and without padding."""
    ids = jnp.asarray(words.encode([text], 32)[0])[None]
    encode = jax.jit(models.encode, static_argnums=(0, 1))
    out = encode(model.encoder, Compute(), model.params["encoder"], ids, jnp.ones_like(ids))
    hidden = np.asarray(out["last_hidden_state"][0])
    vector = hidden[0] if pooling == "cls" else hidden.mean(axis=0)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_each_text_has_its_own_vector_in_its_own_place(teacher, words, sentences, pooling):
    """Batching, sorting by length and padding change nothing."""
    found = embed(teacher, words, sentences, sentence=SentenceFiles(pooling))
    for i in (0, 3, 6):
        expected = plainly(teacher, words, sentences[i], pooling)
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_only_vectors_that_are_compared_by_inner_product_keep_their_lengths(
    teacher, words, sentences
):
    unit = embed(teacher, words, sentences, sentence=SentenceFiles(normalize=False))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    dot = SentenceFiles(normalize=False, similarity="dot")
    found = embed(teacher, words, sentences, sentence=dot)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    assert np.ptp(lengths) > 1e-4
    np.testing.assert_allclose(found / lengths, unit, atol=1e-5)


def test_vectors_do_not_depend_on_company(teacher, words, sentences):
    alone = embed(teacher, words, sentences[:1])
    for batch_size in (3, 16):
        np.testing.assert_allclose(
            embed(teacher, words, sentences, batch_size=batch_size)[:1], alone, atol=1e-5
        )


def test_vectors_have_unit_length(student, words, sentences):
    norms = np.linalg.norm(embed(student, words, sentences), axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-6)


def test_texts_are_cut_at_max_length(teacher, words):
    long = "the array " * 40
    cut = embed(teacher, words, [long], max_length=8)
    np.testing.assert_allclose(
        cut, embed(teacher, words, ["the array the array the array"], max_length=8), atol=1e-6
    )


def test_shapes_are_compiled_once_for_each_length(make_model, words, sentences):
    model = make_model("compiled once", 1, intermediate_size=41)
    before = vectors.sentence_vectors._cache_size()
    for number in (1, 3, 5):
        embed(model, words, sentences[:number], max_length=16)
    assert vectors.sentence_vectors._cache_size() - before == 1


def test_no_text_is_an_error(teacher, words):
    with pytest.raises(UserError, match="no text to make vectors of"):
        embed(teacher, words, [])


def test_more_tokens_than_positions_is_an_error(teacher, words, sentences):
    with pytest.raises(UserError, match=re.escape("65 tokens were asked of 'teacher'")):
        embed(teacher, words, sentences, max_length=65)


def test_vectors_that_are_not_finite_are_an_error(teacher, words, sentences):
    params = {"encoder": {**teacher.params["encoder"]}}
    embeddings = {**params["encoder"]["embeddings"]}
    embeddings["word"] = embeddings["word"].at[:].set(jnp.nan)
    params["encoder"]["embeddings"] = embeddings
    with pytest.raises(UserError, match="'broken' makes vectors that are not finite"):
        embed(replace(teacher, params=params, name="broken"), words, sentences)
