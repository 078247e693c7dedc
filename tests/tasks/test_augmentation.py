"""Words replaced by a masked-LM's candidates: which, by which, and the same ones again."""

import dataclasses
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers, trainers

from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.settings import Compute
from distilflax.tasks import augmentation
from distilflax.tasks.answering import Answering
from distilflax.tasks.augmentation import Slot
from distilflax.tasks.classification import Classification, Example
from distilflax.tasks.data import augmented_for, prepare, training_rows
from distilflax.tasks.sentences import Sentence
from distilflax.tasks.squad import Answer, Question
from distilflax.tasks.tagging import Tagging
from distilflax.text import tokenizer as text_tokenizer

TEXT = "The cat's sat, on a  MAT [MASK] 7 birds Parisian."
QUIET = lambda _: None  # noqa: E731


@pytest.fixture(scope="module")
def filler(model_folder, tmp_path_factory):
    """The folder of a tiny model with a masked-LM head."""
    base = weights.load(model_folder)
    encoder = dataclasses.replace(base.encoder, pooler=False)
    params = jax.device_get(models.init(encoder, jax.random.key(3), mlm_head=True))
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    folder = tmp_path_factory.mktemp("filler") / "model"
    weights.save(folder, encoder, params, tokenizer_folder=model_folder)
    return folder


@pytest.fixture
def run_of(filler, settings_of, tmp_path):
    (tmp_path / "t.tsv").write_text("text\tlabel\ngood film\ty\nbad film\tn\na cat\ty\n")

    def make(**groups):
        given = {"model": str(filler), "samples": 6, "candidates": 3, "cache": str(tmp_path)}
        groups["augmentation"] = given | groups.get("augmentation", {})
        data = {"train": "t.tsv", "dev": "t.tsv"} | groups.pop("data", {})
        teacher = {"teacher": "somewhere"}
        return settings_of("classification", tmp_path, data=data, distillation=teacher, **groups)

    return make


def test_candidates_are_the_likeliest_whole_words_where_the_word_was(filler):
    checkpoint = weights.load(filler)
    words = text_tokenizer.load(filler)
    fill = augmentation.masked_lm(checkpoint.encoder, Compute(), words, 4, 14)
    given = [("the cat ran", "dog"), (TEXT, TEXT)]
    found = augmentation.slots(words, given, lambda rows: fill(checkpoint.params, rows), 14)
    assert [[len(slots) for slots in texts] for texts in found] == [[2, 1], [4, 4]]
    shown = [TEXT[slot.start : slot.end] for slot in found[1][0]]
    assert shown == ["cat", "sat", "MAT", "birds"]  # Parisian lies beyond 14 tokens.

    ids = [words.cls_id, *words.fast.encode("the [MASK] ran", add_special_tokens=False).ids]
    ids = jnp.array([[*ids, words.sep_id]], jnp.int32)
    assert ids[0, 2] == words.mask_id
    out = models.encode(
        checkpoint.encoder, Compute(), checkpoint.params["encoder"], ids, jnp.ones_like(ids)
    )
    matrix, bias = models.decoder(checkpoint.params)
    states = out["last_hidden_state"][:, 2]
    hidden = models.mlm_transform(checkpoint.encoder, Compute(), checkpoint.params, states)
    order = np.argsort(-np.asarray(hidden @ matrix.T + bias)[0], kind="stable")
    ranked = [words.fast.id_to_token(int(i)) for i in order]
    whole = [name for name in ranked if name.isalpha()]
    assert found[0][0][0].candidates == tuple(whole[:4])


ROLES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def byte_level():
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=ROLES, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(["a film, a café, a cat"] * 3, trainer)
    return fast


def metaspace():
    pieces = [*ROLES, "▁", "▁film", "▁café", "▁cat", *"filmcaté,."]
    fast = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], 1))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return fast


def ends_marked():
    vocabulary = {piece: i for i, piece in enumerate([*ROLES, "a", "a</w>"])}
    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token="[UNK]", end_of_word_suffix="</w>")
    )
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return fast


def loaded(fast, folder):
    fast.save(str(folder / "tokenizer.json"))
    return text_tokenizer.load(folder)


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_words_of_other_vocabularies_are_candidates_without_their_mark(make, tmp_path, run_of):
    words = loaded(make(), tmp_path)
    names = augmentation._written(words)
    begin = [name for i, name in enumerate(names) if name.isalpha() and not words.continuation[i]]
    assert {"film", "café", "cat"} <= set(begin)
    assert not [name for name in begin if "Ġ" in name or "Ã" in name]
    rows = []
    fill = lambda asked: [("dog",) for row in asked if not rows.append(row)]  # noqa: E731
    given = [("cat film, café.",)]
    found = augmentation.slots(words, given, fill, 32)
    assert [given[0][0][slot.start : slot.end] for slot in found[0][0]] == ["cat", "film", "café"]
    assert [int((row == words.mask_id).sum()) for row in rows] == [1, 1, 1]
    comma = words.fast.token_to_id(",")
    assert all(comma in row.tolist() for row in rows)
    samples = augmentation.sampled(given, found, run_of(augmentation={"probability": 1.0}))
    assert samples == [[["dog dog, dog."]]]


def test_of_a_long_text_no_more_is_looked_at_than_a_row_holds(tmp_path, monkeypatch):
    words, asked, stop_words = loaded(byte_level(), tmp_path), [], augmentation._stop_words()

    class Encoding:
        def __init__(self, found):
            self.ids, self.word_ids, self._found = found.ids, found.word_ids, found

        @property
        def offsets(self):
            asked.append("offsets")
            return self._found.offsets

    fast = Mock(spec=tokenizers.Tokenizer, model=words.fast.model)
    fast.encode = lambda text, **options: Encoding(words.fast.encode(text, **options))
    monkeypatch.setattr(augmentation, "_stop_words", lambda: asked.append("word") or stop_words)
    counted = dataclasses.replace(words, fast=fast)
    found = list(augmentation._masked(counted, "cat film, " * 500, 12))
    assert [(start, end) for start, end, _ in found[:3]] == [(0, 3), (4, 8), (10, 13)]
    assert asked.count("offsets") == 1 and asked.count("word") <= 10


def test_a_vocabulary_that_marks_no_beginnings_is_refused(tmp_path, filler):
    words = loaded(ends_marked(), tmp_path)
    encoder = weights.load(filler).encoder
    with pytest.raises(UserError, match=r"tokenizer\.json has no entry .* BERT's vocabulary as"):
        augmentation.masked_lm(encoder, Compute(), words, 4, 14)


def test_samples_change_words_and_nothing_else(run_of):
    slots = [[[Slot(4, 7, ("dog", "bird", "sun")), Slot(17, 20, ("sofa", "bed", "cat"))]]]
    given = [("The cat sat on a MAT.",)]

    def sampled(given=given, slots=slots, **augmented):
        return augmentation.sampled(given, slots, run_of(augmentation=augmented))

    found = sampled(probability=0.5, samples=200)
    texts = {text for (text,) in found[0]}
    every = {
        f"The {a} sat on a {b}."
        for a in ("cat", "dog", "bird", "sun")
        for b in ("MAT", "sofa", "bed", "cat")
    }
    assert texts == every - {given[0][0]}
    # The same again, whatever stands beside it; others by another seed.
    both = augmentation.sampled(
        [("x",), *given], [[[]], *slots], run_of(augmentation={"probability": 0.5, "samples": 200})
    )
    assert both == [[], found[0]]
    assert sampled(probability=0.0) == [[]]
    one = augmentation.sampled(
        given,
        [[[slot._replace(candidates=slot.candidates[:1]) for slot in slots[0][0]]]],
        run_of(augmentation={"probability": 1.0}),
    )
    assert len(one[0]) == 1
    assert len(sampled(samples=3, probability=1.0)[0]) <= 3
    other = augmentation.sampled(given, slots, run_of(seed=1, augmentation={"probability": 0.5}))
    assert other != sampled(probability=0.5)


def test_samples_are_made_once_and_made_again_where_they_are_damaged(run_of, monkeypatch, tmp_path):
    run, task = run_of(), Classification()
    examples = [Example("p", "good film", None, "y"), Example("q", "bad cat", "dog ran", "n")]
    first = augmentation.augment(run, task, examples, QUIET)
    assert all(e.label is None and e.text for samples in first for e in samples)
    assert [e.pair is None for samples in first for e in samples[:1]] == [True, False]
    (path,) = tmp_path.rglob("*.jsonl")
    kept = path.read_text()
    with monkeypatch.context() as patch:
        patch.delattr(augmentation, "masked_lm")
        assert augmentation.augment(run, task, examples, QUIET) == first
    for damage in (kept[:-9], "[[[1]], []]\n[]\n", kept + "[]\n"):
        path.write_text(damage)
        assert augmentation.augment(run, task, examples, QUIET) == first
        assert path.read_text() == kept
    assert not list(tmp_path.rglob("*.part"))


def test_two_that_keep_the_same_samples_at_once(monkeypatch, tmp_path):
    path, real, texts = tmp_path / "a.jsonl", Path.write_text, iter(["second"])

    def meanwhile(part, *content, **options):
        real(part, *content, **options)
        for text in texts:
            augmentation._write(path, [[[text]]])

    monkeypatch.setattr(Path, "write_text", meanwhile)
    augmentation._write(path, [[["first"]]])
    assert path.read_text() == '[["first"]]\n' and list(tmp_path.iterdir()) == [path]


def test_a_low_data_run_sees_the_samples_of_its_own_examples(run_of):
    run = run_of(data={"fraction": 0.1}, training={"batch_size": 8, "seeds": 2})
    materials = prepare(run, QUIET)
    assert materials.labelled == 3 and len(materials.origins)
    made = materials.train.examples[3:]
    assert len(made) == len(materials.origins) and {e.label for e in made} == {None}
    for seed in (0, 1):
        rows = training_rows(materials, 0.1, seed)
        labelled = rows[rows < 3]
        assert len(labelled) == 2
        own = materials.origins[rows[rows >= 3] - 3]
        assert set(own) <= set(labelled)
        assert sum(np.isin(materials.origins, labelled)) == len(own)
    # What the first seed is made of does not change when more are added.
    alone = prepare(run_of(data={"fraction": 0.1}, training={"batch_size": 8}), QUIET)
    assert len(alone.origins) < len(materials.origins)
    assert augmented_for(materials, 0.1, 0) == augmented_for(alone, 0.1, 0) != []
    assert len(training_rows(materials, 1.0, 0)) == len(materials.train.examples)


def test_every_task_says_what_may_change(words):
    asked = Question("p", "1", "who sat?", "Anna sat", (Answer(0, "Anna"),))
    sentence = Sentence("p", ("Anna", "sat"), ("B-per", "O"))
    labels = ("O", "B-per")
    for task, example in (
        (Answering(), asked),
        (Tagging(labels=labels, scheme="bio"), sentence),
        (Classification(labels=("a", "b")), Example("p", "Anna sat", "dog", "a")),
    ):
        given = task.wording(example)
        new = task.reworded(example, tuple(text.replace("sat", "ran") for text in given))
        assert task.wording(new) == tuple(text.replace("sat", "ran") for text in given)
        targets = task.encode(words, [new], 16).targets
        for name in ("label", "tag", "start", "end"):
            if name in targets:
                assert np.all(np.asarray(targets[name][0]) == -100)


def test_a_model_without_a_head_and_a_run_without_teacher_are_refused(run_of, model_folder):
    run = run_of(augmentation={"model": str(model_folder)})
    with pytest.raises(UserError, match="has no masked-LM head"):
        augmentation.augment(run, Classification(), [Example("p", "a cat")], QUIET)
    with pytest.raises(UserError, match=r"augmentation\.model is of use to a teacher alone"):
        dataclasses.replace(run, distillation=dataclasses.replace(run.distillation, teacher=""))
