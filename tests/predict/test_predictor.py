"""`distilflax.load(path)`: one text or many, any length, any thread, few compilations."""

import copy
import dataclasses
import itertools
import json
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest

import distilflax
from distilflax import evaluate, search, weights
from distilflax.errors import UserError
from distilflax.predict import packing
from distilflax.predict import vectors as sentence_vectors
from distilflax.settings import Compute
from distilflax.text import tokenizer as text_tokenizer

ODD = ["", "\x00\x07", "🎉🎉 cat", "\u202eعربي", "a\ud83d", "cat " * 300_000, "cat mat"]


def test_one_text_is_one_prediction_and_a_list_is_a_list(loaded):
    classify = loaded["sequence"].classify
    one = classify("the cat sat")
    assert one["label"] in ("bad", "good") and 0.5 <= one["score"] <= 1
    many = classify(["the cat sat", "birds", "a dog ran on the mat"])
    assert many[0]["label"] == one["label"]
    assert many[0]["score"] == pytest.approx(one["score"], abs=1e-5)
    assert classify([]) == []


def test_texts_that_hold_anything_are_answered(loaded):
    assert len(loaded["sequence"].classify(ODD)) == len(ODD)
    found = loaded["token"].tag([text[:2000] for text in ODD])
    assert [p["words"] for p in found[2:3]] == [["🎉🎉", "cat"]]
    assert all(len(p["words"]) == len(p["tags"]) for p in found)
    assert loaded["none"].encode(ODD).shape == (len(ODD), 16)


def test_tags_of_a_text_know_their_places(loaded):
    text = "Anna sat, while Anna ran!"
    found = loaded["token"].tag(text)
    assert found["words"] == ["Anna", "sat", ",", "while", "Anna", "ran", "!"]
    for entity in found["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    for words in (["Anna", "sat"], iter(["Anna", "sat"]), np.array(["Anna", "sat"])):
        assert loaded["token"].tag([words])[0]["words"] == ["Anna", "sat"]
    assert loaded["token"].tag("") == {"words": [], "tags": [], "entities": []}


def test_answers_are_exact_in_texts_of_any_length(loaded):
    answer = loaded["answer"].answer
    context = "the dog ran. 🎉 " * 800 + "Anna lives in Paris."
    found = answer("where does Anna live?", context)
    assert context[found["start"] : found["end"]] == found["answer"] != ""
    both = answer(["where?", "who?"], context[:200])
    assert len(both) == 2 and all("n_best" in one for one in both)
    for question, text, sentence in (("", "x", "question number 1"), ("x", " ", "context number")):
        with pytest.raises(UserError, match=sentence):
            answer(question, text)


def test_a_context_without_tokens_has_no_answer(loaded, monkeypatch):
    model = loaded["answer"]
    for threshold in (0.0, 9.0):
        task = dataclasses.replace(model.task, unanswerable=True, threshold=threshold)
        monkeypatch.setattr(model, "task", task)
        found = model.answer("where ?", "\x00\x01")
        assert (found["answer"], found["start"], found["end"]) == ("", None, None)


def test_vectors_are_those_of_the_evaluation(loaded, models_by_kind):
    texts = ["the cat sat", "birds sang while a dog ran on the mat", "Paris"]
    checkpoint = weights.load(models_by_kind["none"])
    expected = evaluate.embed(
        evaluate.Model("m", checkpoint.encoder, checkpoint.params),
        text_tokenizer.load(checkpoint.folder),
        texts,
        compute=Compute(),
        max_length=32,
    )
    found = loaded["none"].encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(loaded["none"].encode(texts[0]), expected[0], atol=1e-5)


def test_packed_vectors_are_those_of_each_text_alone(models_by_kind):
    model = distilflax.load(models_by_kind["none"])
    words = itertools.cycle(["cat", "dog", "birds"])
    texts = [" ".join(itertools.islice(words, n % 29)) for n in range(140)]
    texts[7] = "sang " * 60  # cut, and too long to share a row
    assert np.abs(np.diff(model.encode(["cat", "dog"]), axis=0)).max() > 1e-3
    one_by_one = np.stack([model.encode(text) for text in texts])
    alone = model.compiled
    np.testing.assert_allclose(model.encode(texts), one_by_one, atol=1e-5)
    # The packed program, and those for what is left of the texts.
    together = model.compiled
    assert alone < together <= alone + 4
    model.encode(texts[::-1])
    assert model.compiled == together
    twice = model.encode(texts + texts)
    assert (twice[:140] == twice[140:]).all()


def test_rows_are_packed_full():
    lengths = np.random.default_rng(0).integers(2, 20, 500)
    rows = packing.pack(lengths, 32)
    assert sorted(itertools.chain(*rows)) == list(range(500))
    filled = [int(lengths[row].sum()) for row in rows]
    assert max(filled) <= 32 and filled == sorted(filled, reverse=True)
    assert sum(filled) / (32 * len(rows)) > 0.98
    assert packing.pack(np.array([], int), 32) == []


def test_search_finds_a_text_by_itself(loaded):
    corpus = ["the cat sat", "birds sang", "a dog ran on the mat"]
    search = loaded["none"].search
    found = search(corpus[1], corpus, k=2)
    assert found[0]["index"] == 1 and found[0]["text"] == "birds sang"
    assert found[0]["score"] == pytest.approx(1.0, abs=1e-5) and len(found) == 2
    by_vector = search([corpus[1]], loaded["none"].encode(corpus), k=9)[0]
    assert by_vector[0]["index"] == 1 and len(by_vector) == 3 and "text" not in by_vector[0]
    assert search("x", []) == []


def test_one_query_reads_a_large_corpus_in_blocks(monkeypatch):
    read = []

    def decode(vectors):
        read.append(len(vectors))
        return search.exact.at_unit_length(vectors)

    monkeypatch.setattr(sentence_vectors, "BLOCK", 100)
    monkeypatch.setattr(sentence_vectors, "at_unit_length", decode)
    documents = np.random.default_rng(0).normal(size=(250, 4)).astype(np.float32)
    scores, found = sentence_vectors.best(documents[220:221], documents, 3, unit=True)
    assert read == [1, 100, 100, 50]
    unit = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    wanted = np.argsort(-unit @ unit[220])[:3]
    assert wanted[0] == 220 and found.tolist() == [wanted.tolist()]
    np.testing.assert_allclose(scores, [(unit @ unit[220])[wanted]], rtol=1e-5)
    assert sentence_vectors.best(documents[:1], documents[:0], 3, unit=True)[0].shape == (1, 0)


@pytest.fixture(scope="module")
def by_similarity(models_by_kind, tmp_path_factory):
    """{"cosine", "dot"}: the encoder alone, whose files name no unit length."""
    found = {}
    for similarity in ("cosine", "dot"):
        checkpoint = weights.load(models_by_kind["none"])
        prompts = {"query": "", "passage": "the ", "all": "a "}
        sentence = weights.SentenceFiles("mean", False, 16, prompts, "all", similarity)
        # Unlike lengths, as the words of a trained model have.
        norm = checkpoint.params["encoder"]["layers_0"]["ffn_norm"]
        norm["bias"] = norm["bias"] + np.linspace(-2, 3, 16, dtype=np.float32)
        folder = tmp_path_factory.mktemp(similarity) / "model"
        weights.save(
            folder,
            checkpoint.encoder,
            checkpoint.params,
            tokenizer_folder=checkpoint.folder,
            sentence=sentence,
        )
        found[similarity] = distilflax.load(folder)
    return found


def test_search_compares_as_the_models_files_say(by_similarity):
    corpus = ["the cat sat", "birds sang", "a dog ran on the mat", "Anna"]
    for similarity, model in by_similarity.items():
        query, documents = model.encode_query("cat"), model.encode_document(corpus)
        assert np.ptp(np.linalg.norm(documents, axis=1)) > 1e-3
        scores = documents @ query
        if similarity == "cosine":
            scores /= np.linalg.norm(documents, axis=1) * np.linalg.norm(query)
        for given in (corpus, documents):
            found = model.search("cat", given)
            assert [one["index"] for one in found] == np.argsort(-scores).tolist()
            np.testing.assert_allclose([o["score"] for o in found], np.sort(scores)[::-1], 1e-4)


def test_an_index_of_cosines_takes_vectors_of_any_length(by_similarity):
    pytest.importorskip("faiss", reason="the extra `search`", exc_type=ImportError)
    corpus, model = ["the cat sat", "birds sang", "Anna"], by_similarity["cosine"]
    exact = [one["index"] for one in model.search("cat", corpus)]
    vectors = model.encode_document(corpus)
    for kind in ("float16", "int8"):
        index = model.index(vectors, kind=kind)
        found = model.search("cat", index, probes=9, vectors=vectors)
        assert [one["index"] for one in found] == exact and found[0]["score"] <= 1 + 1e-3
    with pytest.raises(UserError, match="is not of unit length"):
        by_similarity["dot"].index(corpus)


def test_prompts_are_those_of_the_files(by_similarity):
    model = by_similarity["dot"]
    plain = model.encode("cat", prompt="")
    np.testing.assert_array_equal(model.encode("cat"), model.encode("a cat", prompt=""))
    np.testing.assert_array_equal(model.encode_query("cat"), plain)
    np.testing.assert_array_equal(model.encode_document("cat"), model.encode("the cat", prompt=""))


def test_an_encoder_in_a_folder_of_its_own(by_similarity, tmp_path):
    """As sentence-transformers wrote it before version 2; what pools lies beside it."""
    model = by_similarity["dot"]
    inside = tmp_path / "old" / "0_Transformer"
    shutil.copytree(model.folder, inside)
    for name in ("modules.json", "1_Pooling", "config_sentence_transformers.json"):
        (inside / name).rename(inside.parent / name)
    modules = json.loads((inside.parent / "modules.json").read_text())
    modules[0]["path"] = inside.name
    (inside.parent / "modules.json").write_text(json.dumps(modules))
    old = distilflax.load(inside.parent)
    assert (old.fingerprint, old.max_length, old.folder) == (model.fingerprint, 16, inside)
    np.testing.assert_array_equal(old.encode_query("cat"), model.encode_query("cat"))
    assert not old.by_cosine


def test_a_short_length_is_for_files_to_say_alone(by_similarity, tmp_path):
    folder = shutil.copytree(by_similarity["dot"].folder, tmp_path / "short")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    short = distilflax.load(folder)
    np.testing.assert_allclose(
        short.encode(["cat sat dog", "cat"], prompt=""),
        by_similarity["dot"].encode(["cat sat", "cat"], prompt=""),
        atol=1e-5,
    )
    with pytest.raises(UserError, match=r"max_length is 4; .* takes from 8 to 32 tokens"):
        distilflax.load(folder, max_length=4)


def test_a_length_that_is_asked_for_counts_for_more_than_the_files(by_similarity):
    model, text = by_similarity["dot"], "cat dog " * 12
    longer = distilflax.load(model.path, max_length=32)
    assert (model.max_length, longer.max_length) == (16, 32)
    assert np.abs(model.encode(text) - longer.encode(text)).max() > 1e-4


def test_texts_come_in_whatever_holds_them(loaded):
    texts = ["the cat sat", "birds sang"]
    encode, search = loaded["none"].encode, loaded["none"].search
    for given in (tuple(texts), np.array(texts), iter(texts)):
        np.testing.assert_array_equal(encode(given), encode(texts))
    for given in (iter(texts), np.array(texts)):
        assert search("cat", given) == search("cat", texts)
    assert [one["text"] for one in search("cat", "a dog")] == ["a dog"]
    with pytest.raises(UserError, match=r"shape \(2, 3\) and .* vectors of 16 coordinates"):
        search("cat", np.zeros((2, 3), np.float32))


def test_odd_lengths_do_not_compile_anew(models_by_kind):
    model = distilflax.load(models_by_kind["sequence"])
    for number in range(1, 20):
        model.classify(["cat " * (number + i) for i in range(number)])
    # Lengths 16, 24 and 32, by 1, 8 and 32 rows, at most.
    assert model.compiled <= 9


def test_threads_get_their_own_answers(loaded):
    texts = [f"{'cat ' * n}birds" for n in range(1, 9)]
    expected = [loaded["sequence"].classify(text)["score"] for text in texts]
    found = [None] * len(texts)

    def work(i):
        found[i] = [loaded["sequence"].classify(texts[i])["score"] for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores, wanted in zip(found, expected, strict=True):
        assert scores == [wanted] * 5


def test_models_of_every_kind_can_be_copied(loaded):
    for model in loaded.values():
        again = copy.copy(model)
        assert (again.task, again.head, again.path) == (model.task, model.head, model.path)


def test_a_pickle_is_where_the_model_came_from(models_by_kind, tmp_path, monkeypatch):
    shutil.copytree(models_by_kind["none"], tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    model = distilflax.load("model", max_length=12)
    monkeypatch.chdir("/")
    pickled = pickle.dumps(model)
    assert len(pickled) < 1000
    for again in (pickle.loads(pickled), copy.deepcopy(model)):
        assert (again.fingerprint, again.max_length) == (model.fingerprint, 12)
        assert np.array_equal(again.encode("the cat"), model.encode("the cat"))
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(models_by_kind["sequence"], tmp_path / "model")
    with pytest.raises(UserError, match="holds another model now than the one that was pickled"):
        pickle.loads(pickled)


def test_pairs_need_their_second_text(loaded):
    with pytest.raises(UserError, match="was fine-tuned on pairs"):
        loaded["pairs"].classify("a cat")
    assert "label" in loaded["pairs"].classify("a cat", "a dog")
    with pytest.raises(UserError, match="1 texts and 2 second ones"):
        loaded["pairs"].classify(["a"], ["b", "c"])


def test_a_folder_that_others_wrote_into_is_checked(models_by_kind, tmp_path):
    for own, sentence in (
        ({"threshold": "high"}, "threshold must be float"),
        ({"treshold": 0.5}, "treshold is not a setting"),
        ({"max_length": 99}, "max_length is 99"),
    ):
        folder = tmp_path / sentence.split()[0]
        shutil.copytree(models_by_kind["sequence"], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"distilflax": own}))
        with pytest.raises(UserError, match=sentence):
            distilflax.load(folder)


@pytest.mark.parity
def test_predictions_are_those_of_transformers(loaded, models_by_kind):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    texts = ["the cat sat", "birds sang while a dog ran on the mat .", "Paris"]
    options = {"device": "cpu"}
    pipe = transformers.pipeline("text-classification", str(models_by_kind["sequence"]), **options)
    for ours, theirs in zip(loaded["sequence"].classify(texts), pipe(texts), strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
    (theirs,) = pipe([{"text": "a cat", "text_pair": "a dog"}])
    ours = loaded["pairs"].classify("a cat", "a dog")
    assert ours["label"] == theirs["label"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)

    folder = str(models_by_kind["token"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    words = [["the", "cat", "sangmat"], ["Paris", "!"]]
    for given, ours in zip(words, loaded["token"].tag(words), strict=True):
        batch = tokenizer(given, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            chosen = model(**batch).logits[0].argmax(-1)
        of_word = batch.word_ids()
        first = [of_word.index(i) for i in range(len(given))]
        assert ours["tags"] == [model.config.id2label[int(chosen[i])] for i in first]

    folder = str(models_by_kind["answer"])
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    question, context = "where does Anna live?", "Anna sat in Paris while birds sang"
    batch = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = batch.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        out = model(**batch)
    start, end = out.start_logits[0], out.end_logits[0]
    inside = [i for i, part in enumerate(batch.sequence_ids()) if part == 1]
    scores = {(i, j): float(start[i] + end[j]) for i in inside for j in inside if i <= j}
    i, j = max(scores, key=scores.get)
    found = loaded["answer"].answer(question, context)
    assert (found["start"], found["end"]) == (offsets[i][0], offsets[j][1])
    none = float(start[0] + end[0])
    assert found["no_answer"] == pytest.approx(none - scores[i, j], abs=1e-4)


def test_search_takes_an_index_of_its_own_vectors(loaded, tmp_path):
    pytest.importorskip("faiss", reason="the extra `search`", exc_type=ImportError)
    model, corpus = loaded["none"], ["the cat sat", "birds sang", "a dog ran on the mat"]
    folder = search.index.save(model.index(corpus), tmp_path / "index")
    kept = search.index.load(folder, encoder=model.fingerprint)
    found = model.search(corpus[1], kept, k=9, probes=9)
    assert [one["index"] for one in found] == [
        one["index"] for one in model.search(corpus[1], corpus)
    ]
    assert found[0]["index"] == 1 and "text" not in found[0]
    # A head does not change the vectors; other weights do.
    assert loaded["sequence"].fingerprint == model.fingerprint
    cased = shutil.copytree(model.folder, tmp_path / "cased")
    config = json.loads((cased / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (cased / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="another model"):
        distilflax.load(cased).search("cat", kept)
    with pytest.raises(UserError, match="another model"):
        model.search("cat", search.index.build(model.encode(corpus), encoder="0" * 64))


def test_no_index_without_its_library(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"faiss, which is not installed; pip install"):
        loaded["none"].index(["the cat sat"])
