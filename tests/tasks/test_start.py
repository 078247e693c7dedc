"""The model before its first step."""

import json
from dataclasses import replace

import pytest

from distilflax import weights
from distilflax.errors import UserError
from distilflax.tasks import finetune
from distilflax.tasks.data import prepare
from distilflax.tasks.retrieval import Retrieval


def test_neither_text_of_a_pair_asks():
    own = weights.SentenceFiles(prompts={"query": "who ", "passage": "the ", "alike": "say "})
    pairs = Retrieval(loss_name="cosent")
    for files, prompt in ((own, ""), (replace(own, default_prompt="alike"), "say ")):
        found = pairs.of_model(files)
        assert found.query_prompt == found.document_prompt == prompt
        # What was saved puts the same before every text, asked or not.
        assert found.sentence(16).prompt() == prompt
    asked = Retrieval().of_model(own)
    assert (asked.query_prompt, asked.document_prompt) == ("who ", "the ")
    assert asked.sentence(16).prompt() == ""
    named = replace(pairs, query_prompt="a ").of_model(own)
    assert (named.query_prompt, named.document_prompt) == ("a ", "")


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
    with pytest.raises(UserError, match=r"keep_head is set, and .* has no head; leave it out"):
        start(model_folder, keep_head=True)
    path = tmp_path / "m"
    weights.save(path, encoder, params, tokenizer_folder=model_folder, head=head)
    config = json.loads((path / "config.json").read_text()) | {"classifier_dropout": 0.35}
    (path / "config.json").write_text(json.dumps(config))
    assert start(path, keep_head).head.dropout == 0.35
