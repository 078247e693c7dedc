"""The notebook: text and notebook are one, and its cells run in order, at tiny parameters."""

import ast
import io
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from distilflax import models, settings, weights
from distilflax.text import tokenizer

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebooks" / "ablation.ipynb"
TEXT = NOTEBOOK.with_suffix(".py")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "while", "birds", "sang")


def cells(text):
    """(what stands behind `# %%`, source) of each cell."""
    parts = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    return [(head.strip(), body) for head, _, body in (part.partition("\n") for part in parts)]


def execute(source, namespace):
    """Runs a cell; what it would show: the value of its last line, if that is an expression."""
    statements = ast.parse(source).body
    last = statements.pop() if isinstance(statements[-1], ast.Expr) else None
    exec(compile(ast.Module(statements, []), str(TEXT), "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(TEXT), "eval"), namespace)


@pytest.fixture
def parameters(tmp_path):
    """A tiny teacher without a masked-LM head, and entries of a summary and a body."""
    rng = np.random.default_rng(0)

    def line():
        return " ".join(rng.choice(WORDS, rng.integers(4, 12)))

    entries = [f"{line()}\n\n{line()}\n\n{line()}" for _ in range(120)]
    lines = "\n".join(json.dumps({"text": entry}) for entry in entries)
    (tmp_path / "text.jsonl").write_text(lines + "\n")
    words = tokenizer.train(lambda: entries, tmp_path / "words", 64, min_frequency=1)
    encoder = settings.Encoder(
        vocab_size=words.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=16,
        pooler=False,
    )
    params = jax.device_get(models.init(encoder, jax.random.key(0)))
    weights.save(tmp_path / "teacher", encoder, params, tokenizer_folder=tmp_path / "words")
    return {
        "TEACHER": str(tmp_path / "teacher"),
        "TEXT": str(tmp_path / "text.jsonl"),
        "MAX_LENGTH": 16,
        "STEPS": 2,
        "SENTENCE": "the cat sat on a mat",
        "WORKDIR": str(tmp_path / "runs"),
        "CACHE": str(tmp_path / "cache"),
    }


def test_text_and_notebook_are_one():
    """After a change of one: make notebook (or `jupytext --update --to ipynb` by hand)."""
    jupytext = pytest.importorskip("jupytext")
    said, written = jupytext.read(TEXT), jupytext.read(NOTEBOOK)

    def shown(notebook):
        return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]

    assert shown(written) == shown(said)
    assert not any(cell.get("outputs") for cell in written.cells)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_it_runs_from_top_to_bottom(parameters):
    pytest.importorskip("IPython")
    figures = pytest.importorskip("matplotlib.figure")
    namespace, shown, replaced = {}, [], False
    for head, source in cells(TEXT.read_text(encoding="utf-8")):
        if head.startswith("[markdown]"):
            continue
        shown.append(execute(source, namespace))
        if "parameters" in head:
            assert parameters.keys() <= namespace.keys()
            namespace.update(parameters)
            replaced = True
    assert replaced
    drawn = [one for one in shown if isinstance(one, figures.Figure)]
    assert len(drawn) == 5
    for figure in drawn:
        figure.savefig(io.BytesIO())
        panels = [panel for panel in figure.get_axes() if panel.get_visible() and panel.axison]
        assert any(panel.get_xlabel() for panel in panels)
        assert any(panel.get_ylabel() or panel.get_yticklabels() for panel in panels)
    (table,) = (one.data for one in shown if hasattr(one, "data"))
    assert all(f"| {arm} |" in table for arm in ("full", "no_kl", "no_mlm", "no_cosine", "teacher"))
