"""`python -m experiments.mine`: queries divided once and for all, and negatives that are none."""

import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax import models, settings, weights
from distilflax.errors import UserError
from distilflax.search import division
from distilflax.search.collection import read_beir
from distilflax.text import tokenizer

SUBJECTS = ("cat", "dog", "sea", "rain", "wing", "heat", "wind", "film", "tower", "river")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny encoder and a BEIR folder with judgements of one split."""
    folder = tmp_path_factory.mktemp("mine")
    words = tokenizer.train(lambda: [" ".join(SUBJECTS)] * 3, folder / "words", 90, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=24,
        max_positions=32,
    )
    params = models.init(encoder, jax.random.key(0))
    weights.save(folder / "model", encoder, params, tokenizer_folder=folder / "words")
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    texts = {"corpus": "a {0} {0} {0}", "queries": "{0}"}
    for name, text in texts.items():
        lines = [{"_id": str(i), "text": text.format(s)} for i, s in enumerate(SUBJECTS)]
        lines += [{"_id": "empty", "title": "", "text": " "}] if name == "corpus" else []
        (beir / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    # As Cranfield has it: judged to be an answer, and without a word.
    judged = [f"{i}\t{name}\t1" for i in range(len(SUBJECTS)) for name in (i, "empty")]
    (beir / "qrels" / "test.tsv").write_text("\n".join(judged))
    return folder


def test_numbers_are_ids_too_and_a_part_without_a_query_is_refused(tmp_path):
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": i, "text": subject} for i, subject in enumerate(SUBJECTS)]
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(f"{i}\t{i}\t1" for i in range(10)))
    said = []
    how = division.Division(shares=(0.4, 0.3, 0.3), margin=-3.0)
    division.write(tmp_path, tmp_path / "out", Lengths(), how, said.append)
    assert "10 texts" in said[0] and len(read_beir(tmp_path / "out", "dev").queries) > 0
    # However long the vectors are, what is measured on is not made easier.
    dev = (tmp_path / "out" / "dev.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["negative"]) == how.negatives for line in dev)
    how = division.Division(shares=(0.999998, 1e-6, 1e-6))
    with pytest.raises(UserError, match=r"Of the 10 queries of .* above 0 falls to dev"):
        division.write(tmp_path, tmp_path / "no", Lengths(), how, said.append)


@pytest.mark.parametrize(
    ("judged", "sentence"),
    [
        ({"train": "0\t0\t1", "dev": "1\tnone\t1"}, "dev.tsv judges nothing above 0 that is there"),
        ({"train": "0\t0\t1", "dev": "1\t1\t0"}, "dev.tsv has no judgement above 0"),
        # Of an undivided folder "cat" falls to train, "dog" to test, and to dev "wind", unanswered.
        ({"test": "0\t0\t1\n1\t1\t1\n6\t6\t0"}, "none with a judgement above 0 falls to dev"),
        ({"test": "0\t0\t1\n1\t1\t1\n6\tnone\t1"}, "none with a judgement above 0 falls to dev"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(tmp_path, judged, sentence):
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": i, "text": subject} for i, subject in enumerate(SUBJECTS)]
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for part, lines in judged.items():
        (tmp_path / "qrels" / f"{part}.tsv").write_text(lines)
    said = []
    with pytest.raises(UserError, match=sentence) as told:
        division.write(tmp_path, tmp_path / "out", Lengths(), division.Division(), said.append)
    # Nor is a file named that is gone by now.
    assert not any(" texts" in text for text in said) and "saving" not in str(told.value)


def test_a_query_s_own_document_is_no_candidate(tmp_path):
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": i, "title": "On", "text": subject} for i, subject in enumerate(SUBJECTS)]
    # A text that is left out, so that all others have new numbers.
    rows.insert(0, {"_id": "empty", "text": ""})
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": i, "text": subject} for i, subject in enumerate(SUBJECTS)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for part, first in (("train", 0), ("dev", 5)):
        rows = [f"{i}\t{(i + 1) % 10}\t1" for i in range(first, first + 5)]
        (tmp_path / "qrels" / f"{part}.tsv").write_text("\n".join(rows))
    how = division.Division(negatives=10, margin=-100.0)
    division.write(tmp_path, tmp_path / "out", Lengths(), how, lambda text: None)
    for part in ("train", "dev"):
        for line in (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines():
            one = json.loads(line)
            assert len(one["negative"]) == 8 and f"On {one['query']}" not in one["negative"]


def test_every_part_is_mined_from_its_own_corpus(tmp_path):
    """As hubs publish them, and mteb reads them."""
    for name in ("corpus", "queries", "qrels"):
        (tmp_path / name).mkdir()
    for part, subjects in (("train", SUBJECTS), ("dev", SUBJECTS[:4])):
        ids = [f"{part}{i}" for i in range(len(subjects))]
        texts = {"corpus": [f"{part} {s}" for s in subjects], "queries": subjects}
        for name, of_part in texts.items():
            table = pa.table({"_id": ids, "text": of_part})
            pq.write_table(table, tmp_path / name / f"{part}-00000-of-00001.parquet")
        same = pa.table({name: ids for name in ("query-id", "corpus-id")})
        pq.write_table(same, tmp_path / "qrels" / f"{part}-00000-of-00001.parquet")
    how = division.Division(margin=-100.0)
    division.write(tmp_path, tmp_path / "out", Lengths(), how, lambda text: None)
    lines = (tmp_path / "out" / "dev.jsonl").read_text().splitlines()
    # The longest vector, the last document of its own corpus, is the nearest.
    assert [json.loads(line)["negative"][0] for line in lines] == ["dev rain"] * 3 + ["dev sea"]


def test_an_unjudged_copy_of_an_answer_is_no_negative(tmp_path):
    (tmp_path / "qrels").mkdir()
    texts = ["about wings", "of flaps", "of heat", "of flaps"][::-1]
    rows = [{"_id": i, "text": text} for i, text in enumerate(texts)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": i, "text": f"{i} of wings"} for i in range(2)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i, part in enumerate(("train", "dev")):
        (tmp_path / "qrels" / f"{part}.tsv").write_text(f"{i}\t3\t1\n{i}\t2\t1")
    division.write(tmp_path, tmp_path / "out", Lengths(), division.Division(), lambda text: None)
    for part in ("train", "dev"):
        lines = (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines()
        assert lines and all(json.loads(line)["negative"] == ["of heat"] for line in lines)


@pytest.mark.parametrize("parts", [("train", "dev"), ("test",)])
def test_what_is_judged_and_missing_is_said_and_not_mined(tmp_path, parts):
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": i, "text": subject} for i, subject in enumerate(SUBJECTS)]
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for part in parts:
        # The last query has no other answer.
        rows = [f"{i}\t{i}\t1" for i in range(9)] + ["0\tnone\t1", "9\tnone\t1", "nobody\t1\t1"]
        (tmp_path / "qrels" / f"{part}.tsv").write_text("\n".join(rows))
    said = []
    how = division.Division(shares=(0.4, 0.3, 0.3), margin=-3.0)
    division.write(tmp_path, tmp_path / "out", Lengths(), how, said.append)
    for part in parts:
        assert any(f"{part}: 1 judged documents are not in the corpus" in text for text in said)
        assert any(f"{part}: 1 judged queries are not among the queries" in text for text in said)
    assert said[-1].endswith("its positive less -3.0")  # whatever was told of the parts
    for part in ("train", "dev"):
        for line in (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines():
            one = json.loads(line)
            assert one["query"] in one["positive"] and one["query"] != SUBJECTS[9]
    # What is measured by a search counts it still.
    folds = [part for part in division.PARTS if (tmp_path / "out/qrels" / f"{part}.tsv").is_file()]
    assert sum(len(read_beir(tmp_path / "out", part).missing) for part in folds) >= len(parts)


def test_a_folder_of_parquet_is_divided_as_it_is(tmp_path):
    texts = pa.table({"_id": list(map(str, range(10))), "text": SUBJECTS})
    for name in ("corpus", "queries"):
        (tmp_path / name).mkdir()
        pq.write_table(texts, tmp_path / name / "test-00000-of-00001.parquet")
    (tmp_path / "qrels").mkdir()
    same = pa.table({name: list(map(str, range(10))) for name in ("query-id", "corpus-id")})
    pq.write_table(same, tmp_path / "qrels" / "test-00000-of-00001.parquet")
    how = division.Division(shares=(0.4, 0.3, 0.3), margin=-3.0)
    division.write(tmp_path, tmp_path / "out", Lengths(), how, lambda text: None)
    found = [
        query for part in division.PARTS for query in read_beir(tmp_path / "out", part).queries
    ]
    assert sorted(found) == sorted(SUBJECTS)


class Lengths:
    """Makes vectors that are compared by inner product, each longer than the one before."""

    def encode_query(self, texts):
        return np.ones((len(texts), 4), np.float32)

    def encode_document(self, texts):
        return np.arange(1, len(texts) + 1, dtype=np.float32)[:, None] * np.ones(4, np.float32)

    def to_compare(self, vectors):
        return vectors


@pytest.mark.slow
def test_a_folder_is_divided_and_mined(files, several):
    given = [f"--beir={files / 'beir'}", f"--model={files / 'model'}", "--margin=-2"]
    given.append("--shares=0.4,0.3,0.3")
    out = files / "out"
    done, again, wrong = several(
        "mine",
        [
            [*given, f"--output={out}", "--negatives=2"],
            [*given, f"--output={out}"],
            [*given, f"--output={files / 'x'}", "--shares=1,2,3"],
        ],
    )
    assert done.returncode == 0, done.stderr
    parts = {part: read_beir(out, part).queries for part in ("train", "dev", "test")}
    assert sorted(query for queries in parts.values() for query in queries) == sorted(SUBJECTS)
    for part in ("train", "dev"):
        found = [json.loads(line) for line in (out / f"{part}.jsonl").read_text().splitlines()]
        assert [one["query"] for one in found] == list(parts[part])
        for one in found:
            positive = f"a {one['query']} {one['query']} {one['query']}"
            assert positive in one["positive"] and positive not in one["negative"]
            assert len(one["negative"]) == 2
        assert all(all([*one["negative"], *one["positive"]]) for one in found)
    assert "train: 1 documents without a word are neither positive nor negative" in done.stderr
    assert again.returncode == 2 and "is there already" in again.stderr
    assert wrong.returncode == 2 and "three numbers above 0 that make 1" in wrong.stderr
    assert not (files / "x").exists()
