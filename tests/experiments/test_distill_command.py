"""What `python -m experiments.distill` is told on its command line, and what it answers.

Terms that do not fit their models have their sentences in tests/losses/test_terms.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distilflax import models, settings, weights
from distilflax.text import tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"

CONFIG = """
from distilflax.settings import default_config, term

def get_config(variant=""):
    config = default_config()
    config.teacher.path = "{teacher}"
    config.student.num_layers = 1
    config.student.init = "random"
    config.data.max_length = 16
    config.losses.mlm = term(weight=1.0)
    if variant == "small":
        config.training.steps = 1
    return config
"""

MISTAKES = [
    (("losses.klx.weight=1",), "config.losses has no 'klx'; choose from kl, .* mean 'kl'?"),
    (("losses.mlm.wieght=1",), "config.losses.mlm has no 'wieght'; .* did you mean 'weight'?"),
    (("losses.kl.wieght=1",), "config.losses.kl has no 'wieght'; .* did you mean 'weight'?"),
    (("losses.mlm.weight.x=1",), "config.losses.mlm.weight is a value and has no 'x'"),
    (("trainig.steps=1",), "config has no 'trainig'; .* did you mean 'training'?"),
    (("losses.mlm.weight=heavy",), "losses.mlm.weight is 'heavy'; it must be a number"),
    (("training.steps=1.5",), "--config.training.steps is '1.5'; it must be a whole number"),
    (("training.profile=x",), "--config.training.profile is 'x'; it must be true or false"),
    (("masking.sequences=0.0",), "losses.mlm covers masked positions, but .*sequences is 0"),
    # A term that the config does not name is one of its terms as soon as the command line does.
    (("losses.cka.layers=0:9", "losses.cka.weight=1"), "cka.layers: the teacher has no layer 9"),
    (("losses.cka.weight=1", "training.accumulate=2"), "cka compares the sequences of a batch"),
]


WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "while", "birds", "sang")

TINY = """
from distilflax.settings import default_config, term

def get_config(variant=""):
    config = default_config()
    config.teacher.path = "{folder}/model"
    config.student.num_layers = 1
    config.student.dropout = config.student.attention_dropout = 0.0
    config.data.sources = "{folder}/text.txt"
    config.data.cache = "{folder}/cache"
    config.data.max_length = 16
    config.data.buckets = (16,)
    config.losses.cosine = term(weight=1.0)
    config.losses.mlm = term(weight=0.0)
    config.training.batch_size = 4
    config.training.steps = 2
    config.evaluation.latency_length = 16
    config.evaluation.latency_repeats = 3
    config.evaluation.retrieval_length = 16
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny teacher with its own head, a file of texts of one line, and a config."""
    folder = tmp_path_factory.mktemp("distill")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(4, 14))) for _ in range(100)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    words = tokenizer.train(lambda: lines, folder / "words", 64, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=16,
    )
    params = models.init(encoder, jax.random.key(0), mlm_head=True)
    weights.save(folder / "model", encoder, params, tokenizer_folder=folder / "words")
    (folder / "config.py").write_text(TINY.format(folder=folder))
    # An arm of the variant's name; without a variant there is no config.
    arms = TINY.format(folder=folder).replace('variant=""', "variant")
    arms = arms.replace("    return config", "    config.arms[variant] = {}\n    return config")
    (folder / "arms.py").write_text(arms)
    (folder / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "empty.py").write_text("")
    (folder / "plain.py").write_text("def get_config():\n    return {'seed': 1}\n")
    return folder


FILES = {
    "--config=configs/sst2.py": "--config describes a task; give it to experiments.finetune",
    "CONFIG --config.losses.cosine.weight=0": "no term of positive weight",
    "CONFIG --config.losses.cosine.weight=-1": "config.losses.cosine.weight is -1.0; it must be",
    "CONFIG --config.mesh.fsdp=3": "config.mesh: data=-1 fsdp=3 tensor=1 does not make up",
    "CONFIG --config.evaluation.latency_length=64": "latency_length is 64 but the teacher has 16",
    "CONFIG --config.student.num_layers=3": "num_layers is 3 but the teacher has 2 layers",
    "CONFIG --config.data.sources=FOLDER/absent.txt": "absent.txt' in data.sources is no file",
    "CONFIG --config.data.cache=FOLDER/text.txt": "text.txt cannot be written to",
    "CONFIG --workdir=FOLDER/text.txt": "text.txt: that is a file); choose another one",
    "CONFIG --workdir=": "--workdir is missing",
    "CONFIG --workdir=gs://bucket/run": "gs://bucket/run is an address, and this writes to folders",
    "--config=FOLDER/arms.py:teacher": "config.arms.teacher cannot be called so",
    "--config=FOLDER/arms.py:distilled": "config.arms.distilled cannot be called so",
    "--config=FOLDER/arms.py:a/b": "config.arms.a/b cannot be called so",
    "--config=FOLDER/absent.py": "absent.py is not a file that is there",
    "--config=FOLDER/broken.py": "broken.py cannot be run (ZeroDivisionError: division by zero, "
    "line 2)",
    "--config=FOLDER/syntax.py": "syntax.py cannot be run (SyntaxError: invalid syntax, line 1)",
    "--config=FOLDER/empty.py": "empty.py: it has no function get_config",
    "--config=FOLDER/plain.py": "get_config returns dict and not a ConfigDict",
    "--config.seed=1": "--config.seed is given without --config",
}


@pytest.fixture(scope="module")
def answers(folder, several):
    """What each wrong command line is told, all in one process: by its place in `MISTAKES`, by what
    stands in `FILES`, by what is wrong; None is the one without flags."""
    config = folder / "golden.py"
    config.write_text(CONFIG.format(teacher=GOLDEN / "bert"))
    given = [f"--config={config}", f"--workdir={folder / 'run'}"]
    lines = {n: [*given, *(f"--config.{o}" for o in one)] for n, (one, _) in enumerate(MISTAKES)}
    lines["variant"] = [f"--config={config}:smal", given[1]]
    lines["no flag"] = [*given, "losses.kl.weight=1"]
    lines["variants"] = ["--config=configs/demo.py:seeds,runlocl", given[1]]
    for mistake in FILES:
        line = mistake.replace("CONFIG", "--config=FOLDER/config.py")
        lines[mistake] = [given[1], *line.replace("FOLDER", str(folder)).split()]
    lines[None] = []
    found = dict(zip(lines, several("distill", lines.values()), strict=True))
    assert not (folder / "run").exists()
    return found


def test_a_mistake_is_one_sentence(answers):
    messages = dict(enumerate(message for _, message in MISTAKES))
    messages["variant"] = "'smal' changes nothing in .*golden.py; its first"
    messages["no flag"] = "is not a flag; values are"
    messages["variants"] = "'runlocl' changes nothing in configs/demo.py"
    for name, message in messages.items():
        answer = answers[name]
        assert answer.returncode == 2, answer.stderr
        assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
        assert re.search(message, answer.stderr), answer.stderr


def test_every_mistake_is_told_in_one_sentence(answers):
    for mistake, says in FILES.items():
        done = answers[mistake]
        said = done.stderr.splitlines()
        assert done.returncode == 2 and len(said) == 1, (mistake, done.stderr)
        assert said[0].startswith("error: ") and says in said[0], (mistake, said[0])


def test_a_command_without_flags_says_which_it_lacks(answers):
    done = answers[None]
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--config is missing" in done.stderr


@pytest.mark.slow
def test_texts_of_one_line_make_a_report_without_retrieval(folder, several):
    config = [f"--config={folder}/config.py", f"--workdir={folder}/lines"]
    first, other, again = several(
        "distill", [config, [*config, "--config.training.batch_size=2"], config]
    )
    assert first.returncode == 0, first.stderr
    assert "the report will have no retrieval" in first.stderr.splitlines()[0]
    report = json.loads((folder / "lines" / "report.json").read_text())
    assert [model["retrieval"] for model in report["models"]] == [None] * len(report["models"])
    assert report["models"][0]["masked_lm"]["positions"] > 0
    text = (folder / "lines" / "report.md").read_text()
    assert "No retrieval" in text and "| 1 cosine |" in text
    # Refused before the text is looked at, and nothing of the first run is lost.
    assert other.returncode == 2 and other.stderr.startswith("error: --workdir")
    assert "training.batch_size is 4 there and 2 here" in other.stderr
    assert again.returncode == 0, again.stderr


def test_help_that_nobody_reads_to_its_end_is_no_error():
    asked = [sys.executable, "-m", "experiments.distill", "--help"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(asked, **pipes, text=True) as started:
        started.stdout.close()
        assert started.stderr.read() == ""
    assert started.returncode == 141
