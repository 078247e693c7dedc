import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, settings
from distilflax.errors import UserError
from distilflax.evaluate import heat_maps, tokens

COMPUTE = settings.Compute()
TEXT = "close the file and sort the list"


@pytest.fixture(scope="module")
def found(teacher, student, words):
    return tokens.per_token(student, teacher, words, TEXT, COMPUTE)


def plain(model, ids):
    """Hidden states and logits of one sequence, the head written out."""
    rows = jnp.asarray(ids)[None]
    encoder, params = model.encoder, model.params
    out = models.encode(
        encoder, COMPUTE, params["encoder"], rows, jnp.ones_like(rows), outputs=("hidden_states",)
    )
    matrix, bias = models.decoder(params)
    hidden = models.mlm_transform(encoder, COMPUTE, params, out["last_hidden_state"])
    return [np.asarray(state[0]) for state in out["hidden_states"]], (hidden @ matrix.T + bias)[0]


def test_cosines_are_of_the_whole_sentence(found, teacher, student, words):
    (ids,) = words.encode([TEXT], 64)
    ours, theirs = plain(student, ids)[0], plain(teacher, ids)[0]
    assert found.layers == ((0, 0), (1, 2))
    for column, (m, n) in enumerate(found.layers):
        a, b = ours[m], theirs[n]
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(found.cosines[:, column], cosines, atol=1e-5)


def test_two_models_of_one_name_are_two(found, teacher, student, words):
    alike = tokens.per_token(
        dataclasses.replace(student, name=teacher.name), teacher, words, TEXT, COMPUTE
    )
    np.testing.assert_array_equal(alike.cosines, found.cosines)
    assert alike.words == found.words


def test_words_are_those_of_the_masked_sentence(found, teacher, student, words):
    (ids,) = words.encode([TEXT], 64)
    assert (found.tokens[0], found.tokens[-1]) == ("[CLS]", "[SEP]")
    assert found.words[0] == found.words[-1] == (None, None)
    for place, model in enumerate((teacher, student)):
        masked = ids.copy()
        masked[3] = words.mask_id
        best = int(jnp.argmax(plain(model, masked)[1][3]))
        assert found.words[3][place] == words.fast.id_to_token(best)


def test_without_a_head_there_are_no_words_and_a_model_is_its_own_twin(make_model, teacher, words):
    bare = make_model("bare", 2, mlm_head=False)
    alike = tokens.per_token(bare, teacher, words, TEXT, COMPUTE)
    np.testing.assert_allclose(alike.cosines, 1.0, atol=1e-6)
    assert all(ours is None for _, ours in alike.words) and alike.words[1][0] is not None
    heat_maps.tokens(alike)


def test_what_cannot_be_compared_is_refused(make_model, teacher, words):
    narrow = make_model("narrow", 1, hidden_size=16)
    with pytest.raises(UserError, match="'narrow' is 16 wide and 'teacher' 24"):
        tokens.per_token(narrow, teacher, words, TEXT, COMPUTE)
    with pytest.raises(UserError, match="has no word that the tokenizer knows"):
        tokens.per_token(teacher, teacher, words, "  ", COMPUTE)


def test_the_picture_marks_right_words_and_differing_ones(found):
    pytest.importorskip("matplotlib")
    token = found.tokens[2]
    pairs = [(None, None), ("same", "same"), (token, "other"), *found.words[3:]]
    picture = heat_maps.tokens(found._replace(words=tuple(pairs)))
    cosines, words, *_ = picture.get_axes()
    assert [label.get_text() for label in cosines.get_yticklabels()] == list(found.tokens)
    assert [label.get_text() for label in cosines.get_xticklabels()] == ["emb.", "1→2"]
    looks = {text.get_text(): text for text in words.texts}
    assert looks["same"].get_color() != looks["other"].get_color() == looks[token].get_color()
    assert (looks[token].get_weight(), looks["other"].get_weight()) == ("bold", "normal")
