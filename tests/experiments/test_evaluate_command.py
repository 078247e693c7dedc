"""`python -m experiments.evaluate` as a user calls it: a process of its own, files on disk."""

import json

import jax
import pytest

from distilflax import models, settings, weights
from distilflax.models import TaskHead
from distilflax.text import tokenizer

MISTAKES = [
    (
        ["--model=m", "--stsb={files}/pairs.tsv", "--vectors=int4"],
        "did you mean 'int8'?",
    ),
    (
        ["--model={files}/one/model", "--stsb={files}/pairs.tsv", "--vectors=int8:17"],
        "--vectors=int8:17: vectors of {files}/one/model have 16 coordinates",
    ),
    (
        ["--model={files}/one/model", "--stsb={files}/pairs.tsv", "--json={files}"],
        "--json={files} is no file in a folder that is there",
    ),
    (
        ["--model={files}/one/model", "--stsb={files}/pairs.tsv", "--json={files}/none/out.json"],
        "--json={files}/none/out.json is no file in a folder that is there",
    ),
    ([], "Give at least one --model and one of --stsb, --beir, --documentation and --config"),
    (["--model=nowhere/to/be/found", "--stsb={files}/pairs.tsv"], "no folder nowhere/to/be"),
    (["--model={files}/one/model", "--stsb={files}/none.tsv"], "no file {files}/none.tsv"),
    (
        ["--model={files}/one/model", "--stsb={files}/pairs.tsv", "--max_length=64"],
        "--max_length is 64; {files}/one/model takes from 3 to 32 tokens",
    ),
    (
        ["--model={files}/one/model", "--config=configs/sst2.py", "--data={files}"],
        "{files} has no file 'test.tsv'; choose from",
    ),
    (["--model={files}/one/model", "--config=configs/sst2.py"], "--data is missing"),
    (
        ["--model=m", "--config=configs/sst2.py", "--max_length=32"],
        "--max_length is not heard by --config; give --config.data.max_length instead",
    ),
    (
        ["--model=m", "--config=configs/sst2.py", "--stsb={files}/pairs.tsv", "--batch_size=32"],
        "--batch_size is not heard by --config; give --config.training.batch_size instead",
    ),
    (
        ["--model=m", "--config=configs/sst2.py", "--vectors=int8"],
        "--vectors are forms of what --stsb, --beir and --documentation compare",
    ),
    (["--report={files}"], "There is no report {files}/report.json"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two saved models, a TSV of pairs and a BEIR folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    pairs = [("a cat sleeps", "a cat is asleep", 5), ("a dog", "the sea", 0), ("rain", "a rain", 4)]
    rows = ["sentence1\tsentence2\tscore", *("\t".join(map(str, pair)) for pair in pairs)]
    (folder / "pairs.tsv").write_text("\n".join(rows))
    for name in ("corpus", "queries"):
        records = [{"_id": str(i), "text": pair[name == "queries"]} for i, pair in enumerate(pairs)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("0\t0\t1\n1\t1\t1\n2\t2\t2\n2\tgone\t1\n")

    texts = [text for pair in pairs for text in pair[:2]]
    words = tokenizer.train(lambda: texts, folder / "words", 90, min_frequency=1)
    for name, layers in (("one", 2), ("two", 1)):
        encoder = settings.Encoder(
            vocab_size=words.vocab_size,
            hidden_size=16,
            num_layers=layers,
            num_heads=2,
            intermediate_size=24,
            max_positions=32,
        )
        weights.save(
            folder / name / "model",
            encoder,
            models.init(encoder, jax.random.key(layers)),
            tokenizer_folder=folder / "words",
        )
    return folder


@pytest.fixture(scope="module")
def cross(files):
    """A cross-encoder in a folder."""
    base = weights.load(files / "two" / "model")
    head = TaskHead("sequence", ("relevance",), "multi")
    encoder, params = weights.task_head.prepare(
        base.encoder, base.params, head.kind, jax.random.key(0)
    )
    params["task_head"] = models.init_head(head, encoder, jax.random.key(1))
    folder = files / "cross" / "model"
    return weights.save(folder, encoder, params, tokenizer_folder=files / "words", head=head)


FORMS = ("float32", "binary>int8:8")


@pytest.fixture(scope="module")
def told(files, cross, several):
    """What is said of models, `FORMS` and a cross-encoder, and of each of `MISTAKES`."""
    given = [
        *(f"--model={files / name / 'model'}" for name in ("one", "two")),
        *(f"--vectors={form}" for form in FORMS),
        f"--rerank={cross}",
        "--top=2",
        f"--stsb={files / 'pairs.tsv'}",
        f"--beir={files}",
        f"--json={files / 'out.json'}",
    ]
    wrong = [[part.format(files=files) for part in arguments] for arguments, _ in MISTAKES]
    return several("evaluate", [given, *wrong])


@pytest.mark.slow
def test_models_forms_and_a_cross_encoder_are_held_against_the_first(files, told):
    done, forms = told[0], FORMS
    assert done.returncode == 0, done.stderr
    record = json.loads((files / "out.json").read_text())
    assert [model["name"] for model in record["models"]] == ["one/model", "two/model"]
    assert [model["max_length"] for model in record["models"]] == [32, 32]
    rows = [
        [f"{name}/model {forms[0]} (64 bytes)", f"{name}/model {forms[1]} (9 bytes)"]
        for name in ("one", "two")
    ]
    sts, search = record["tasks"].values()
    assert sts["rows"] == [*rows[0], *rows[1]]
    rows = [[*own, f"{own[0][:9]}, 2 by cross/model"] for own in rows]
    assert search["rows"] == [*rows[0], *rows[1]]
    assert search["note"].startswith(
        "3 queries, 3 documents. 1 judged documents are not in the corpus"
    )
    for task in (sts, search):
        for first, *others in task["metrics"].values():
            assert len(others) == len(task["rows"]) - 1
            assert "retention" not in first
            assert all(f"{one['score']:,.4f}" in done.stdout for one in (first, *others))


@pytest.mark.slow
def test_mistakes_are_one_sentence(files, told):
    for done, (_, sentence) in zip(told[1:], MISTAKES, strict=True):
        assert done.returncode == 2
        assert sentence.format(files=files) in done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
