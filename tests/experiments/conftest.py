"""Commands as a user calls them: in processes of their own, on one device; predict in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from absl.testing import flagsaver

ROOT = Path(__file__).parents[2]
FLAGS = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")

# Does what `python -m` does, for one command line after the other. The flags of several commands
# are not for one process: those of the last one are forgotten.
SEVERAL = """
import contextlib, functools, importlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from distilflax.train import throughput
from experiments import command

# As in the tests' own process.
throughput.matmul_peak = functools.partial(throughput.matmul_peak, 64)

lines, modules, of_none = sys.argv[1], {}, set(flags.FLAGS)
for name, *arguments in json.loads(lines):
    if name not in modules:
        for flag in set(flags.FLAGS) - of_none:
            delattr(flags.FLAGS, flag)
        modules[name] = importlib.import_module(name)
    sys.argv = [name, *arguments]  # where overrides of a config are looked for
    with (
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            command._parse(sys.argv)
            command._call(modules[name].run)
        except SystemExit as end:
            returncode = end.code
    found = {"returncode": returncode, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}
    print(json.dumps(found))
"""


def _start(*arguments, given=""):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": FLAGS},
        capture_output=True,
        text=True,
        input=given,
        check=False,
    )


@pytest.fixture(scope="session")
def command():
    """command("predict", "--model=m", given="standard input") -> the ended process."""

    def run(name, *arguments, given=""):
        return _start("-m", f"experiments.{name}", *map(str, arguments), given=given)

    return run


@pytest.fixture(scope="session")
def in_turn():
    """in_turn([("export", *arguments), ...]) -> for each what `command` says of it.

    All in one process: to start it takes longer than what most of them do. Where there are several
    commands, none is to come a second time after another one.
    """

    def run(lines):
        ends = 'if __name__ == "__main__":\n    command.main(run)\n'
        for name in {name for name, *_ in lines}:
            assert (ROOT / "experiments" / f"{name}.py").read_text().endswith(ends)
        lines = [[f"experiments.{name}", *map(str, given)] for name, *given in lines]
        done = _start("-c", SEVERAL, json.dumps(lines))
        assert done.returncode == 0, done.stderr
        return [SimpleNamespace(**json.loads(found)) for found in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="session")
def several(in_turn):
    """several("export", [arguments, arguments]) -> the same of one command."""
    return lambda name, lines: in_turn([(name, *arguments) for arguments in lines])


class Echo:
    """A model that says what it was given, and how many at a time."""

    def __init__(self, kind, pair=""):
        self.task = SimpleNamespace(kind=kind, pair=pair) if kind else None
        self.calls = []

    def classify(self, texts, pairs=None):
        self.calls.append(len(texts))
        return [{"label": text[::-1]} for text in texts]

    def tag(self, texts):
        return [{"tags": text if isinstance(text, list) else text.split()} for text in texts]

    def answer(self, questions, contexts):
        pairs = zip(questions, contexts, strict=True)
        return [{"answer": q + c[:1], "n_best": [1]} for q, c in pairs]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run("sequence", stdin="...", text=[...]) -> (JSON lines, errors, model) of predict."""
    from experiments import predict  # whose flags other commands have too

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["predict"])

    def call(kind, stdin="", pair="", **given):
        model = Echo(kind, pair)
        monkeypatch.setattr(predict.distilflax, "load", lambda path, max_length: model)
        monkeypatch.setattr(predict, "enable_compilation_cache", lambda folder: None)
        raw = stdin if isinstance(stdin, bytes) else stdin.encode()
        (tmp_path / "stdin").write_bytes(raw)
        with (tmp_path / "stdin").open() as piped, flagsaver.flagsaver(model="m", **given):
            monkeypatch.setattr(sys, "stdin", piped)
            status = predict.run()
        out, err = capsys.readouterr()
        assert status == 0
        return [json.loads(line) for line in out.splitlines()], err, model

    return call
