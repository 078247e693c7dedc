"""Files that were published without what is to be found in them: refused, with a way out."""

import pytest

from distilflax.errors import UserError
from distilflax.tasks.data import prepare

QUIET = lambda _: None  # noqa: E731


def test_a_part_whose_answers_are_all_hidden_is_refused(write, tmp_path, settings_of):
    """As AdversarialQA's test file has them: a score of 0 would be a result that is none."""
    asked = {"question": "Where?", "context": "Anna lives in Paris"}
    paris = {"text": ["Paris"], "answer_start": [14]}
    some = [[], [], paris]
    given = {"full": [paris], "some": some, "more": some, "other": some, "hidden": [[]] * 3}
    for name, answers in given.items():
        rows = [asked | {"id": str(i), "answers": found} for i, found in enumerate(answers)]
        write(f"{name}.jsonl", rows)
    parts = {"train": "full.jsonl", "dev": "some.jsonl", "test": "hidden.jsonl"}
    without = r"left with no examples; none of its 3 questions has an answer.* give a file that has"
    with pytest.raises(UserError, match=rf"data\.test is {without} them\. To do .*data\.test="):
        prepare(settings_of("answering", tmp_path, data=parts), QUIET)
    with pytest.raises(UserError, match=rf"data\.dev is {without} them\.$"):
        given = parts | {"dev": "hidden.jsonl"}
        prepare(settings_of("answering", tmp_path, data=given), QUIET)
    # Single ones are measured on, and said; where some are learned from, there is nothing to say.
    given = parts | {"test": "more.jsonl"}
    notes = prepare(settings_of("answering", tmp_path, data=given), QUIET).notes
    assert [note.split(",")[0] for note in notes] == [
        "dev: 2 questions have no answer",
        "test: 2 questions have no answer",
    ]
    given = parts | {"train": "more.jsonl", "test": "other.jsonl"}
    assert not prepare(settings_of("answering", tmp_path, data=given), QUIET).notes
    # Where none may be given a file that hides them has figures, and what they say is told.
    given = parts | {"train": "more.jsonl"}
    (note,) = prepare(settings_of("answering", tmp_path, data=given), QUIET).notes
    assert note.startswith("test: none of its 3 questions has an answer, and figures say only how")
    # Nothing is learned from a file that hides them, whatever is asked for.
    given = {"data": parts | {"train": "hidden.jsonl", "test": ""}}
    for options in ({}, {"unanswerable": True}):
        with pytest.raises(UserError, match=r"data\.train is left with .* so there is nothing to"):
            prepare(settings_of("answering", tmp_path, options=options, **given), QUIET)


def test_a_test_file_of_other_columns_may_be_done_without(tmp_path, settings_of):
    """As CoLA's: its other files have four columns and no header, and it has a header and two."""
    (tmp_path / "train.tsv").write_text("x\t1\t\tgood film\nx\t0\t*\tbad film\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tgood film\n")
    files = {"train": "train.tsv", "dev": "train.tsv", "test": "test.tsv"}
    options = {"header": ("source", "label", "mark", "text")}
    sentence = r"has 2 columns.* To do without: --config\.data\.test="
    for on_fault in ("error", "skip"):
        groups = {"data": files | {"on_fault": on_fault}, "options": options}
        with pytest.raises(UserError, match=sentence):
            prepare(settings_of("classification", tmp_path, **groups), QUIET)
