"""Files as people have them: every format read, every mistake one sentence."""

import gzip

import pytest

from distilflax.errors import UserError
from distilflax.tasks import records
from distilflax.tasks.records import Faults


def read(path, faults=None):
    return [record.values for record in records.read(path, faults or Faults())]


def test_every_format_gives_the_same_records(write):
    expected = [{"text": 'a "quoted" film', "label": "1"}, {"text": "b", "label": "0"}]
    tsv = 'text\tlabel\na "quoted" film\t1\n\nb\t0\n'
    assert read(write("a.tsv", tsv)) == expected
    assert read(write("b.tsv", "\ufeff" + tsv.replace("\n", "\r\n"))) == expected
    assert read(write("c.tsv.gz", gzip.compress(tsv.encode()))) == expected
    assert read(write("d.csv", 'text,label\n"a ""quoted"" film",1\nb,0\n')) == expected
    assert read(write("e.jsonl", expected)) == expected
    assert read(write("f.json", expected)) == expected
    array = '[{"text": "a \\"quoted\\" film", "label": "1"}, {"text": "b", "label": "0"}]'
    assert read(write("g.json", array)) == expected


def test_only_line_feeds_end_lines(write):
    odd = "a\x0bb\x0cc\x1dd\x85e\u2028f\u2029g\rh"
    found = read(write("a.tsv", f"text\tlabel\n{odd}\t1\n"))
    assert found == [{"text": odd, "label": "1"}]


def test_a_line_of_megabytes_is_a_line(write):
    long = "word " * 1_000_000
    assert read(write("a.tsv", f"text\tlabel\n{long}\t1\n"))[0]["text"] == long
    assert read(write("a.csv", f"text,label\n{long},1\n"))[0]["text"] == long


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.tsv", "", r"a\.tsv is empty"),
        ("a.tsv", "text\tlabel\n", r"a\.tsv has no records"),
        ("a.tsv", "text\tlabel\nx\n", r"a\.tsv line 2 has 1 columns .* names 2 \(text, label\)"),
        ("a.tsv", "text\ttext\nx\ty\n", r"two columns alike"),
        ("a.csv", 'text,label\n"x,1\n', r"a\.csv line \d: .*quote left open"),
        ("a.jsonl", '{"a": 1}\n{"a":\n', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl line 1 is not a JSON object"),
        ("a.tsv", b"text\tlabel\n\xff\t1\n", r"line 2 is not UTF-8 \(byte 0xff\)"),
        ("a.docx", "x", r"'\.docx' is no format; choose from \.tsv"),
    ],
)
def test_mistakes_name_the_file_and_the_line(write, name, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read(write(name, content))


def test_a_missing_column_says_which_are_there(write):
    path = write("a.tsv", "sentence\tlabel\nx\t1\n")
    record = next(records.read(path, Faults()))
    with pytest.raises(UserError, match=r"line 2 has no column 'sentense'.*sentence, label.*mean"):
        records.text(record, "sentense", "text")


def test_faults_are_counted_where_that_was_asked_for(write):
    faults = Faults(skip=True)
    found = read(write("a.tsv", "text\tlabel\nx\nb\t0\ny\n"), faults)
    assert found == [{"text": "b", "label": "0"}]
    assert faults.count == 2 and "2 faulty records" in faults.summary()
    assert "line 2" in faults.summary()


def test_blank_lines_between_records_are_counted(write):
    for name, content in (
        ("a.tsv", "text\tlabel\nx\t0\n\n\ny\t1\n\n"),
        ("a.csv", "text,label\nx,0\n\n\ny,1\n\n"),
        ("a.jsonl", '{"text": "x"}\n\n \n{"text": "y"}\n\n'),
    ):
        faults = Faults()
        assert [values["text"] for values in read(write(name, content), faults)] == ["x", "y"]
        assert len(faults.notes) == 1 and faults.notes[0].startswith("2 blank lines of")


def test_half_a_surrogate_pair_becomes_one_character():
    assert len(records.whole("a\ud83db")) == 3
    records.whole("a\ud83db").encode()


def test_files_are_found_in_their_folder(write, tmp_path):
    write("train.tsv", "x")
    assert records.paths(tmp_path, "train.tsv") == [tmp_path / "train.tsv"]
    with pytest.raises(UserError, match=r"no file 'trian.tsv'; .*did you mean 'train.tsv'"):
        records.paths(tmp_path, "trian.tsv")
    with pytest.raises(UserError, match="There is no folder"):
        records.paths(tmp_path / "nowhere", "train.tsv")
