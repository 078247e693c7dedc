"""Folders out: read back to the last bit, whole or not at all, nothing of anyone's replaced."""

import errno
import json
import shutil
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import normalizers

from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.settings import Encoder
from distilflax.text import tokenizer as text_tokenizer
from distilflax.weights import tensor_file, whole_folder

TINY = Encoder(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=20,
)


@pytest.fixture
def tokenizer_folder(golden):
    return golden("bert")[0]


@pytest.fixture
def save(tmp_path, tokenizer_folder):
    def call(encoder, params, name="model", **more):
        return weights.save(
            tmp_path / name, encoder, params, tokenizer_folder=tokenizer_folder, **more
        )

    return call


def random_params(encoder, mlm_head, decoder=False):
    shapes = models.shapes(encoder, mlm_head=mlm_head)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)
    if decoder:
        shape = (encoder.vocab_size, encoder.hidden_size)
        params["mlm_head"]["decoder"] = draw.normal(size=shape).astype(np.float32)
    return params


@pytest.mark.parametrize(("mlm_head", "decoder"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "bert"),
        ({"pooler": False}, "bert"),
        ({"pooler": False, "type_vocab_size": 0}, "distilbert"),
        # DistilBERT cannot hold these: BERT with a token type of zeros, dropped when read.
        ({"pooler": False, "type_vocab_size": 0, "layer_norm_eps": 1e-5}, "bert"),
        ({"type_vocab_size": 0}, "bert"),
        ({"hidden_act": "gelu_new", "dropout": 0.0, "pad_token_id": 3}, "bert"),
    ],
)
def test_what_is_saved_is_read_back_to_the_last_bit(save, changes, model_type, mlm_head, decoder):
    encoder = replace(TINY, **changes)
    params = random_params(encoder, mlm_head, decoder)
    checkpoint = weights.load(save(encoder, params))
    assert checkpoint.encoder == encoder
    assert checkpoint.model_type == model_type
    assert jax.tree.structure(checkpoint.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, params)
    assert checkpoint.fingerprint == weights.fingerprint(encoder, params)


def test_saving_twice_gives_the_same_bytes(golden, family, save):
    checkpoint = weights.load(golden(family)[0])
    once = save(checkpoint.encoder, checkpoint.params, "once")
    again = weights.load(once)
    twice = save(again.encoder, again.params, "twice")
    for path in once.rglob("*"):
        assert path.read_bytes() == (twice / path.name).read_bytes()


def test_names_and_metadata_are_those_of_transformers(golden, save):
    folder, _ = golden("distilbert")
    checkpoint = weights.load(folder)
    ours = save(checkpoint.encoder, jax.tree.map(jnp.asarray, checkpoint.params))
    assert set(tensor_file.entries(ours)) == set(tensor_file.entries(folder))
    with safe_open(ours / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((ours / "config.json").read_text())
    theirs = json.loads((folder / "config.json").read_text())
    assert config == {key: theirs[key] for key in config}
    assert config["architectures"] == ["DistilBertForMaskedLM"]


def test_tokenizer_files_are_copied(save, tokenizer_folder):
    folder = save(TINY, random_params(TINY, False))
    for name in ("tokenizer.json", "vocab.txt"):
        assert (folder / name).read_bytes() == (tokenizer_folder / name).read_bytes()
    ours, theirs = (
        json.loads((at / "tokenizer_config.json").read_text()) for at in (folder, tokenizer_folder)
    )
    assert ours == theirs | {"model_max_length": TINY.max_positions}


def test_others_cut_texts_as_the_model_was_fine_tuned(save):
    for longest, given in (
        (9, {"sentence": weights.SentenceFiles(max_seq_length=9)}),
        (TINY.max_positions, {"sentence": weights.SentenceFiles(max_seq_length=999)}),
    ):
        folder = save(TINY, random_params(TINY, False), **given)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert config["model_max_length"] == longest


def test_a_limit_by_its_older_name_is_kept(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path / "words")
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"max_len": 9}')
    params, given = random_params(TINY, False), {"tokenizer_folder": tmp_path / "words"}
    folder = weights.save(tmp_path / "m", TINY, params, **given)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 9


@pytest.mark.parity
@pytest.mark.parametrize("config", [None, {"model_max_length": 9}])
@pytest.mark.parametrize("beside", [None, {"model_type": "bert"}])
@pytest.mark.parametrize("lowercase", [True, False])
def test_a_tokenizer_without_a_class_is_given_one_that_says_what_it_does(
    tmp_path, lowercase, beside, config
):
    transformers = pytest.importorskip("transformers")
    words = text_tokenizer.train(
        lambda: ["Anna café sat"] * 3, tmp_path / "w", 90, lowercase=lowercase, min_frequency=1
    )
    (tmp_path / "w" / "tokenizer_config.json").unlink()
    for name, content in (("tokenizer_config.json", config), ("config.json", beside)):
        if content is not None:
            (tmp_path / "w" / name).write_text(json.dumps(content))
    source = text_tokenizer.load(tmp_path / "w")
    for types in (2, 0):
        encoder = replace(
            TINY, vocab_size=words.vocab_size, type_vocab_size=types, layer_norm_eps=1e-5
        )
        folder = tmp_path / f"types{types}"
        params = random_params(encoder, False)
        weights.save(folder, encoder, params, tokenizer_folder=tmp_path / "w")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        text = "Anna CAFÉ sat"
        ours = text_tokenizer.load(folder)
        assert theirs([text, "Anna"], padding=True)["input_ids"][1][-1] == ours.pad_id
        assert theirs(text)["input_ids"] == ours.encode([text], 16)[0].tolist()
        assert ours.encode([text], 16)[0].tolist() == source.encode([text], 16)[0].tolist()
        assert ours.lowercase == (lowercase or beside is not None) and (
            "token_type_ids" in theirs(text)
        ) == (types > 0)


def test_a_distilbert_gets_a_tokenizer_that_makes_no_token_types(save):
    encoder = replace(TINY, pooler=False, type_vocab_size=0)
    folder = save(encoder, random_params(encoder, False))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "DistilBertTokenizer"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


NAMES = ["input_ids", "token_type_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("config", "types", "names"),
    [
        (None, 2, NAMES),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, 2, NAMES),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, 1, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["ids"]}, 2, ["ids"]),
        # These say by themselves whether there are any.
        ({"tokenizer_class": "TokenizersBackend"}, 2, None),
        ({"tokenizer_class": "BertTokenizerFast"}, 2, None),
        ({"tokenizer_class": "DistilBertTokenizer"}, 2, None),
        ({"tokenizer_class": "TokenizersBackend"}, 2, None),
    ],
)
def test_a_general_class_is_told_to_make_the_types_that_the_model_has(
    tokenizer_folder, tmp_path, config, types, names
):
    (tmp_path / "words").mkdir()
    fast = text_tokenizer.load(tokenizer_folder).fast
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    fast.save(str(tmp_path / "words" / "tokenizer.json"))
    if config is not None:
        (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = replace(TINY, type_vocab_size=types)
    params = random_params(encoder, False)
    folder = weights.save(tmp_path / "m", encoder, params, tokenizer_folder=tmp_path / "words")
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved.get("model_input_names") == names
    assert saved["tokenizer_class"] == (config or {}).get(
        "tokenizer_class", "PreTrainedTokenizerFast"
    )


@pytest.mark.parity
def test_transformers_makes_the_types_of_a_general_class(tmp_path, tokenizer_folder):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "words").mkdir()
    fast = text_tokenizer.load(tokenizer_folder).fast
    fast.normalizer = normalizers.Lowercase()
    fast.save(str(tmp_path / "words" / "tokenizer.json"))
    encoder, given = TINY, {"tokenizer_folder": tmp_path / "words"}
    folder = weights.save(tmp_path / "m", encoder, random_params(encoder, False), **given)
    rows = transformers.AutoTokenizer.from_pretrained(folder)("the", "the")
    assert rows["token_type_ids"] == [0, 0, 0, 1, 1]


def test_a_tokenizer_is_required(save, tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        weights.save(tmp_path / "m", TINY, random_params(TINY, False), tokenizer_folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_sentence_files_round_trip(save):
    sentence = weights.SentenceFiles("cls", False, 17, {"query": "find: "}, "query")
    folder = save(TINY, random_params(TINY, False), sentence=sentence)
    assert weights.load(folder).sentence == sentence


def test_a_model_is_replaced_and_nothing_is_left_beside_it(save, tmp_path):
    sentence = weights.SentenceFiles()
    save(TINY, random_params(TINY, False), sentence=sentence)
    encoder = replace(TINY, num_layers=1)
    folder = save(encoder, random_params(encoder, True))
    checkpoint = weights.load(folder)
    assert (checkpoint.encoder, checkpoint.sentence) == (encoder, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_can_be_saved_over_its_own_folder(golden, family, tmp_path):
    folder = shutil.copytree(golden(family)[0], tmp_path / "model")
    before = weights.load(folder)
    weights.save(folder, before.encoder, before.params, tokenizer_folder=folder)
    assert weights.load(folder).fingerprint == before.fingerprint
    assert (folder / "vocab.txt").is_file()


@pytest.mark.parametrize("files", [["thesis.tex"], ["config.json", "model.safetensors", "notes"]])
def test_a_folder_that_is_not_just_a_model_is_never_replaced(save, tmp_path, files):
    (tmp_path / "model").mkdir()
    for name in files:
        (tmp_path / "model" / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {files[-1]!r}, so it is not just a saved model"):
        save(TINY, random_params(TINY, False))
    assert {path.read_text() for path in (tmp_path / "model").iterdir()} == {"mine"}


def test_an_empty_folder_may_be_filled_and_a_file_may_not(save, tmp_path):
    (tmp_path / "empty").mkdir()
    save(TINY, random_params(TINY, False), "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; give a folder"):
        save(TINY, random_params(TINY, False), "file")


@pytest.mark.parametrize("stage", ["write", "move"])
def test_a_full_disk_leaves_what_was_there(save, tmp_path, monkeypatch, stage):
    params = random_params(TINY, False)
    before = weights.load(save(TINY, params)).fingerprint

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if stage == "write":
        monkeypatch.setattr(tensor_file, "write", full)
    else:
        monkeypatch.setattr(whole_folder, "move_into_place", full)
    with pytest.raises(UserError, match=r"No space left on device.*nothing there was changed"):
        save(replace(TINY, num_layers=1), random_params(replace(TINY, num_layers=1), False))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert weights.load(tmp_path / "model").fingerprint == before


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text("old")
    with pytest.raises(OSError, match="No such file"):
        whole_folder.move_into_place(tmp_path / "vanished", old, tmp_path / "aside")
    assert (old / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_save_left_is_cleared_up(save, tmp_path):
    for name in (".model.saving", ".model.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("half")
    save(TINY, random_params(TINY, False))
    save(TINY, random_params(TINY, False))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_killed_between_its_renames_loses_nothing(save, tmp_path, monkeypatch):
    before = weights.load(save(TINY, random_params(TINY, False))).fingerprint
    (tmp_path / "model").rename(tmp_path / ".model.replaced")
    monkeypatch.setattr(tensor_file, "write", lambda *_: (tmp_path / "no" / "room").touch())
    with pytest.raises(UserError, match="could not be written"):
        save(TINY, random_params(TINY, False))
    assert weights.load(tmp_path / "model").fingerprint == before


def test_two_that_write_one_folder_do_so_one_after_the_other(tmp_path):
    second_writes = threading.Event()

    def second():
        with whole_folder.written(tmp_path / "new" / "model") as making:
            second_writes.set()
            (making / "b").touch()

    thread = threading.Thread(target=second)
    with whole_folder.written(tmp_path / "new" / "model") as making:
        (making / "a").touch()
        thread.start()
        assert not second_writes.wait(0.1)
        (making / "c").touch()
    thread.join()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "new" / "model").iterdir()] == ["b"]


def test_what_two_ask_for_at_once_is_made_once(tmp_path):
    folder, told = tmp_path / "model", []

    def second():
        with whole_folder.made_once(folder, "making it") as missing:
            told.append((missing, folder.is_dir()))

    thread = threading.Thread(target=second)
    with whole_folder.made_once(folder, "making it") as missing:
        assert missing
        thread.start()
        thread.join(0.1)
        with whole_folder.written(folder) as making:
            (making / "a").touch()
    thread.join()
    second()
    assert told == [(False, True)] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_made(save, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        save(TINY, random_params(TINY, False), "file/model")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["encoder"].pop("layers_1"), "lack encoder/layers_1/attention/query/kernel"),
        (lambda p: p["encoder"].update(layers_2=p["encoder"]["layers_1"]), "hold 16 more"),
        (lambda p: p["encoder"]["pooler"].update(bias=np.ones(3, "f")), "pooler/bias is"),
        (
            lambda p: p["encoder"]["layers_0"]["ffn"]["up"].update(kernel=np.ones((24, 16), "f")),
            "ffn/up/kernel is",
        ),
    ],
)
def test_parameters_of_another_encoder(save, tmp_path, change, says):
    params = random_params(TINY, False)
    change(params)
    with pytest.raises(UserError, match=says):
        save(TINY, params)
    assert not list(tmp_path.iterdir())
