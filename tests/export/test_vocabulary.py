"""A trimmed vocabulary: the texts that it was made for are read, and answered, as before."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from distilflax import export, weights
from distilflax.errors import UserError
from distilflax.export import samples, vocabulary
from distilflax.export.formats import in_numpy
from distilflax.tasks import texts
from distilflax.text import tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
# Of the golden vocabulary's 64 tokens these use no "model", "small" or "teacher".
OWN = ("the student reads.", "a student", "bed dab fade cab reads the bad")


def trimmed(folder, tmp_path, texts=OWN, most=0):
    checkpoint = weights.load(folder, with_task_head=True)
    words = tokenizer.load(folder)
    kept = vocabulary.choose(words, texts, most)
    return vocabulary.trim(checkpoint, words, kept, tmp_path / "trimmed"), words, kept


@pytest.mark.parametrize("kind", ["masked_lm", "sentence", "token", "answer"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_its_own_texts_get_the_same_answers(folder_of, tmp_path, family, kind):
    folder, _, kept = trimmed(folder_of(family, kind), tmp_path)
    before = export.open_subject(folder_of(family, kind))
    after = export.open_subject(folder)
    assert after.encoder.vocab_size == len(kept) < before.encoder.vocab_size
    assert (after.part, after.sentence) == (before.part, before.sentence)
    assert after.checkpoint.own == before.checkpoint.own
    ours, theirs = in_numpy(after), in_numpy(before)
    for new, old in zip(samples.batches(after, OWN), samples.batches(before, OWN), strict=True):
        np.testing.assert_array_equal(new.attention_mask, old.attention_mask)
        np.testing.assert_array_equal(kept[new.input_ids] * new.attention_mask, old.input_ids)
        wanted, found = theirs(old), ours(new)
        for name, array in found.items():
            expected = wanted[name]
            if kind == "masked_lm":
                expected = expected[..., kept]
            np.testing.assert_allclose(array, expected, atol=1e-5)


def test_words_of_the_prompts_are_kept():
    """They are put before texts that need not have them."""
    words = tokenizer.load(GOLDEN / "bert")
    kept = vocabulary.choose(words, OWN, prompts=("small model: ",))
    asked, plain = ("small model: the student",), ("the student",)
    assert np.isin(texts.pieces(words, asked)[0], kept).all()
    assert len(kept) == len(vocabulary.choose(words, OWN)) + 2
    assert vocabulary.held_out_share(words, plain * 19 + asked) == 1.0
    odd = (*asked, *plain * 19)
    assert vocabulary.held_out_share(words, odd) < 1.0
    assert vocabulary.held_out_share(words, odd, 0, ("small model: ",)) == 1.0


def test_new_words_are_those_of_the_prompts_too(folder_of, tmp_path):
    before = weights.load(folder_of("bert", "sentence"))
    prompts = {"query": "zebra: ", "document": ""}
    before = replace(before, sentence=replace(before.sentence, prompts=prompts))
    path = vocabulary.renew(before, tokenizer.load(before.folder), TEXTS, 80, tmp_path / "renewed")
    assert {"zebra", ":"} <= set(tokenizer.load(path).fast.get_vocab())


def test_words_that_are_gone_fall_into_letters(tmp_path):
    folder, words, _ = trimmed(GOLDEN / "bert", tmp_path)
    short = tokenizer.load(folder)
    assert "model" not in short.fast.get_vocab()
    assert short.decode(short.encode(["model"], 16)[0]) == "model"
    assert vocabulary.reading(short, ["small model"]).unknown == 0
    assert vocabulary.reading(short, ["small model"]).tokens > 2
    assert vocabulary.reading(words, ["small model"]).tokens == 2


def test_every_file_of_the_tokenizer_agrees(tmp_path):
    """transformers reads ids from tokenizer_config.json too, and others from vocab.txt alone."""
    source = tmp_path / "model"
    before = weights.load(GOLDEN / "bert")
    weights.save(source, before.encoder, before.params, tokenizer_folder=before.folder)
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"] = {"4": {"content": "[MASK]", "special": True}}
    path.write_text(json.dumps(config))
    folder, words, kept = trimmed(source, tmp_path)
    short = tokenizer.load(folder)
    decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder == {str(short.mask_id): {"content": "[MASK]", "special": True}}
    (folder / "tokenizer.json").unlink()
    plain = tokenizer.load(folder)
    for text in (*OWN, "something else"):
        assert plain.encode([text], 16)[0].tolist() == short.encode([text], 16)[0].tolist()
    pair = short.fast.encode("a", "the", add_special_tokens=True).ids
    assert [int(kept[i]) for i in pair] == words.fast.encode("a", "the").ids


def test_a_bound_keeps_letters_and_the_most_used():
    words = tokenizer.load(GOLDEN / "bert")
    everything = vocabulary.choose(words, OWN)
    names = {i: t for t, i in words.fast.get_vocab().items()}
    assert len(vocabulary.choose(words, OWN, len(everything) - 1)) == len(everything) - 1
    text = ["student student model"] * 3
    used = [names[int(i)] for i in vocabulary.choose(words, text, len(everything) - 2)]
    assert "student" in used and "[MASK]" in used and "##z" in used
    assert "model" not in used, "less often used, and there is room for one"
    with pytest.raises(UserError, match="--words=5 leaves no room"):
        vocabulary.choose(words, OWN, 5)
    with pytest.raises(UserError, match="no text to choose"):
        vocabulary.choose(words, [])


@pytest.mark.parametrize("cased", [False, True])
def test_letters_are_kept_as_the_normalizer_leaves_them(tmp_path, cased):
    """Without accents "が" is "か", and a syllable of Hangul its three parts."""
    text = "がが 한한"
    letters = "が한" if cased else "か한"
    read = text if cased else "かか 한한"
    listed = [*tokenizer.ROLES.values(), *read.split(), *letters, *("##" + x for x in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join([*listed, "あ", "##あ"]), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
    words = tokenizer.load(tmp_path)
    # The second half of a surrogate pair, which damaged files have, is no text.
    kept = vocabulary.choose(words, [text, "\udc00"])
    assert [words.fast.id_to_token(int(i)) for i in kept] == listed, "all but what no text has"


def test_what_was_held_out_is_not_chosen_by():
    words = tokenizer.load(GOLDEN / "bert")
    same = ["the student"] * 20
    assert vocabulary.held_out_share(words, same) == 1.0
    odd = [text if i % 10 else "model small" for i, text in enumerate(same)]
    assert vocabulary.held_out_share(words, odd) == 0.0
    assert vocabulary.held_out_share(words, same[:5]) is None


TEXTS = ("students reading", "the reader is reading", "a teacher, a student") * 10


@pytest.mark.parametrize("family, kind", [("bert", "masked_lm"), ("distilbert", "sentence")])
def test_new_words_are_the_means_of_the_old_ones_that_they_fall_into(
    folder_of, tmp_path, family, kind
):
    before = weights.load(folder_of(family, kind), with_task_head=True)
    old = tokenizer.load(before.folder)
    after = weights.load(vocabulary.renew(before, old, TEXTS, 60, tmp_path / "renewed"))
    new = tokenizer.load(after.folder)
    assert new.vocab_size == after.encoder.vocab_size <= 60
    assert vocabulary.reading(new, TEXTS).tokens < vocabulary.reading(old, TEXTS).tokens
    assert after.sentence == before.sentence

    origins = vocabulary.origins_of(new, old)
    for role in tokenizer.ROLES:
        assert origins[getattr(new, f"{role}_id")] == [getattr(old, f"{role}_id")]
    known = old.fast.get_vocab()
    name, longer = {i: piece for piece, i in known.items()}, 0
    for piece, made_of in enumerate(origins):
        token = new.fast.id_to_token(piece)
        if token in known and token not in tokenizer.ROLES.values():
            assert made_of == [known[token]]
        elif made_of != [old.unk_id]:
            longer += 1
            joined = "".join(name[i].removeprefix("##") for i in made_of)
            assert joined == token.removeprefix("##")
            assert all(name[i].startswith("##") for i in made_of[1:])
    assert longer > 5

    tables = [(c.params["encoder"]["embeddings"]["word"]) for c in (before, after)]
    if kind == "masked_lm":
        assert after.params["mlm_head"]["bias"].shape == (new.vocab_size,)
    for row, made_of in zip(tables[1], origins, strict=True):
        np.testing.assert_allclose(row, tables[0][made_of].mean(axis=0), atol=1e-6)


def test_letters_that_the_old_words_lack_are_unknown_ones():
    assert vocabulary._cut("##ax", {"a": 1, "##a": 2}) == []
    assert vocabulary._cut("aab", {"a": 1, "##a": 2, "##ab": 3}) == [1, 3]


def test_other_kinds_of_vocabulary_are_refused(tmp_path):
    fast = tokenizers.Tokenizer(tokenizers.models.BPE({"[UNK]": 0, "a": 1}, [], unk_token="[UNK]"))
    for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"):
        fast.add_special_tokens([name])
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="is BPE; only WordPiece"):
        vocabulary.choose(tokenizer.load(tmp_path), ["a"])
