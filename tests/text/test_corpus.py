import dataclasses
import json
import os
import random
import resource
import shutil
import threading

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.settings import Data
from distilflax.text import corpus, sources

WORDS = "the a cat dog sat ran on under mat house red blue unknown cats walking"


def lines(count, seed=0, longest=30):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS.split(), k=draw.randint(3, longest))) for _ in range(count)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{line}\n" for line in lines(400)))
    return Data(sources=str(path), cache=str(tmp_path / "cache"), max_length=24)


def rewrite(data, texts):
    with open(data.sources, "w") as file:
        file.writelines(f"{text}\n" for text in texts)


def contents(prepared):
    return [[ids.tolist() for ids in part] for part in (prepared.train, prepared.validation)]


def folders(data):
    return sorted(p.name for p in os.scandir(os.path.join(data.cache, "corpus")) if p.is_dir())


def test_sequences_are_the_text(data, small):
    prepared = corpus.prepare(data, small)
    words = sorted(
        w for part in contents(prepared) for ids in part for w in small.decode(ids).split()
    )
    assert words == sorted(w for line in lines(400) for w in line.split())
    for part in (prepared.train, prepared.validation):
        for ids in part:
            assert ids[0] == small.cls_id and ids[-1] == small.sep_id
            assert 3 <= len(ids) <= 24
            assert not small.special[ids[1:-1]].any()


def test_token_counts_are_those_of_training(data, small):
    prepared = corpus.prepare(data, small)
    flat = np.concatenate(list(prepared.train))
    assert prepared.token_counts.dtype == np.int64
    assert (prepared.token_counts == np.bincount(flat, minlength=small.vocab_size)).all()


def test_a_second_call_reads_nothing(data, small, monkeypatch):
    first = corpus.prepare(data, small)
    monkeypatch.setattr(sources.File, "documents", lambda *_: pytest.fail("read again"))
    again = corpus.prepare(data, small)
    assert again.folder == first.folder and again.fingerprint == first.fingerprint
    assert contents(again) == contents(first)


def test_no_document_is_in_both_splits_and_adding_documents_moves_none(data, small):
    before = set(corpus.prepare(data, small).validation_documents)
    assert 0.01 < len(before) / 400 < 0.12
    rewrite(data, [*lines(300, seed=1), *lines(400)[::-1]])
    after = set(corpus.prepare(data, small).validation_documents)
    assert before == {text for text in after if text in set(lines(400))}
    assert len(after) > len(before)


def test_paragraphs_of_a_document_share_a_sequence_and_documents_do_not(small, tmp_path):
    texts = ["the cat sat\n\nthe dog ran\n\n \n\na mat", "the house", "red " * 30]
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    data = Data(sources=str(tmp_path / "a.jsonl"), cache=str(tmp_path), max_length=16)
    data = dataclasses.replace(data, validation_fraction=0.0)
    prepared = corpus.prepare(data, small)
    assert [small.decode(ids) for ids in prepared.train] == [
        "the cat sat the dog ran a mat",
        "the house",
        " ".join(["red"] * 14),
        " ".join(["red"] * 14),
        "red red",
    ]
    assert len(prepared.validation) == len(prepared.validation_documents) == 0


def test_packed_keeps_the_same_passages_apart(data, small):
    apart = corpus.prepare(dataclasses.replace(data, max_length=64), small)
    packed = corpus.prepare(dataclasses.replace(data, max_length=64, layout="packed"), small)
    assert len(packed.train) < len(apart.train) / 2
    passages = []
    for index, ids in enumerate(packed.train):
        segments = packed.train.segments(index)
        assert len(ids) <= 64 and segments[0] == 1
        passages += [ids[segments == s].tolist() for s in range(1, segments[-1] + 1)]
    assert sorted(passages) == sorted(contents(apart)[0])
    assert packed.train.lengths.mean() > 0.9 * 64


def test_text_that_names_control_tokens_does_not_become_them(data, small):
    rewrite(data, ["the [MASK] sat [SEP] on [CLS] the [PAD] mat"] * 3)
    prepared = corpus.prepare(dataclasses.replace(data, validation_fraction=0.0), small)
    for ids in prepared.train:
        assert not np.isin(
            ids[1:-1], [small.mask_id, small.sep_id, small.cls_id, small.pad_id]
        ).any()
    decoded = [small.fast.id_to_token(i) for i in prepared.train[0]]
    assert decoded[1:5] == ["the", "[", "mask", "]"]


def test_short_sequences_are_dropped(data, small):
    everything = corpus.prepare(data, small)
    long = corpus.prepare(dataclasses.replace(data, min_tokens=12), small)
    assert contents(long)[0] == [ids for ids in contents(everything)[0] if len(ids) >= 12]


def test_max_documents_takes_the_first(data, small):
    few = corpus.prepare(dataclasses.replace(data, max_documents=7, validation_fraction=0.0), small)
    words = sum(len(small.decode(ids).split()) for ids in few.train)
    assert words == sum(len(line.split()) for line in lines(400)[:7])


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 25},
        {"min_tokens": 4},
        {"document_tokens": 9},
        {"layout": "packed"},
        {"passages": "paragraph"},
        {"validation_fraction": 0.1},
        {"max_documents": 300},
        {"column": "other"},
    ],
)
def test_every_setting_that_matters_changes_the_key_and_no_other_does(data, small, change):
    first = corpus.prepare(data, small)
    assert corpus.prepare(dataclasses.replace(data, **change), small).folder != first.folder
    same = dataclasses.replace(data, buckets=(32,))
    assert corpus.prepare(same, small).folder == first.folder


def test_the_fingerprint_is_that_of_the_content_wherever_it_lies(data, small, tmp_path):
    first = corpus.prepare(data, small)
    shutil.copy(data.sources, tmp_path / "moved.txt")
    moved = corpus.prepare(dataclasses.replace(data, sources=str(tmp_path / "moved.txt")), small)
    assert moved.folder != first.folder and moved.fingerprint == first.fingerprint
    rewrite(data, [*lines(399), "the cat"])
    assert corpus.prepare(data, small).fingerprint != first.fingerprint


@pytest.mark.parametrize("victim", ["train-00000.arrow", "documents-00000.arrow", "corpus.json"])
def test_a_corpus_truncated_since_yesterday_is_prepared_again(data, small, victim):
    first = corpus.prepare(data, small)
    expected = contents(first)
    path = first.folder / victim
    path.write_bytes(path.read_bytes()[:-9])
    again = corpus.prepare(data, small)
    assert contents(again) == expected and again.fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("victim", "place"),
    [
        ("train-00000.arrow", 8),
        ("train-00000.arrow", -400),
        ("validation-00000.arrow", 8),
        ("token_counts.npy", 2),
        ("token_counts.npy", -8),
    ],
)
def test_a_corpus_that_has_other_bytes_is_prepared_again(data, small, victim, place):
    first = corpus.prepare(data, small)
    expected, counts = contents(first), first.token_counts.copy()
    damaged = bytearray((first.folder / victim).read_bytes())
    damaged[place] ^= 0x20
    (first.folder / victim).write_bytes(damaged)
    again = corpus.prepare(data, small)
    assert contents(again) == expected and (again.token_counts == counts).all()


def test_an_interrupted_preparation_leaves_nothing(data, small, monkeypatch):
    def interrupted(self, column):
        yield from lines(50)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sources.File, "documents", interrupted)
        with pytest.raises(KeyboardInterrupt):
            corpus.prepare(data, small)
    assert folders(data) == []
    assert len(corpus.prepare(data, small).train) > 300


def test_what_a_killed_process_left_is_cleared_away(data, small):
    first = corpus.prepare(data, small)
    # As SIGKILL leaves it: everything but the manifest, under the temporary name.
    left = first.folder.with_suffix(".partial")
    first.folder.rename(left)
    (left / "corpus.json").unlink()
    (left / "train-00007.arrow").write_bytes(b"junk")
    again = corpus.prepare(data, small)
    assert contents(again) == contents(again) and folders(data) == [again.folder.name]
    assert not (again.folder / "train-00007.arrow").exists()


def test_two_that_prepare_at_once_do_the_work_once(data, small, monkeypatch, capsys):
    started, release = threading.Event(), threading.Event()
    original, reads = sources.File.documents, []

    def slow(self, column):
        reads.append(1)
        started.set()
        assert release.wait(20)
        yield from original(self, column)

    monkeypatch.setattr(sources.File, "documents", slow)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(corpus.prepare(data, small)))
        for _ in range(2)
    ]
    threads[0].start()
    assert started.wait(20)
    threads[1].start()
    while "waiting for it" not in capsys.readouterr().err:
        threads[1].join(0.01)
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(reads) == 1
    assert contents(results[0]) == contents(results[1])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(data, small):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=r"The disk is full under .*cache.*data\.cache"):
            corpus.prepare(data, small)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folders(data) == []
    assert len(corpus.prepare(data, small).train) > 300


def test_a_cache_that_cannot_be_made(data, small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/cache cannot be written to.*data\.cache"):
        corpus.prepare(dataclasses.replace(data, cache=str(tmp_path / "file" / "cache")), small)


@pytest.mark.parametrize(
    ("texts", "change", "message"),
    [
        ([], {}, "holds no text at all"),
        (["  "], {}, "holds no text at all"),
        (
            ["the cat sat"],
            {},
            "has 1 document and none was held out.*at least 60 different documents",
        ),
        (["the cat sat"] * 5, {}, "has 5 documents and none was held out"),
        (lines(300), {"min_tokens": 100}, "leaves nothing to train on: 300 documents gave no"),
    ],
)
def test_too_little_text(data, small, texts, change, message):
    rewrite(data, texts)
    with pytest.raises(UserError, match=message):
        corpus.prepare(dataclasses.replace(data, **change), small)
    assert folders(data) == []


def test_one_line_is_enough_to_train_without_validation(data, small):
    rewrite(data, ["the cat sat"])
    prepared = corpus.prepare(dataclasses.replace(data, validation_fraction=0.0), small)
    assert len(prepared.train) == 1


def test_held_out_is_a_fair_coin():
    drawn = [corpus.is_held_out(f"text {i}", 0.05) for i in range(20_000)]
    assert abs(np.mean(drawn) - 0.05) < 0.006
    assert not corpus.is_held_out("text", 0.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"passages": "document"}, ["the cat sat the dog ran on the mat"]),
        ({"passages": "title"}, ["the cat sat", "the dog ran on the mat"]),
        ({"passages": "paragraph"}, ["the cat sat", "the dog ran", "on the mat"]),
        ({"passages": "paragraph", "document_tokens": 5}, ["the cat sat", "the dog"]),
    ],
)
@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\n \t\n", "\n\n\n"])
def test_what_makes_a_passage(tmp_path, small, change, expected, blank):
    document = blank.join(("the cat sat", "the dog ran", "on the mat"))
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for _ in range(3)))
    data = Data(sources=str(path), cache=str(tmp_path), validation_fraction=0.0, **change)
    train = corpus.prepare(data, small).train
    assert [small.decode(ids) for ids in train] == expected * 3
