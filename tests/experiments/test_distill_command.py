"""What `python -m experiments.distill` is told on its command line, and what it answers.

Terms that do not fit their models have their sentences in tests/losses/test_terms.py.
"""

import re
from pathlib import Path

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
    (("losses.mlm.weight=heavy",), "could not convert string to float: 'heavy'"),
    (("masking.sequences=0.0",), "losses.mlm covers masked positions, but .*sequences is 0"),
    # A term that the config does not name is one of its terms as soon as the command line does.
    (("losses.cka.layers=0:9", "losses.cka.weight=1"), "cka.layers: the teacher has no layer 9"),
    (("losses.cka.weight=1", "training.accumulate=2"), "cka compares the sequences of a batch"),
]


def test_a_mistake_is_one_sentence(tmp_path, several):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(teacher=GOLDEN / "bert"))
    given = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    lines = [[*given, *(f"--config.{one}" for one in overrides)] for overrides, _ in MISTAKES]
    lines += [[f"--config={config}:smal", *given[1:]], [*given, "losses.kl.weight=1"]]
    messages = [message for _, message in MISTAKES]
    messages += ["'smal' changes nothing in .*config.py; its first", "is not a flag; values are"]
    for message, answer in zip(messages, several("distill", lines), strict=True):
        assert answer.returncode == 2, answer.stderr
        assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
        assert re.search(message, answer.stderr), answer.stderr
    assert not (tmp_path / "run").exists()
