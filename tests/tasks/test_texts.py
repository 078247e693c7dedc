"""Pairs are cut as `tokenizers` cuts them, and laid out as the model's tokenizer lays them out."""

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.settings import Encoder
from distilflax.tasks import texts

BERT = "[CLS] $A [SEP] $B:1 [SEP]:1"
XLM_R = "[CLS] $A [SEP] [SEP] $B [SEP]"


@pytest.mark.parametrize("template", ["", BERT, XLM_R, "[CLS]:1 $A [SEP] [CLS]:1 $B:1 [SEP]"])
def test_pairs_are_those_of_the_tokenizer_itself(words, laid_out, template):
    words = laid_out(template) if template else words
    rng = np.random.default_rng(0)
    vocabulary = ["cat", "dog", "mat", "birds"]
    for room in (8, 9, 16):
        for _ in range(20):
            first, second = (" ".join(rng.choice(vocabulary, rng.integers(0, 14))) for _ in "ab")
            words.fast.enable_truncation(room, strategy="longest_first")
            try:
                expected = words.fast.encode(first, second)
            finally:
                words.fast.no_truncation()
            ids, types = texts.pair(words, *texts.pieces(words, [first, second]), room)
            assert ids.tolist() == expected.ids
            assert types.tolist() == expected.type_ids


# Without a template of its own for pairs a tokenizer has the first of these.
@pytest.mark.parametrize("template", ["$A:0 $B:1", "$A [SEP] $B [SEP]", "[CLS] $B [SEP] $A [SEP]"])
def test_pairs_that_are_laid_out_in_another_way_are_refused(laid_out, template):
    words = laid_out(template)
    with pytest.raises(UserError, match=r"json puts two texts .* give its post_processor"):
        texts.pair(words, *texts.pieces(words, ["cat", "dog"]), 8)
    with pytest.raises(UserError, match="puts two texts"):
        texts.room_of_pair(words, 8)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({}, True),
        ({"model_input_names": ["input_ids", "attention_mask"]}, False),
        ({"tokenizer_class": "DistilBertTokenizerFast"}, False),
        ({"tokenizer_class": "TokenizersBackend"}, False),
        (
            {
                "tokenizer_class": "DistilBertTokenizer",
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            },
            True,
        ),
    ],
)
def test_a_model_is_given_types_unless_its_tokenizers_files_leave_them_out(laid_out, config, given):
    words = laid_out(BERT, **config)
    assert texts.with_types(words, Encoder(type_vocab_size=2)) is given
    assert not texts.with_types(words, Encoder(type_vocab_size=1))
    # Another model may read the same rows: a student without types has a teacher with some.
    _, types = texts.pair(words, *texts.pieces(words, ["cat", "dog"]), 8)
    assert types.tolist() == [0, 0, 0, 1, 1]


def test_a_text_is_cut_from_its_end(words):
    (ids,) = texts.pieces(words, ["cat dog mat"])
    assert texts.single(words, ids, 4).tolist() == [words.cls_id, *ids[:2], words.sep_id]


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_what_has_no_room_is_cut_to_nothing(words, room):
    ids, other = texts.pieces(words, ["cat dog mat birds", "dog mat"])
    assert texts.single(words, ids, min(room, 2)).tolist() == [words.cls_id, words.sep_id]
    for both in ((ids, other), (other, ids), (ids, other[:0])):
        row, types = texts.pair(words, *both, room)
        assert row.tolist() == [words.cls_id, words.sep_id, words.sep_id]
        assert types.tolist() == [0, 0, 1]


def test_texts_that_hold_anything_are_tokenised(words):
    odd = ["", "\x00\x07", "🎉🎉", "\u202eعربي", "a\ud83d", "x" * 5_000_000]
    assert len(texts.pieces(words, odd)) == len(odd)
