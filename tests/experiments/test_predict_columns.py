"""What `python -m experiments.predict` reads is what the flags name, or it says why not."""

import json
from pathlib import Path

import pytest
from absl.testing import flagsaver

from distilflax.errors import UserError
from experiments import pipe, predict
from experiments.items import Passed


def written(path, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return {"input": str(path)}


@pytest.mark.parametrize("name", ["a.txt", "a.log", "a"])
@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("sequence", {"header": ["n", "text"]}),
        ("sequence", {"text_column": "body"}),
        ("sequence", {"text_column": "text"}),
        ("sequence", {"pair_column": "b"}),
        ("token", {"words_column": "w"}),
        (None, {"text_column": "body"}),
    ],
)
def test_a_column_of_lines_that_are_texts_is_refused(run, tmp_path, name, kind, flag):
    given = written(tmp_path / name, "1;a b c", "2;d")
    sentence = rf"^--{next(iter(flag))} is not heard of \S+/{name} with a text a line; give --form"
    for form in ("", "text"):
        with pytest.raises(UserError, match=f"{sentence}.*--delimiter if it is a table"):
            run(kind, **given, **flag, format=form)


@pytest.mark.parametrize("flag", [{"header": ["a"]}, {"delimiter": ";"}, {"quoting": "csv"}])
def test_json_lines_are_no_table(run, tmp_path, flag):
    given = written(tmp_path / "a.jsonl", {"text": "ab"})
    with pytest.raises(UserError, match=rf"^--{next(iter(flag))} is not heard of JSON objects, wh"):
        run("sequence", **given, **flag)


def test_nor_has_a_pipe_of_texts_columns(run):
    for kind, name in (("sequence", "text"), ("answer", "text"), ("token", "words")):
        sentence = rf"^--{name}_column is not heard of a pipe .* --format=jsonl if .* as --input\.$"
        with pytest.raises(UserError, match=sentence):
            run(kind, "a b\n", **{f"{name}_column": "body"})
    found = run("sequence", '{"body": "ab"}\n', text_column="body", format="jsonl")[0]
    assert found[0]["label"] == "ba"


@pytest.mark.parametrize(
    "flag", [{"text_column": "b"}, {"words_column": "b"}, {"header": ["a"]}, {"delimiter": ";"}]
)
def test_columns_of_words_have_no_names(run, tmp_path, flag):
    given = written(tmp_path / "a.txt", "Anna\tO", "ran\tO")
    name = next(iter(flag))
    with pytest.raises(UserError, match=rf"^--{name} is not heard of columns, a word a line"):
        run("token", **given, **flag, format="conll")
    if name != "delimiter":
        with pytest.raises(UserError, match=rf"^--{name} is .*; give --delimiter and no --format"):
            run("token", **given, **flag)


def test_ready_made_words_are_for_taggers(run):
    with pytest.raises(UserError, match=r"^--words_column is for a model that tags words; m la"):
        run("sequence", text=["x"], words_column="w")
    with pytest.raises(UserError, match=r"^--text_column and --words_column exclude each other"):
        run("token", "{}\n", format="jsonl", words_column="w", text_column="b")


QUESTION = {"id": "1", "question": "q", "context": "C", "text": "the answer", "body": "B"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_question_is_about_the_column_that_is_named(run, tmp_path, name):
    rows = [QUESTION]
    if name == "a.json":
        rows = [[QUESTION]]
    elif name == "a.csv":
        rows = [",".join(QUESTION), ",".join(QUESTION.values())]
    given = written(tmp_path / name, *rows)
    assert run("answer", **given)[0][0]["answer"] == "qC"
    for column, answer in (("body", "qB"), ("text", "qt"), ("context", "qC")):
        assert run("answer", **given, text_column=column)[0][0]["answer"] == answer
    with pytest.raises(UserError, match=r"has no column 'bdy' \(--text_column\); .* mean 'body'"):
        run("answer", **given, text_column="bdy")


def test_a_question_is_about_the_text_where_there_is_no_context(run):
    found = run("answer", '{"question": "q", "text": "T"}\n', format="jsonl")[0]
    assert found[0]["answer"] == "qT"
    with pytest.raises(UserError, match=r"line 1 has no column 'context' \(--text_column\)"):
        run("answer", '{"question": "q", "body": "T"}\n', format="jsonl")


def test_the_column_that_is_named_is_tagged(run, tmp_path):
    given = written(tmp_path / "a.jsonl", {"tokens": ["a b", "c"], "text": "d e", "w": ["f g"]})
    tags = lambda **flags: run("token", **given, **flags)[0][0]["tags"]  # noqa: E731
    assert tags() == ["a b", "c"]
    assert tags(text_column="text") == ["d", "e"]
    assert tags(words_column="w") == ["f g"]
    for flag in ("text_column", "words_column"):
        with pytest.raises(UserError, match=rf"line 1 has no column 'tokns' \(--{flag}\)"):
            tags(**{flag: "tokns"})
    # Words of a cell are those that a tagger learns from such a table.
    given = written(tmp_path / "a.csv", "tokens,n", "what's up,1")
    assert tags() == ["what's", "up"]
    given = written(tmp_path / "a.csv", "tokens,n", "\"['Anna', 'ran']\",1")
    assert tags() == ["Anna", "ran"]
    given = written(tmp_path / "a.jsonl", {"tokens": 3})
    with pytest.raises(UserError, match=r"'tokens' should be a list of texts, .* --text_column"):
        tags()


def test_quotes_are_read_as_in_training(run, tmp_path):
    given = written(tmp_path / "a.csv", "text", '"he said ""no"" x"', '"5 inches" wide')
    texts = lambda **flags: [one["text"] for one in run("sequence", **given, **flags)[0]]  # noqa: E731
    assert texts(quoting="none") == ['"he said ""no"" x"', '"5 inches" wide']


@pytest.mark.parametrize("kind", ["sequence", "token", None])
def test_json_lines_are_not_taken_for_texts(run, tmp_path, kind):
    lines = '\n{"text": "a b"}\n{"text": "c"}\n'
    (tmp_path / "a.txt").write_text(lines)
    both = "line 2 is a JSON object; add --format=jsonl .*, or --format=text to take each line as"
    for skip in (False, True):
        with pytest.raises(UserError, match=f"^standard input {both}"):
            run(kind, lines, skip_faulty=skip)
        with pytest.raises(UserError, match=rf"a\.txt {both}"):
            run(kind, input=str(tmp_path / "a.txt"), skip_faulty=skip)


def test_what_is_said_to_be_text_is(run):
    assert len(run("sequence", '{"text": "ab"}\n', format="text")[0]) == 1
    for text in ("{a} b", "[1]", '"a"', "3", "null", '{"a": 1} b'):
        assert run("sequence", f'{text}\n{{"a": 1}}\n')[0][0]["text"] == text


def test_a_line_is_answered_before_the_next_is_there(run, monkeypatch):
    def lines(odd):
        yield "standard input line 1", "a"
        raise AssertionError("was read ahead")

    monkeypatch.setattr(pipe, "lines", lines)
    with flagsaver.flagsaver(model="m"):
        record = next(predict._records(Path("-"), Passed(skip=False)))
    assert record.values == {"line": 1, "text": "a"}
