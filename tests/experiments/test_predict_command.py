"""`python -m experiments.predict`: lines in, JSON lines out, in order, whatever stands in them."""

import decimal
import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl.testing import flagsaver

from distilflax.errors import UserError
from experiments import pipe, predict, progress

ROOT = Path(__file__).parents[2]


def test_lines_of_a_pipe_are_answered_in_order(run):
    lines = [f"line {i} 🎉" for i in range(1000)]
    found, _, model = run("sequence", "\n".join(lines))
    assert [one["label"][::-1] for one in found] == lines
    assert [one["line"] for one in found] == list(range(1, 1001))
    assert max(model.calls) <= predict.CHUNK


def test_blank_lines_are_counted_and_odd_ones_answered(run):
    found, err, _ = run("sequence", b"a\n\n  \r\na\x07\x00 b\n\xff\n" + b"x " * 999_999 + b"\nlast")
    assert [one["line"] for one in found] == [1, 4, 5, 6, 7]
    assert "2 blank lines were passed over\n" in err
    assert "1 lines were not UTF-8, and marks stand in the place of their bytes; convert" in err
    assert "UTF-8" not in run("sequence", "a mark that was there: \ufffd\n")[1]


# Reads a line, and ends with the status that it is given while a thread waits for the next one.
ENDS = """
import sys, time
from experiments import pipe

for _ in pipe.chunks(pipe.lines(pipe.Odd()), 1):
    time.sleep(0.1)
    sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", [0, 2])
def test_whoever_has_had_enough_does_not_wait_for_the_pipe(status):
    reader, writer = os.pipe()
    os.write(writer, b"a\n")
    try:
        ended = subprocess.run(
            [sys.executable, "-c", ENDS, str(status)],
            stdin=reader,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (status, b"")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ("ab\ncd\n".encode("utf-16"), "^standard input is in UTF-16; .*iconv -f utf-16"),
        ("ab\ncd\n".encode("utf-16-le"), r"^standard input line 1 is not text \(zero bytes"),
        (b"ab\rcd\r", "^standard input ends its lines with carriage returns alone"),
    ],
)
def test_a_pipe_in_another_encoding_is_refused(run, raw, sentence):
    with pytest.raises(UserError, match=sentence):
        run("sequence", raw)


def test_a_line_that_is_no_text_can_be_answered_with_its_error(run):
    found, err, _ = run("sequence", b"ab\n\0\0\0\0\ncd\n", skip_faulty=True)
    assert [one.get("label") for one in found] == ["ba", None, "dc"]
    assert found[1]["error"].startswith("standard input line 2 is not text")
    assert "1 faulty lines" in err


def test_an_endless_line_of_a_pipe_is_refused(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(b"a\n" + b"b" * 99)
    with (tmp_path / "a").open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        lines = pipe.lines(pipe.Odd(), longest=9)
        assert next(lines) == ("standard input line 1", "a")
        with pytest.raises(UserError, match="line 2 is not text"):
            next(lines)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_answers_are_utf_8_whatever_the_locale_says(run, monkeypatch, tmp_path, encoding):
    with (tmp_path / "out").open("w", encoding=encoding) as out:
        monkeypatch.setattr(sys, "stdout", out)
        run("sequence", text=["žs🎉"])
    assert json.loads((tmp_path / "out").read_bytes())["label"] == "🎉sž"


def test_texts_questions_and_words_are_given_by_flags_and_columns(run, tmp_path):
    assert run("sequence", text=["ab", "cd"])[0][1] == {"text": "cd", "label": "dc"}
    found = run("answer", question="who?", context="Anna")[0]
    assert found == [{"question": "who?", "answer": "who?A"}]
    assert run("answer", question="who?", context="Anna", n_best=True)[0][0]["n_best"] == [1]
    (tmp_path / "a.tsv").write_text("q\tsentence\nx\ta b\n")
    given = {"input": str(tmp_path / "a.tsv"), "text_column": "sentence"}
    assert run("token", **given)[0][0]["tags"] == ["a", "b"]
    (tmp_path / "a.jsonl").write_text('{"tokens": ["a b", "c"]}\n')
    assert run("token", input=str(tmp_path / "a.jsonl"))[0] == [{"line": 1, "tags": ["a b", "c"]}]
    squad = {"data": [{"paragraphs": [{"context": "C", "qas": [{"id": "1", "question": "q"}]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(squad))
    assert run("answer", input=str(tmp_path / "a.json"), text_column="context")[0]
    found = run("answer", input=str(tmp_path / "a.json"))[0]
    assert found == [{"id": "1", "question": "q", "answer": "qC"}]


def test_questions_of_mrqa_are_answered(run, tmp_path):
    text = {"context": "C", "qas": [{"qid": "1", "question": "q"}, {"qid": "2", "question": "p"}]}
    text["qas"][1]["detected_answers"] = []  # which are no matter where answers are asked for
    for lines in ([{"header": {"dataset": "x"}}, text], [text]):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        found, _, _ = run("answer", input=str(tmp_path / "a.jsonl"))
        assert [(one["id"], one["answer"]) for one in found] == [("1", "qC"), ("2", "pC")]


def test_what_a_file_holds_is_told_by_the_name_below_its_compression(run, tmp_path):
    for name, content in (
        ("a.tsv.gz", "q\ttext\nx\tab\n"),
        ("a.jsonl.gz", '{"text": "ab"}\n'),
        ("a.txt.gz", "ab\n"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content.encode()))
        found, _, _ = run("sequence", input=str(tmp_path / name))
        assert [one["label"] for one in found] == ["ba"], name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "-DOCSTART- -X- O\n\nAnna NNP B-per\nran VBD O\n\nA DT O\ndog NN O\n"),
        ("a.txt", "B-per\tAnna\nO\tran\n"),
        ("a.conllu", "# text = Anna ran\n1\tAnna\t_\t_\n2\tran\t_\t_\n\n"),
        ("a.bio", "Anna\nran\n"),
        ("a.txt", "Anna\nran\n\nA\ndog\n"),
    ],
)
def test_a_file_of_words_is_one_for_taggers(run, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    found, err, _ = run("token", input=str(tmp_path / name))
    assert "read as columns" in err
    words = ["B-per", "O"] if content.startswith("B-per") else ["Anna", "ran"]
    assert found[0]["tags"] == words
    texts, _, _ = run("token", input=str(tmp_path / name), format="text")
    assert len(texts) > len(found)


def test_prose_is_none(run, tmp_path):
    for content in (
        "Anna\tran\nthe dog\n",
        "Anna ran\n",
        "Anna ran\n\nA dog ran\n",
        "a b\n\nc d\n",
        "one\n\ntwo\n",
    ):
        (tmp_path / "a.txt").write_text(content)
        found, _, _ = run("token", input=str(tmp_path / "a.txt"))
        assert found[0]["tags"] == content.splitlines()[0].split()


def test_columns_are_of_files_and_for_taggers(run, tmp_path):
    for given in ({"format": "conll"}, {"delimiter": ";"}, {"header": ["text"]}):
        with pytest.raises(UserError, match="give a file as --input"):
            run("token", "Anna O\n", **given)
    (tmp_path / "a.txt").write_text("1\tAnna ran\n2\ta dog\n")
    given = {"input": str(tmp_path / "a.txt"), "delimiter": "tab", "header": ["n", "text"]}
    assert run("token", **given)[0][0]["tags"] == ["Anna", "ran"]
    with pytest.raises(UserError, match="--format=conll is for a model that tags words"):
        run("sequence", input=given["input"], format="conll")
    (tmp_path / "a.txt").write_text("Anna B-per\nran\n")  # of many widths, and asked for
    assert run("token", **{"input": given["input"], "format": "conll"})[0][0]["tags"] == [
        "Anna",
        "ran",
    ]


GERMEVAL = "#\thttp://a [2009]\n1\tAnna\tB-PER\tO\n2\tlebt\tO\tO\n3\t!\tO\tO\n"


def test_columns_are_written_as_the_flags_say(run, tmp_path):
    (tmp_path / "a.tsv").write_text(f"{GERMEVAL}\n{GERMEVAL}")
    given = {"input": str(tmp_path / "a.tsv"), "format": "conll"}
    found, err, _ = run("token", **given, word_column=1, comment="#")
    assert [one["tags"] for one in found] == [["Anna", "lebt", "!"]] * 2 and not err
    _, err, _ = run("token", **given)
    assert "do not, as --comment\n" in err and "config.options" not in err
    _, err, _ = run("token", **given, comment="#")
    assert "another, name it as --word_column\n" in err and "config.options" not in err
    (tmp_path / "b.txt").write_text("# id 7\tdomain=en\nAnna _ _ O\n# _ _ O\n")
    found, _, _ = run("token", input=str(tmp_path / "b.txt"), format="conll", comment="# id")
    assert found[0]["tags"] == ["Anna", "#"]
    (tmp_path / "b.txt").write_text("B-per\tAnna\nO\tran\n")
    _, err, _ = run("token", input=str(tmp_path / "b.txt"))
    assert "words' column as --word_column (of two" in err
    with pytest.raises(UserError, match=r"no word in column 2, from 0; .*\(--word_column says"):
        run("token", input=str(tmp_path / "b.txt"), word_column=2)


def test_words_in_the_rows_of_a_table_are_told_of(run, tmp_path):
    (tmp_path / "a.csv").write_text("id,Word\n1,fly\n1,home\n2,who\n")
    given = {"input": str(tmp_path / "a.csv"), "text_column": "Word"}
    assert "a.csv are of one word each, and were tagged alone; if" in run("token", **given)[1]
    assert not run("sequence", **given)[1]
    (tmp_path / "a.csv").write_text("id,Word\n1,fly home\n2,who\n")
    assert not run("token", **given)[1]


def test_tables_without_names_or_suffix(run, tmp_path):
    (tmp_path / "a.csv").write_text('3,"ab, c"\n')
    given = {"input": str(tmp_path / "a.csv"), "header": ["label", "text"]}
    assert run("sequence", **given)[0][0]["text"] == "ab, c"
    (tmp_path / "a.txt").write_text("x;y\nab;cd\n")
    given = {"input": str(tmp_path / "a.txt"), "delimiter": ";", "text_column": "y"}
    assert run("sequence", **given)[0][0]["label"] == "dc"


def test_what_identifies_a_row_may_be_of_any_type(run, tmp_path):
    rows = {"text": ["ab"], "id": [decimal.Decimal("1.5")]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert run("sequence", input=str(tmp_path / "a.parquet"))[0][0]["id"] == "1.5"


def test_what_identifies_a_row_may_be_no_number(run, tmp_path):
    line = '{"id": [NaN, {"a": -Infinity}, 1.5], "text": "ab"}\n'
    found, _, _ = run("sequence", f'{line}{{"id": NaN, "text": "c"}}\n', format="jsonl")
    assert [one["id"] for one in found] == [[None, {"a": None}, 1.5], None]
    rows = {"text": ["ab", "c"], "id": [float("inf"), 2.0]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    found, _, _ = run("sequence", input=str(tmp_path / "a.parquet"))
    assert [one["id"] for one in found] == [None, 2.0]


def test_who_has_no_home_is_answered_too(run, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert run("sequence", text=["ab"])[0][0]["label"] == "ba"


def test_questions_come_in_a_flat_list_too(run, tmp_path):
    rows = [{"id": "1", "question": "q", "context": "C"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = run("answer", input=str(tmp_path / "a.json"))[0]
    assert found == [{"id": "1", "question": "q", "answer": "qC"}]


def test_a_faulty_row_of_a_table_can_be_answered_with_its_error(run, tmp_path):
    (tmp_path / "b.csv").write_text('text,q\n"a,1\n"b",2\nc,3\n')
    found, _, _ = run("sequence", input=str(tmp_path / "b.csv"), skip_faulty=True)
    assert "lines 2 to 3 (2 lines)" in found[0]["error"] and found[1]["label"] == "c"
    (tmp_path / "a.csv").write_text("text,q\na,1\nb\nc,3\n")
    given = {"input": str(tmp_path / "a.csv")}
    found, err, _ = run("sequence", **given, skip_faulty=True)
    assert [one.get("label") for one in found] == ["a", None, "c"]
    assert "line 3 has 1 columns" in found[1]["error"] and "1 faulty lines" in err
    with pytest.raises(UserError, match="line 3 has 1 columns"):
        run("sequence", **given)


def test_lines_may_begin_with_a_mark_and_hold_halves_of_characters(run):
    line = '\ufeff{"id": "\\ud83d", "text": "ab"}\n'
    found, _, _ = run("sequence", line, format="jsonl")
    assert found == [{"line": 1, "id": "?", "text": "ab", "label": "ba"}]


def test_the_bar_leaves_the_answers_to_standard_output(run, monkeypatch):
    monkeypatch.setattr(progress, "LONG", 0.0)
    reader, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        found, _, _ = run("sequence", "a\n" * 600)
    os.close(reader)
    assert len(found) == 600


LINES = '{"text": "a"}\n{"txt": "b"}\n[3]\n{"text": "c"}\n'


def test_a_faulty_line_stops_after_those_before_it(run, capsys):
    with pytest.raises(UserError, match=r"standard input line 2 has no column 'text'.*line, txt"):
        run("sequence", LINES, format="jsonl")
    assert json.loads(capsys.readouterr().out)["label"] == "a"


def test_a_faulty_line_can_be_answered_with_its_error(run):
    found, err, _ = run("sequence", LINES, format="jsonl", skip_faulty=True)
    assert [one.get("label") for one in found] == ["a", None, None, "c"]
    assert "line 3 is not a JSON object" in found[2]["error"]
    assert "2 faulty lines" in err


def test_mistakes_are_one_sentence(run, tmp_path):
    for given, sentence in (
        ({"model": None}, "--model is missing"),
        ({"model": "m", "input": "nowhere.txt"}, "There is no file nowhere.txt"),
    ):
        with flagsaver.flagsaver(**given), pytest.raises(UserError, match=sentence):
            if given["model"]:
                run("sequence", **{k: v for k, v in given.items() if k != "model"})
            predict.run()
    (tmp_path / "pos").mkdir()
    for kind in ("sequence", "token", "answer"):
        with pytest.raises(UserError, match="pos is a folder; give a file in it as --input"):
            run(kind, input=str(tmp_path / "pos"))
    with pytest.raises(UserError, match="question is empty"):
        run("answer", text=["x"], question=" ")


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    (
        ("sequence", {"question": "Who?"}, "--question is for a model that answers questions; m l"),
        ("sequence", {"context": "Me."}, "--context is for a model that answers"),
        ("token", {"pair_column": "b"}, "--pair_column is for a model that labels texts; m tags"),
        (None, {"n_best": True}, "--n_best is for a model that answers questions; m makes vectors"),
        ("answer", {"text": ["x"], "context": "y"}, "--text and --context exclude each other"),
        ("answer", {"question": "who?", "context": ""}, "the context is empty; give it some text"),
        ("answer", {"question": "", "context": "y"}, "the question is empty; give it some text"),
        ("sequence", {"input": ""}, "--input is empty; give a file, or - for standard input"),
        ("sequence", {"text": ["x"], "input": "a.txt"}, "--text and --input exclude each other"),
        ("sequence", {"comment": "#"}, "--comment is for a model that tags words; m labels texts"),
        ("token", {"text": ["x"], "word_column": 1}, "--word_column is for columns, a word a line"),
        ("token", {"input": "a.jsonl", "comment": "#"}, "--comment is for columns, .* --format=co"),
        ("sequence", {"pair": "b", "text": ["x"]}, "m was fine-tuned on pairs; give --pair_column"),
        ("sequence", {"pair": "b", "text": ["x"], "pair_column": "b"}, "pairs; .* and as --input"),
        ("sequence", {"pair": "b", "input": "no.csv"}, "pairs; give --pair_column, the column of"),
    ),
)
def test_flags_that_would_not_be_heard_are_refused(run, kind, given, sentence):
    with pytest.raises(UserError, match=sentence):
        run(kind, **given)
