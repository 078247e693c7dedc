"""Commands that hold us against torch: whole runs and single steps of `beside_transformers` and
`time_tuning`, of `time_step`, and answers of `time_predict`; on tiny models, and no timing."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import optax
import pytest

from configs import cranfield, subjqa
from distilflax import models, settings, weights
from distilflax.tasks import batches, data, finetune
from distilflax.tasks.settings import from_values
from distilflax.tasks.step import make_step
from distilflax.text import tokenizer
from distilflax.train.state import State
from experiments import beside_transformers, torch_tuning

NAME = "beside_transformers"
GOOD = ["very good film", "good film", "film was good", "good good"]
BAD = ["very bad film", "bad film", "film was bad", "bad bad"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    words = tokenizer.train(lambda: GOOD + BAD, folder / "words", 90, min_frequency=1)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24}
    sizes |= {"dropout": 0.0, "attention_dropout": 0.0}  # compiled in half the time
    encoder = settings.Encoder(vocab_size=words.vocab_size, max_positions=32, **sizes)
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    return weights.save(folder / "model", encoder, params, tokenizer_folder=folder / "words")


def labelled():
    """Texts with a label each."""
    rows = [f"{text}\t{name}" for name, texts in (("n", BAD), ("y", GOOD)) for text in texts * 4]
    return "\n".join(["sentence\tlabel", *rows]) + "\n"


def tagged():
    """The same with a tag for each word: every film, and how it was, is an entity of its kind."""
    tags = {"film": "B-thing", "good": "B-how", "bad": "B-how"}
    texts = [text.split() for text in (GOOD + BAD) * 4]
    return "\n".join(
        "".join(f"{word}\t{tags.get(word, 'O')}\n" for word in words) for words in texts
    )


def alike():
    """Pairs: two good ones or two bad ones are alike."""
    rows = [
        f"{first}\t{second}\t{5 * (others is GOOD)}"
        for first, others in itertools.product(GOOD, (GOOD, BAD))
        for second in others
    ]
    return "\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n"


def asked():
    """Queries with a text that answers and one that does not; each is asked four times, so that
    batches of eight without a text twice are all of them."""
    rows = [
        {"query": good, "positive": f"{good} {good}", "negative": f"{bad} very"}
        for good, bad in zip(GOOD + BAD, BAD + GOOD, strict=True)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows * 4)


# Of time_predict.
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "birds", "sang")
PEERS = {
    "BertForSequenceClassification": "transformers.pipeline",
    "BertModel": "sentence-transformers",
    "pooled": "sentence-transformers",
}
# Of the others.
ROWS, STEPS = 32, 120
TASKS = (
    ("sst2", "train.tsv", labelled, "accuracy", 16),
    ("wnut17", "train.conll", tagged, "f1", 16),
    ("stsb_vectors", "train.tsv", alike, "pearson", 16),
    ("cranfield", "train.jsonl", asked, "ndcg@10", 8),
)


def learning(folder, model):
    """Command lines of whole runs, and one that is refused."""
    lines = []
    for config, name, content, _, batch_size in TASKS:
        place, epochs = folder / config, STEPS * batch_size / ROWS
        place.mkdir()
        (place / name).write_text(content())
        lines.append(
            [
                f"--config=configs/{config}.py:runlocal",
                f"--data={place}",
                *(f"--config.data.{part}={name}" for part in ("train", "dev", "test")),
                f"--workdir={place / 'w'}",
                f"--config.model.path={model}",
                "--config.optimizer.learning_rate=0.01",
                f"--config.training.batch_size={batch_size}",
                f"--config.training.epochs={epochs}",
                f"--config.training.evaluate_epochs={epochs}",
            ]
        )
    # What is kept of the other side is of this config and of no other, which is told before ours,
    # whose folder is of another config too, is looked at.
    changed = [one for one in lines[0] if "learning_rate" not in one]
    return [*lines, [*changed, "--config.training.epochs=1.0"]]


def tuning(folder, model):
    """Command lines of steps of two tasks, and one that is refused."""
    lines = []
    for config, name, content, _, batch_size in (TASKS[0], TASKS[3]):
        (folder / name).write_text(content())
        lines.append(
            [
                f"--config=configs/{config}.py:runlocal",
                f"--data={folder}",
                *(f"--config.data.{part}={name}" for part in ("train", "dev", "test")),
                f"--config.model.path={model}",
                f"--config.training.batch_size={batch_size}",
                "--rounds=3",
                f"--output={folder / config}.json",
            ]
        )
    return [*lines, [*lines[0], "--config.distillation.teacher=t"]]


def steps(folder):
    """The command line of steps of distillation."""
    given = ["--layers=2", "--width=64", "--words=1000", "--batch=2", "--length=16", "--rounds=3"]
    return [[*given, "--dropout=0", f"--output={folder / 'step.json'}"]]


def predicting(folder):
    """Command lines of `PEERS`: models with random weights, of which "pooled" is a BertModel whose
    sentence-transformers files name mean pooling and no unit length."""
    import sentence_transformers
    import transformers

    lines, texts = [], folder / "texts.txt"
    texts.write_text("the cat sat\nbirds sang while the cat sat\n" * 6)
    for name in PEERS:
        path = folder / name
        config = transformers.BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        cls = getattr(transformers, "BertModel" if name == "pooled" else name)
        cls(config).save_pretrained(path)
        (path / "vocab.txt").write_text("\n".join(WORDS))
        vocabulary = {word: number for number, word in enumerate(WORDS)}
        transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(path)
        if name == "pooled":
            sentence_transformers.SentenceTransformer(str(path), device="cpu").save(str(path))
        given = (f"--texts={texts}", "--rounds=3", "--batch=4", f"--output={path}.json")
        lines.append([f"--model={path}", *given])
    return lines


@pytest.fixture(scope="module")
def ended(tmp_path_factory, model, in_turn):
    """(their folder, by name what every command that holds us against torch says of its lines).

    All in one process: to import torch, and what is built on it, takes as long as one of them does.
    """
    for package in ("torch", "transformers", "sentence_transformers"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("ended")
    lines = {NAME: learning(folder, model), "time_tuning": tuning(folder, model)}
    lines |= {"time_step": steps(folder), "time_predict": predicting(folder)}
    found = iter(in_turn([(name, *given) for name, of in lines.items() for given in of]))
    return folder, {name: [next(found) for _ in of] for name, of in lines.items()}


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_learn_easy_tasks(ended):
    folder, answers = ended
    *runs, wrong = answers[NAME]
    for done, (config, _, _, metric, _) in zip(runs, TASKS, strict=True):
        assert done.returncode == 0, done.stderr
        sides = json.loads((folder / config / "w" / "beside.json").read_text())["runs"]
        for (found,) in sides.values():
            assert found["steps"] == STEPS and found["test"][metric] >= 0.9
    assert wrong.returncode == 2 and "seed0.json is of another config" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parity
def test_steps_of_both_sides_take_turns(ended):
    folder, answers = ended
    *timed, wrong = answers["time_tuning"]
    for done, (config, *_, rows) in zip(timed, (TASKS[0], TASKS[3]), strict=True):
        assert done.returncode == 0, done.stderr
        found = json.loads((folder / f"{config}.json").read_text())
        ours, theirs = (np.array(found["seconds"][side]) for side in ("distilflax", "torch"))
        assert len(ours) == len(theirs) == 3 and (ours > 0).all()
        assert found["ratio"]["value"] == pytest.approx(theirs.sum() / ours.sum())
        assert 1 <= found["programs"]["compiled"] <= found["programs"]["of_an_epoch"]
        assert found["rows"] == rows * (3 if config == "cranfield" else 1)
    assert wrong.returncode == 2 and "nothing like config.distillation.teacher" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parity
def test_both_steps_of_distillation_find_the_same_terms(ended):
    folder, answers = ended
    (found,) = answers["time_step"]
    assert found.returncode == 0, found.stderr
    out = json.loads((folder / "step.json").read_text())
    assert set(out["differences"]) == {"kl", "mlm", "cosine"}
    assert max(out["differences"].values()) < 1e-4
    assert out["ratios"]["distilflax"]["value"] == 1.0
    assert {name: len(seconds) for name, seconds in out["seconds"].items()} == {
        "distilflax": 3,
        "torch": 3,
    }


@pytest.mark.slow
@pytest.mark.parity
def test_both_give_the_same_answers(ended):
    folder, answers = ended
    for (name, peer), found in zip(PEERS.items(), answers["time_predict"], strict=True):
        assert found.returncode == 0, found.stderr
        out = json.loads((folder / f"{name}.json").read_text())
        assert out["peer"] == peer and out["largest_difference"] < 1e-4
        assert {how: one["texts"] for how, one in out["measured"].items()} == {
            "one at a time": 12,
            "by 4": 12,
        }


def prepared(config, model, path, content):
    path.write_text(content)
    values = config.get_config().to_dict()
    values["model"]["path"] = str(model)
    values["data"] |= {"folder": str(path.parent), "max_length": 16, "buckets": (16,)}
    values["data"] |= dict.fromkeys(("train", "dev", "test"), path.name)
    run = from_values(values)
    return run, data.prepare(run, lambda text: None)


@pytest.mark.parity
def test_an_answer_that_stands_whole_in_no_row_is_learned_on_neither_side(tmp_path, model):
    pytest.importorskip("transformers")
    contexts = {name: "film was very good " * 6 for name in ("short", "long")}
    given = [
        {
            "context": context,
            "qas": [
                {
                    "id": name,
                    "question": f"was {name}",
                    "answers": [{"text": context[: 8 if name == "short" else 80].strip()}],
                }
            ],
        }
        for name, context in contexts.items()
    ]
    for paragraph in given:
        paragraph["qas"][0]["answers"][0]["answer_start"] = 0
    content = json.dumps({"data": [{"paragraphs": given}]})
    run, materials = prepared(subjqa, model, tmp_path / "a.json", content)
    features = materials.train.features
    side = torch_tuning._side(run, materials)[1]
    side.model.eval()
    rows = [[[i] for i in range(len(features.ids)) if features.owner[i] == n] for n in (0, 1)]
    known = [row for row in rows[0] if features.targets["start"][row[0]] >= 0]
    learned, both, none = (
        side.loss(np.array(groups)).item() for groups in (known, known + rows[1], rows[1])
    )
    assert features.unlearned == 1 and rows[1]
    assert learned > 0 and both == pytest.approx(learned, rel=1e-5) and none == 0


@pytest.mark.parity
def test_a_batch_has_one_loss_and_gradient_on_both_sides(tmp_path, model):
    """At rest: with the dropout of either they would differ by what is drawn."""
    pytest.importorskip("sentence_transformers")
    run, materials = prepared(cranfield, model, tmp_path / "a.jsonl", asked())
    side = torch_tuning._side(run, materials)[1]
    groups = next(side.drawn(torch_tuning._groups(run, materials), 8, 0))
    side.model.eval()
    theirs = side.loss(groups)
    theirs.backward()
    squares = [float(p.grad.square().sum()) for p in side.model.parameters() if p.grad is not None]

    start = finetune.starting_model(run, materials)
    encoder = dataclasses.replace(start.encoder, dropout=0.0, attention_dropout=0.0)
    still = optax.sgd(0.0)
    step = make_step(run, materials.task, encoder, start.head, still)
    batch = batches.collate_groups(
        materials.train.features, groups, 8, 16, buckets=(16,), with_types=True
    )
    current = State(jax.numpy.int32(0), start.params, still.init(start.params))
    _, ours = step(current, batch, jax.random.key(0))
    assert float(ours["loss"]) == pytest.approx(theirs.item(), rel=1e-5)
    assert float(ours["grad_norm"]) == pytest.approx(sum(squares) ** 0.5, rel=1e-4)


def test_the_seconds_of_a_whole_run_that_was_taken_up_again_are_not_known(tmp_path, monkeypatch):
    one = {"seconds": 2.0, "rows_per_second": 5.0, "dev": {"f1": 0.5}, "test": {"f1": 0.25}}
    monkeypatch.setattr(beside_transformers, "finetune", lambda *_: finetune.Outcome(one))
    monkeypatch.setattr(beside_transformers, "teaching_of", lambda *_: None)
    found = beside_transformers._ours(None, None, tmp_path)  # The folder is there already.
    assert found == one | {"whole_seconds": None}
    known = one | {"whole_seconds": 3.0}
    runs = {"ours": [found] * 2, "partly": [known, found, known], "theirs": [known] * 2}
    table = beside_transformers.table(runs, "f1")
    assert [row[4] for row in table.rows] == ["\u2013", "3 [3, 3]", "3 [3, 3]"]


def test_what_the_other_side_does_not_have_is_refused(tmp_path, several, model):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text(labelled())
    (tmp_path / "few.jsonl").write_text(asked() + '{"query": "a", "positive": "b"}\n')
    given = [f"--data={tmp_path}", f"--workdir={tmp_path / 'w'}"]
    lines = [
        ["--config=configs/cranfield_rerank.py", *given],
        ["--config=configs/sst2.py", f"--config.distillation.teacher={tmp_path}", *given],
        [
            "--config=configs/sst2.py",
            "--config.options.balanced=True",
            f"--config.model.path={model}",
            *given,
        ],
        ["--config=configs/sst2.py", "--config.model.int8_range=portable", *given],
        ["--config=configs/sst2.py", "--config.training.mode=probe", *given],
        ["--config=configs/sst2.py", "--config.training.seeds=3", *given],
        ["--config=configs/sst2.py", "--config.intermediate.losses.cosine.weight=1", *given],
        [
            "--config=configs/cranfield.py:runlocal",
            *(f"--config.data.{part}=few.jsonl" for part in ("train", "dev", "test")),
            f"--config.model.path={model}",
            *given,
        ],
    ]
    sentences = (
        "give a config of those",
        "nothing like config.distillation.teacher",
        "nothing like config.options.balanced",
        "nothing like config.model.int8_range",
        "nothing like config.training.mode=probe",
        "config.training.seeds is 3, and is not looked at here",
        "nothing like config.intermediate.losses",
        "fewer negatives than others, which the other side cannot leave out",
    )
    for wrong, sentence in zip(several(NAME, lines), sentences, strict=True):
        assert wrong.returncode == 2 and sentence in wrong.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))  # nothing was trained
