import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from distilflax.errors import UserError
from distilflax.text import tokenizer

TEXTS = [
    "The cat sat on the mat, and the cat was happy.",
    "A naïve dog ran under the old houses; the dogs were running.",
    "Running and walking are unknown to the cat 123 times 456.",
    "Ünïcode and 漢字 appear in some of the texts, too!",
] * 8
NAMED = ("[PAD]", "[U]", "[CLS]", "[SEP]", "[MASK]")


def test_ids_by_role_and_what_each_id_is(small):
    names = {small.fast.id_to_token(i) for i in np.flatnonzero(small.special)}
    assert names == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert (small.pad_id, small.unk_id, small.cls_id, small.sep_id, small.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    continuing = {small.fast.id_to_token(i) for i in np.flatnonzero(small.continuation)}
    assert continuing == {"##known", "##s", "##ing"}
    assert small.lowercase and small.vocab_size == len(small.special)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_distilbert_config.json"])
def test_lower_case_that_the_tokenizer_does_not_make_is_refused(vocabulary_folder, tmp_path, name):
    shutil.copytree(vocabulary_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text('{"do_lower_case": true}')
    assert tokenizer.load(tmp_path).lowercase
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=rf"{name} asks for lower case and vocab.txt keeps capitals"
    ):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("files", [["vocab.txt"], ["vocab.txt", "tokenizer.json"]])
@pytest.mark.parametrize("strip", [None, True])
def test_how_to_make_lower_case_can_be_followed(small, vocabulary_folder, tmp_path, files, strip):
    shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)
    small.fast.save(str(tmp_path / "tokenizer.json"))
    for name in {"vocab.txt", "tokenizer.json"} - set(files):
        (tmp_path / name).unlink()
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    said = {"do_lower_case": False, "strip_accents": strip, "tokenizer_class": "BertTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"say .* in tokenizer_config\.json\.$") as error:
        tokenizer.load(tmp_path)
    found = re.findall(r'"(\w+)": (\w+)', str(error.value))
    said |= {name: json.loads(value) for name, value in found}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    # Accents are left as they were: sentence-transformers takes none away.
    text = tokenizer.load(tmp_path).fast.normalizer.normalize_str("The Café")
    assert text == ("the cafe" if strip else "the café")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    if "tokenizer.json" in files:
        cased = FastTokenizer.from_str(small.fast.to_str())
        cased.normalizer = None
        cased.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(UserError, match=r"put a Lowercase normalizer into tokenizer\.json"):
            tokenizer.load(tmp_path)


def test_encode_adds_control_tokens_and_cuts_between_them(small):
    whole, cut = (small.encode(["The unknown cats, ran"], n)[0] for n in (64, 5))
    assert [len(small.encode(["the cat sat"], n)[0]) for n in (3, 2, 1, 0)] == [3, 2, 2, 2]
    tokens = [small.fast.id_to_token(i) for i in whole]
    assert tokens == ["[CLS]", "the", "un", "##known", "cat", "##s", ",", "ran", "[SEP]"]
    assert cut.tolist() == [*whole[:4].tolist(), small.sep_id] and cut.dtype == np.int32
    assert small.decode(whole) == "the unknown cats, ran"


def test_truncation_and_padding_saved_with_a_tokenizer_are_off(small, tmp_path):
    """all-MiniLM-L6-v2 ships a tokenizer.json that cuts and pads everything to 128."""
    fast = FastTokenizer.from_str(small.fast.to_str())
    fast.enable_padding(length=128)
    fast.enable_truncation(4)
    fast.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer.load(tmp_path)
    assert len(loaded.fast.encode("the cat sat on the mat", add_special_tokens=False).ids) == 6
    assert loaded.fingerprint == small.fingerprint


@pytest.mark.parametrize(
    "saved",
    [
        # More than any memory holds, and a stride that no cut of one token can have.
        {"padding": {"strategy": {"Fixed": 2**62}}},
        {"truncation": {"max_length": 1, "stride": 5}},
    ],
)
def test_lengths_that_nothing_has_are_off_before_anything_is_encoded(small, tmp_path, saved):
    fast = FastTokenizer.from_str(small.fast.to_str())
    fast.enable_padding(length=128)
    fast.enable_truncation(4)
    described = json.loads(fast.to_str())
    for name, changed in saved.items():
        described[name] |= changed
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    assert tokenizer.load(tmp_path).fingerprint == small.fingerprint


def test_the_fingerprint_follows_what_decides_the_ids(vocabulary_folder, small, tmp_path):
    shutil.copytree(vocabulary_folder, tmp_path / "same")
    shutil.copytree(vocabulary_folder, tmp_path / "cased")
    (tmp_path / "cased" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert tokenizer.load(tmp_path / "same").fingerprint == small.fingerprint
    cased = tokenizer.load(tmp_path / "cased")
    assert cased.fingerprint != small.fingerprint and not cased.lowercase


@pytest.mark.parametrize(
    ("config", "lowercase"),
    [
        ({"tokenizer_class": "BertTokenizer"}, True),
        ({"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({}, False),
    ],
)
def test_of_berts_classes_the_config_counts(vocabulary_folder, tmp_path, config, lowercase):
    shutil.copytree(vocabulary_folder, tmp_path / "cased")
    (tmp_path / "cased" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer.load(tmp_path / "cased").fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer.load(tmp_path).lowercase == lowercase


@pytest.mark.parametrize(
    ("config", "model", "says"),
    [
        ({"tokenizer_class": "KoBertTokenizer"}, {}, "tokenizer_config.json names the class 'KoB"),
        ({}, {"tokenizer_class": "BertJapaneseTokenizer"}, " config.json names the class 'BertJap"),
        ({"word_tokenizer_type": "mecab"}, {}, "has word_tokenizer_type 'mecab'"),
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, {}, "has auto_map, code of the tok"),
        ({"tokenizer_class": ["a"]}, {}, r"names the class \['a'\]"),
        ({"word_tokenizer_type": "basic", "tokenizer_class": "PreTrainedTokenizerFast"}, {}, None),
        ({"word_tokenizer_type": None}, {"tokenizer_class": "ElectraTokenizerFast"}, None),
        ({"auto_map": {"AutoConfig": "a.B"}, "tokenizer_class": "TokenizersBackend"}, {}, None),
        # The tokenizer's own file counts for more, as in transformers.
        ({"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "Another"}, None),
    ],
)
def test_a_vocabulary_that_another_class_reads_is_refused(
    vocabulary_folder, tmp_path, config, model, says
):
    shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps(model))
    if says is None:
        assert tokenizer.load(tmp_path).lowercase
        return
    with pytest.raises(UserError, match=f"not read as BERT's is:.*{says}.*put a tokenizer.json"):
        tokenizer.load(tmp_path)


def test_texts_that_are_cut_at_their_beginning_are_refused(vocabulary_folder, tmp_path):
    shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    with pytest.raises(UserError, match="cuts texts on the 'left', and here the end is cut"):
        tokenizer.load(tmp_path)


def test_control_tokens_in_texts_that_are_to_be_split_are_refused(vocabulary_folder, tmp_path):
    shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"split_special_tokens": true}')
    with pytest.raises(UserError, match="splits control tokens that stand in a text"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"split_special_tokens": false}')
    assert tokenizer.load(tmp_path).encode(["[SEP]"], 8)[0].tolist() == [2, 3, 3]


def test_roles_are_named_by_the_configuration(vocabulary_folder, tmp_path):
    words = (vocabulary_folder / "vocab.txt").read_text().replace("[MASK]", "<mask>")
    (tmp_path / "vocab.txt").write_text(words)
    with pytest.raises(UserError, match=r"lacks \[MASK\]"):
        tokenizer.load(tmp_path)
    named = {"mask_token": {"content": "<mask>", "lstrip": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert tokenizer.load(tmp_path).mask_id == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "has no tokenizer: neither tokenizer.json nor vocab.txt"),
        ("tokenizer.json", '{"version": "1.0", "model"', r"tokenizer\.json cannot be read"),
        ("tokenizer.json", "[]", r"tokenizer\.json cannot be read"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", "[" * 10**5, r"tokenizer_config\.json is not valid JSON"),
        ("special_tokens_map.json", "[]", r"special_tokens_map\.json should hold a JSON object"),
        ("vocab.txt", "the\ncat\n", r"vocab\.txt lacks \[PAD\], \[UNK\]"),
    ],
)
def test_damaged_tokenizers(vocabulary_folder, tmp_path, name, content, message):
    if name:
        shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"do_lower_case": "false"}),
        ("tokenizer_config.json", {"cls_token": {"content": 5}}),
        ("tokenizer_config.json", {"cls_token": {"content": None}}),
        ("tokenizer_config.json", {"mask_token": "\ud800"}),
        ("tokenizer_config.json", {"extra_special_tokens": 3}),
        ("tokenizer_config.json", {"added_tokens_decoder": [0]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": "[PAD]", "x": "[E1]"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"special": True}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "a", "special": 1}}}),
        ("special_tokens_map.json", {"sep_token": ["[SEP]"]}),
        ("added_tokens.json", {"[E1]": "many"}),
    ],
)
def test_a_value_of_another_kind_is_told_with_its_file(vocabulary_folder, tmp_path, name, content):
    shutil.copy(vocabulary_folder / "vocab.txt", tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"/{name}: .*(must|should) be"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece({token: i for i, token in enumerate(NAMED)}, unk_token="[UNK]"),
        models.Unigram([(token, 0.0) for token in NAMED]),
    ],
    ids=["WordPiece", "Unigram"],
)
def test_a_tokenizer_without_a_token_for_what_it_does_not_know(tmp_path, model):
    FastTokenizer(model).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "[U]"}')
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read .*; copy it again"):
        tokenizer.load(tmp_path)


def test_the_mark_at_the_beginning_of_a_vocabulary_is_no_part_of_it(vocabulary_folder, tmp_path):
    words = (vocabulary_folder / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(words, encoding="utf-8-sig")
    expected = tokenizer.load(vocabulary_folder)
    assert tokenizer.load(tmp_path).fingerprint == expected.fingerprint


def test_a_vocabulary_must_fit_the_weights(small):
    size = small.vocab_size
    tokenizer.check_vocabulary(small, size, "the teacher")
    for padding in (8, 64, 128):
        tokenizer.check_vocabulary(small, -(-size // padding) * padding, "a padded teacher")
    lost_a_line = size + 1
    cut = rf" embeddings are spare: .*resize_token_embeddings\({size}\)"
    # What a lost line explains is not to be cut off.
    for wrong, says in ((size - 1, ""), (lost_a_line, ""), (size + 128, "128"), (30522, "30,4")):
        told = f"has {size} tokens but bert has .* {wrong:,}; use the .* trained with"
        with pytest.raises(UserError, match=told) as error:
            tokenizer.check_vocabulary(small, wrong, "bert")
        assert bool(re.search(f"this one, {says}.*{cut}", str(error.value))) == bool(says)


def test_a_vocabulary_that_is_no_list_of_lines_may_be_shorter_by_any_number(small):
    pieces = [("[UNK]", 0.0), ("[CLS]", -1.0), ("a", -2.0)]
    fast = FastTokenizer(models.Unigram(pieces, unk_id=0))
    other = dataclasses.replace(small, fast=fast)
    tokenizer.check_vocabulary(other, small.vocab_size + 35, "a multilingual teacher")
    with pytest.raises(UserError, match="use the tokenizer that"):
        tokenizer.check_vocabulary(other, small.vocab_size + 128, "another")


def test_berts_classes_lay_out_pairs_as_bert_whatever_the_file_says(small, tmp_path):
    small.fast.save(str(tmp_path / "tokenizer.json"))
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(described | {"post_processor": None}))
    config = tmp_path / "tokenizer_config.json"
    for kind, layout in (
        ("BertTokenizer", ((small.sep_id,), (0, 0, 0, 1, 1))),
        ("PreTrainedTokenizerFast", None),
    ):
        config.write_text(json.dumps({"tokenizer_class": kind}))
        assert tokenizer.load(tmp_path).pair == layout
    config.write_text(json.dumps({"model_input_names": "input_ids"}))
    with pytest.raises(UserError, match="model_input_names is 'input_ids'; it must be a list"):
        tokenizer.load(tmp_path)


def test_training_is_deterministic_and_covers_its_texts(tmp_path):
    first = tokenizer.train(lambda: TEXTS, tmp_path / "a", 120)
    again = tokenizer.train(lambda: iter(TEXTS), tmp_path / "b", 120)
    assert (tmp_path / "a" / "vocab.txt").read_bytes() == (
        tmp_path / "b" / "vocab.txt"
    ).read_bytes()
    assert first.fingerprint == again.fingerprint
    assert first.vocab_size <= 120
    assert not any(first.unk_id in ids for ids in first.encode(TEXTS, 512))
    assert first.decode(first.encode(TEXTS[:1], 512)[0]) == TEXTS[0].lower()
    # The continuing letters come in the order of the alphabet, not in that of a hash map.
    tokens = (tmp_path / "a" / "vocab.txt").read_text().split("\n")
    letters = [token[2:] for token in tokens if token.startswith("##") and len(token) == 3]
    assert letters == sorted(letters)


def test_training_keeps_the_commonest_characters_only(tmp_path):
    trained = tokenizer.train(lambda: TEXTS, tmp_path, 80, alphabet=20)
    assert trained.unk_id in trained.encode(["漢"], 8)[0]


def test_training_on_nothing_or_into_too_little(tmp_path):
    with pytest.raises(UserError, match="are empty"):
        tokenizer.train(lambda: ["  "], tmp_path, 100)
    with pytest.raises(UserError, match="vocabulary of 10 is too small"):
        tokenizer.train(lambda: TEXTS, tmp_path, 10)


@pytest.mark.parity
@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        None,
        {"model_max_length": 64},
        {"model_max_length": 64, "do_lower_case": False},
        {"tokenizer_class": "ElectraTokenizer", "do_lower_case": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True},
    ],
)
@pytest.mark.parametrize(
    "model",
    [
        None,
        {"model_type": "bert"},
        {"model_type": "distilbert"},
        {"model_type": "bert", "tokenizer_class": "PreTrainedTokenizerFast"},
    ],
)
def test_who_counts_for_more_is_as_in_transformers(tmp_path, cased, config, model):
    transformers = pytest.importorskip("transformers")
    words = tokenizer.train(lambda: TEXTS, tmp_path / "w", 150, lowercase=not cased)
    folder = tmp_path / "model"
    folder.mkdir()
    words.fast.save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", config), ("config.json", model)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer.load(folder).fast.normalizer.normalize_str("The naïve Dog")
    assert given == theirs.backend_tokenizer.normalizer.normalize_str("The naïve Dog")


@pytest.mark.parity
def test_transformers_loads_what_train_writes_and_agrees(tmp_path):
    transformers = pytest.importorskip("transformers")
    trained = tokenizer.train(lambda: TEXTS, tmp_path / "both", 150)
    (tmp_path / "vocabulary").mkdir()
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(tmp_path / "both" / name, tmp_path / "vocabulary" / name)
    from_vocabulary = tokenizer.load(tmp_path / "vocabulary")
    assert from_vocabulary.fingerprint == trained.fingerprint
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "both")
    texts = [*TEXTS[:4], "never seen: Zürich [MASK] 東京!"]
    assert [ids.tolist() for ids in trained.encode(texts, 512)] == reference(texts)["input_ids"]
    assert reference.mask_token_id == trained.mask_id
