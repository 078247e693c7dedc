"""What a text has as it stands: tokens that the files beside a tokenizer name, as transformers."""

import json
import shutil

import pytest
from tokenizers import Tokenizer as FastTokenizer

from distilflax.errors import UserError
from distilflax.text import tokenizer

BERT, GENERAL = {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "TokenizersBackend"}
MASKED, DOG = ("the", "[MASK]", "cat"), ("the", "dog", "a")


@pytest.fixture
def bare(vocabulary_folder, tmp_path):
    """bare({"bos_token": ...}): a tokenizer.json as the library saves it, which knows no control
    token, beside a config of these values."""

    def write(config):
        whole = json.loads(tokenizer.load(vocabulary_folder).fast.to_str())
        FastTokenizer.from_str(json.dumps(whole | {"added_tokens": []})).save(
            str(tmp_path / "tokenizer.json")
        )
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def decoder(number, text, **flags):
    return {"added_tokens_decoder": {str(number): {"content": text, "special": True} | flags}}


def tokens(words, text):
    return tuple(words.fast.encode(text, add_special_tokens=False).tokens)


@pytest.mark.parametrize(
    ("config", "mask"),
    [
        ({}, True),
        (BERT, True),
        (GENERAL, False),
        (GENERAL | {"mask_token": "[MASK]"}, True),
        (GENERAL | {"additional_special_tokens": ["[MASK]"]}, True),
        (GENERAL | decoder(4, "[MASK]"), True),
    ],
)
def test_a_control_token_is_one_where_the_files_or_berts_class_say_so(bare, config, mask):
    words = tokenizer.load(bare(config))
    assert (tokens(words, "the [MASK]cat") == MASKED) == mask


@pytest.mark.parametrize(
    ("config", "whole"),
    [
        ({}, False),
        ({"additional_special_tokens": ["dog"]}, True),
        ({"extra_special_tokens": {"pet_token": "dog"}}, True),
        ({"extra_special_tokens": [{"content": "dog", "single_word": True}]}, False),
        ({"eos_token": "dog", "add_eos_token": True}, True),
        (decoder(8, "dog", special=False), True),
        (decoder(8, "dog", single_word=True), False),
        (decoder(1, "dog"), True),  # the vocabulary's own id counts
    ],
)
def test_a_word_that_is_a_token_as_it_stands_is_found_inside_of_others(bare, config, whole):
    words = tokenizer.load(bare(BERT | config))
    assert (tokens(words, "thedog a") == DOG) == whole
    named = whole and config != decoder(8, "dog", special=False)
    assert words.special[words.fast.token_to_id("dog")] >= named


def test_what_a_vocabulary_lacks_gets_the_id_that_the_files_give_or_none(bare):
    size = tokenizer.load(bare(BERT)).vocab_size
    words = tokenizer.load(bare(BERT | decoder(size, "[E1]")))
    assert words.vocab_size == size + 1 and tokens(words, "the[E1]") == ("the", "[E1]")
    listed = tokenizer.load(bare(BERT | {"additional_special_tokens": ["[E1]"]}))
    assert listed.vocab_size == size
    with pytest.raises(UserError, match=r"'\[E1\]' has the id .* those of tokenizer\.json; save"):
        tokenizer.load(bare(BERT | decoder(size + 3, "[E1]")))


def test_an_older_list_of_added_tokens_tells_less_than_the_rest(bare, vocabulary_folder, tmp_path):
    (bare(BERT) / "added_tokens.json").write_text('{"[MASK]": 4, "dog": 8}')
    for _ in ("tokenizer.json", "vocab.txt"):
        words = tokenizer.load(tmp_path)
        assert tokens(words, "the [MASK]cat [mask]") == (*MASKED, "[", "mask", "]")
        assert tokens(words, "thedog a") == DOG
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
        shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)


def test_tokens_that_were_added_to_a_vocabulary_keep_their_ids(vocabulary_folder, tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(vocabulary_folder / name, tmp_path / name)
    size = tokenizer.load(tmp_path).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[E1]": size}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        "0": {"content": "[PAD]", "special": True},
        str(size + 1): {"content": "[E2]", "special": True},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    words = tokenizer.load(tmp_path)
    assert words.vocab_size == size + 2
    assert words.encode(["the [E1] [E2]"], 9)[0].tolist()[2:4] == [size, size + 1]
    assert words.special[size + 1] and not words.special[size]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[E1]": size + 7}))
    with pytest.raises(UserError, match=r"\[E2\]' has the id .*does not follow"):
        tokenizer.load(tmp_path)


def test_what_is_special_in_a_vocabulary_stays_one_token(vocabulary_folder, tmp_path):
    shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)
    named = {"additional_special_tokens": ["##ing", "<absent>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    words = tokenizer.load(tmp_path)
    (ids,) = words.encode(["the ##ing cat"], 8)
    assert ids[2] == words.fast.token_to_id("##ing") and words.special[ids[2]]
    assert words.fast.token_to_id("<absent>") is None


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {f"{role}_token": token for role, token in tokenizer.ROLES.items()},
        {"additional_special_tokens": ["dog"], "mask_token": "[MASK]"},
        {"extra_special_tokens": {"pet_token": "dog"}},
        {"eos_token": {"content": "dog", "__type": "AddedToken", "single_word": True}},
        decoder(8, "dog", single_word=True),
        decoder(8, "dog", special=False, normalized=True),
    ],
)
def test_texts_are_read_as_by_transformers(bare, config, kind):
    transformers = pytest.importorskip("transformers")
    folder = bare(config | {"tokenizer_class": kind})
    texts = ["the [MASK]cat", "thedog dogs Dog", "a [SEP] [PAD]mat"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert [ids.tolist() for ids in tokenizer.load(folder).encode(texts, 99)] == theirs
