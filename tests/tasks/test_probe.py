"""Probes of what is not one label a text: words, and answers."""

import json

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.tasks.data import prepare
from distilflax.tasks.probe import probe
from distilflax.tasks.task import NOTHING

QUIET = lambda _: None  # noqa: E731


def test_words_and_spans_are_probed(settings_of, tmp_path):
    (tmp_path / "t.conll").write_text("Anna B-per\nlives O\nin O\nParis B-loc\n\n" * 4)
    run = settings_of("tagging", tmp_path, data={"train": "t.conll", "dev": "t.conll"})
    materials = prepare(run, QUIET)
    assert probe(run, materials)["dev"]["f1"] == 1.0
    tags = materials.train.features.targets["tag"]
    tags[:] = [np.where(row >= 0, 0, row) for row in tags]
    with pytest.raises(UserError, match="has the label 'O' alone"):
        probe(run, materials)
    contexts = ["Anna lives in Paris", "the cat sat on a mat", "Paris is where Anna lives"]
    asked = [
        {"id": str(i), "question": "who?", "context": context}
        | {"answers": [{"text": who, "answer_start": context.index(who)}]}
        for i, (context, who) in enumerate(zip(contexts, ["Anna", "cat", "Anna"], strict=True))
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, asked)))
    files = {"train": "q.jsonl", "dev": "q.jsonl", "test": "q.jsonl"}
    run = settings_of("answering", tmp_path, data=files)
    materials = prepare(run, QUIET)
    result = probe(run, materials)
    assert result["dev"]["f1"] == result["test"]["f1"] == 100.0
    # What no row holds whole is no answer to learn, wherever -100 may point.
    for name in ("start", "end"):
        materials.train.features.targets[name][:] = NOTHING
    with pytest.raises(UserError, match="No row of the training data holds its answer whole"):
        probe(run, materials)


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        ({"distillation": {"teacher": "t"}}, "distillation.teacher"),
        ({"intermediate": {"losses": {"cosine": {"weight": 1.0}}}}, "intermediate.losses"),
        ({"model": {"int8_range": "portable"}}, "model.int8_range"),
        ({"model": {"keep_head": True}}, "model.keep_head"),
    ],
)
def test_what_is_nothing_to_a_probe_is_refused(settings_of, tmp_path, groups, name):
    settings_of("tagging", tmp_path, **groups)
    with pytest.raises(UserError, match=f"'probe', to which config.{name} means nothing; leave"):
        settings_of("tagging", tmp_path, training={"mode": "probe"}, **groups)
