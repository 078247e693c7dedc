"""The model before its first step."""

import json

import pytest

from distilflax import weights
from distilflax.tasks import finetune
from distilflax.tasks.data import prepare


@pytest.mark.parametrize("keep_head", [False, True])
def test_a_head_drops_what_the_folder_says(settings_of, model_folder, write, tmp_path, keep_head):
    folder = write("t.csv", "text,label\na cat,good\na dog,bad\n").parent
    data = {"train": "t.csv", "dev": "t.csv"}

    def start(path, keep_head=False):
        model = {"path": str(path), "keep_head": keep_head}
        run = settings_of("classification", folder, data=data, model=model)
        return finetune.starting_model(run, prepare(run, lambda _: None))

    encoder, head, params = start(model_folder)
    assert head.dropout == 0.0  # as that encoder
    path = tmp_path / "m"
    weights.save(path, encoder, params, tokenizer_folder=model_folder, head=head)
    config = json.loads((path / "config.json").read_text()) | {"classifier_dropout": 0.35}
    (path / "config.json").write_text(json.dumps(config))
    assert start(path, keep_head).head.dropout == 0.35
