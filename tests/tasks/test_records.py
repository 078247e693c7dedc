"""Files as people have them: every format read, every mistake one sentence."""

import gzip
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax.errors import UserError
from distilflax.tasks import named_files, records
from distilflax.tasks.records import Faults


def read(path, faults=None):
    return [record.values for record in records.read(path, faults or Faults())]


def test_every_format_gives_the_same_records(write, tmp_path):
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
    pq.write_table(pa.Table.from_pylist(expected), tmp_path / "h.parquet")
    assert read(tmp_path / "h.parquet") == expected


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
        ("a.tsv", b"text\tlabel\n\xff\t1\n", r"line 2 is not UTF-8 \(byte 0xff at"),
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
    for long in ({"text": "x"}, {"y" * 1_000_000: "x"}):
        (record,) = records.read(write("a.jsonl", [long]), Faults())
        with pytest.raises(UserError, match=r"line 1 has no column 'xxx") as caught:
            records.text(record, "x" * 1_000_000, "text")
        assert len(str(caught.value)) < 1000


def test_faults_are_counted_where_that_was_asked_for(write):
    faults = Faults(skip=True)
    found = read(write("a.tsv", "text\tlabel\nx\nb\t0\ny\n"), faults)
    assert found == [{"text": "b", "label": "0"}]
    assert faults.count == 2 and "2 faulty records" in faults.summary()
    assert "line 2" in faults.summary()


def test_a_quote_that_is_left_open_in_one_row_is_a_fault_of_that_row(write):
    path = write("a.csv", 'text,label\n"a"b,1\nc,2\n')
    faults = Faults(skip=True)
    assert read(path, faults) == [{"text": "c", "label": "2"}]
    assert faults.count == 1 and "line 2" in faults.summary()
    with pytest.raises(UserError, match=r"a\.csv line 2: .*is a quote left open"):
        read(path)


def test_lines_that_an_open_quote_took_are_counted(write):
    path = write("a.csv", 'text,label\n"b,2\nc,3\n"d",4\n"e",5\n"f"f,6\n')
    faults = Faults(skip=True)
    assert read(path, faults) == [{"text": "e", "label": "5"}]
    assert faults.summary().startswith("4 faulty records were skipped; the first: ")
    assert "a.csv lines 2 to 4 (3 lines): " in faults.first and "quote left open" in faults.first
    path, faults = write("b.csv", 'text,label\n"b,2\nc,3\nd"\ne,5\n'), Faults(skip=True)
    assert read(path, faults) == [{"text": "e", "label": "5"}] and faults.count == 3
    assert "b.csv line 2 (and in quotes 2 lines after it) has 1 columns" in faults.first


def test_a_carriage_return_in_a_cell_needs_quotes(write):
    assert read(write("a.csv", 'text\n"a\rb"\n')) == [{"text": "a\rb"}]
    with pytest.raises(UserError, match=r"line 2: a cell holds a carriage return; put the cell in"):
        read(write("a.csv", "text,label\na\rb,1\n"))


def test_an_open_quote_that_swallows_the_rest_is_never_passed_over(write):
    path = write("b.csv", 'text,label\na,1\n"b,2\nc,3\nd,4\n')
    with pytest.raises(UserError, match=r"unexpected end of data; is a quote left open"):
        read(path, Faults(skip=True))


def test_blank_lines_between_records_are_counted(write):
    for name, content in (
        ("a.tsv", "text\tlabel\nx\t0\n\n\ny\t1\n\n"),
        ("a.csv", "text,label\nx,0\n\n\ny,1\n\n"),
        ("a.jsonl", '{"text": "x"}\n\n \n{"text": "y"}\n\n'),
    ):
        faults = Faults()
        assert [values["text"] for values in read(write(name, content), faults)] == ["x", "y"]
        assert len(faults.notes) == 1 and faults.notes[0].startswith("2 blank lines of")


def test_files_are_found_in_their_folder(write, tmp_path):
    write("train.tsv", "x")
    assert named_files.find(tmp_path, "train.tsv") == [tmp_path / "train.tsv"]
    with pytest.raises(UserError, match=r"no file 'trian.tsv'; .*did you mean 'train.tsv'"):
        named_files.find(tmp_path, "trian.tsv")
    with pytest.raises(UserError, match="There is no folder"):
        named_files.find(tmp_path / "nowhere", "train.tsv")


def test_tables_without_a_first_line_of_names_are_given_some(write):
    header = ("label", "title", "text")
    csv = write("ag.csv", '"3","Oil, again","It ""rose""."\n"1","Peace","It held."\n')
    found = list(records.read(csv, Faults(), records.Table(header)))
    assert [record.values for record in found] == [
        {"label": "3", "title": "Oil, again", "text": 'It "rose".'},
        {"label": "1", "title": "Peace", "text": "It held."},
    ]
    assert found[0].place.endswith("line 1")
    tsv = write("cola.tsv", "gj04\t1\t\tOur friends.\n")
    names = ("source", "label", "mark", "text")
    assert next(records.read(tsv, Faults(), records.Table(names))).values["text"] == "Our friends."
    with pytest.raises(UserError, match=r"has 4 columns but config\.options\.header names 3"):
        list(records.read(tsv, Faults(), records.Table(header, flags="config.options.")))
    keyed = write("a.jsonl", [{"text": "x"}])
    assert next(records.read(keyed, Faults(), records.Table(header))).values["text"]
    lists = write("b.jsonl", '["who", "it"]\n')
    found = next(records.read(lists, Faults(), records.Table(("query", "positive"))))
    assert found.values == {"query": "who", "positive": "it"}
    # Whoever forgot is told what there is for it, and a prediction, which has no config, is not.
    record = next(records.read(write("b.tsv", "a\t0\nb\t1\n"), Faults()))
    with pytest.raises(UserError, match=r"no names, give them as config\.options\.header"):
        records.text(record, "text", "text")
    with pytest.raises(UserError) as told:
        records.text(record, "text", "text", flag="--column")
    assert "header" not in str(told.value)


def test_classes_in_parquet_have_the_names_that_the_file_gives_them(tmp_path):
    label = datasets.ClassLabel(names=["neg", "pos"])
    tag = datasets.ClassLabel(names=list(tag_names := ("O", "B-PER", "B-LOC")))
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(tag), "y": label}
    )
    rows = {"tokens": [["Ada", "ran"], ["x"]], "tags": [[1, 0], [0]], "y": [1, -1]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    assert read(path) == [
        {"tokens": ["Ada", "ran"], "tags": ["B-PER", "O"], "y": "pos"},
        {"tokens": ["x"], "tags": ["O"], "y": None},
    ]
    # In their order, whether a record has them or not.
    assert next(records.read(path, Faults())).classes == {"tags": tag_names, "y": ("neg", "pos")}
    # The same as `save_to_disk` leaves it: a folder of Arrow files.
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "kept")
    shutil.copy(next((tmp_path / "kept").glob("*.arrow")), tmp_path / "kept" / "cache-1.arrow")
    (kept,) = named_files.find(tmp_path, "kept")
    assert read(kept) == read(path)
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "y", pa.array([1, 7])).cast(table.schema), path)
    with pytest.raises(UserError, match=r"row 2: 'y' is 7, and the file names 2 classes"):
        read(path)
    faults = Faults(skip=True)
    assert len(read(path, faults)) == 1 == faults.count


def test_a_delimiter_makes_a_table_of_any_file(write):
    table = records.Table(("text", "label"), ";")
    path = write("emotion.txt", 'i was glad;joy\n"a; b";sadness\n')
    found = [record.values["text"] for record in records.read(path, Faults(), table)]
    assert found == ["i was glad", "a; b"]
    tabs = records.Table(("label", "text"), "tab")
    path = write("SMSSpam", 'ham\t"open quote\n')
    assert next(records.read(path, Faults(), tabs)).values["text"] == '"open quote'
    path = write("a.txt", '1@"open quote\n')
    letters = records.Table(("label", "text"), "@", quoting="none")
    assert next(records.read(path, Faults(), letters)).values["text"] == '"open quote'
    path = write("a.csv", 'text,label\n"a" b,1\n')
    (found,) = records.read(path, Faults(), records.Table(quoting="none"))
    assert found.values == {"text": '"a" b', "label": "1"}
    path = write("train.tsv", '"Three words. ""Stop."" "\t27\nfine\t0\n')
    quoted = records.Table(("text", "label"), flags="config.options.", quoting="csv")
    found = [record.values["text"] for record in records.read(path, Faults(), quoted)]
    assert found == ['Three words. "Stop." ', "fine"]
    assert next(records.read(path, Faults(), quoted._replace(quoting="auto"))).values["text"] == (
        '"Three words. ""Stop."" "'
    )
    for other in (quoted._replace(delimiter="space"), quoted._replace(delimiter="__label__")):
        with pytest.raises(UserError, match=r"options\.quoting=csv is for .* leave .*quoting out"):
            next(records.read(path, Faults(), other))
    named = records.Table(flags="config.options.")
    with pytest.raises(UserError, match=r"'\.txt' is no format.*config\.options\.delimiter"):
        next(records.read(write("a.txt", "x\n"), Faults(), named))
    with pytest.raises(UserError, match=r"--delimiter is ';;'; give tab, space, __label__, or"):
        list(records.read(path, Faults(), records.Table((), ";;", "--")))


def test_a_label_may_stand_before_the_first_space(write):
    path = write("train_5500.label", "DESC:manner How did it  end ?\n\nNUM What\n")
    named = records.Table(("label", "text"), "space", "config.options.")
    faults = Faults(skip=True)
    found = [record.values for record in records.read(path, faults, named)]
    assert found[0] == {"label": "DESC:manner", "text": "How did it  end ?"}
    assert len(found) == 2 and faults.notes[0].startswith("1 blank lines")
    with pytest.raises(UserError, match=r"name its columns, .* as config\.options\.header"):
        list(records.read(path, Faults(), named._replace(header=())))
    path = write("train_5500.label", "NUM\n")
    with pytest.raises(UserError, match=r"1 columns but config\.options\.header names 2"):
        list(records.read(path, Faults(), named))


def read_beside(folder, names, header, faults=None, **options):
    (path,) = named_files.find(folder, names)
    table = records.Table(header, flags="config.options.", **options)
    return [record.values for record in records.read(path, faults or Faults(), table)]


def test_files_side_by_side_have_a_column_each(write, tmp_path):
    write("text.txt", "a film\n\n\u2028 x\n\n")
    write("labels.txt.gz", gzip.compress(b"1\r\n0\r\n\r\n"))
    found = read_beside(tmp_path, "text.txt+labels.txt.gz", ("text", "label"))
    assert found == [
        {"text": "a film", "label": "1"},
        {"text": "", "label": "0"},  # a blank line is an empty cell, and moves nothing
        {"text": "\u2028 x", "label": ""},
    ]
    (tmp_path / "sts").mkdir()
    write("sts/input", "a\tb\tfrom\n\t\t\nc\td\tfrom\n")
    write("sts/gs", "5\n\n0.2\n")
    faults = Faults()
    found = read_beside(tmp_path, " sts/input + gs ", ("query", "positive", "", "score"), faults)
    assert found == [
        {"query": "a", "positive": "b", "score": "5"},
        {"query": "c", "positive": "d", "score": "0.2"},
    ]
    assert faults.notes[0].startswith("1 blank lines of")
    (joined,) = named_files.find(tmp_path, "sts/input+gs")
    record = next(records.read(joined, Faults(), records.Table(("a", "b", "", "c"))))
    assert record.place.endswith("input+gs line 1")
    write("text.txt+labels.txt", "text\tlabel\n")  # who calls a file so means it
    assert named_files.beside(tmp_path / "text.txt+labels.txt") == [
        tmp_path / "text.txt+labels.txt"
    ]


def test_files_side_by_side_that_do_not_fit_are_refused(write, tmp_path):
    (tmp_path / "train").mkdir()
    for name, content in (("in", "a\nb\nc\n"), ("out", "O\nO\n"), ("ids", "1\t2\n3\n4\n")):
        write(f"train/{name}", content)
    with pytest.raises(UserError, match=r"train/out has 2 lines and in, .* has 3; give files"):
        read_beside(tmp_path, "train/in+out", ("tokens", "tags"))
    with pytest.raises(UserError, match=r"in\+ids line 2 has 2 columns but config.options.header"):
        read_beside(tmp_path, "train/in+ids", ("text", "a", "b"))
    with pytest.raises(UserError, match=r"no first line of names; .* as config\.options\.header"):
        read_beside(tmp_path, "train/in+ids", ())
    with pytest.raises(UserError, match=r"have tabs between .*; leave out config\.opt"):
        read_beside(tmp_path, "train/in+ids", ("text", "a"), delimiter=";")
    with pytest.raises(UserError, match=r"train has no file 'ou'; .*did you mean 'out'"):
        named_files.find(tmp_path, "train/in+ou")
    with pytest.raises(UserError, match=r"the first alone has its folder before it, as in"):
        named_files.find(tmp_path, "train/in+train/out")
    with pytest.raises(UserError, match=r"train has no file 'in\+'"):
        named_files.find(tmp_path, "train/in+")


def test_a_folder_of_judgements_has_no_parts_yet(tmp_path):
    for name in ("qrels", "queries.jsonl"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        UserError, match=r"no file .train\.jsonl.; .* experiments\.mine makes parts"
    ):
        named_files.find(tmp_path, "train.jsonl")


def test_some_lines_may_have_more_columns_than_others(write):
    # The test file of STS-B has two columns more where a licence is told.
    path = write("sts-test.csv", "MSRvid\t2.5\ta\tb\nimages\t0\tc\td\tCC\thttp\n")
    table = records.Table(("", "score", "one", "two", "..."), "tab", "config.options.")
    found = [record.values for record in records.read(path, Faults(), table)]
    assert found == [
        {"score": "2.5", "one": "a", "two": "b"},
        {"score": "0", "one": "c", "two": "d"},
    ]
    exact = table._replace(header=table.header[:-1])
    sentence = r"has 6 columns but .* mend the line, or give config\.options\.header, in which"
    with pytest.raises(UserError, match=sentence):
        list(records.read(path, Faults(), exact))
    # SNLI's in GLUE has more before its last one, and a first line that names fewer.
    path = write("dev.tsv", "index\ttext\tlabel1\tgold\n0\tx\ta\ta\n1\ty\tb\ta\tb\tb\n")
    table = records.Table(("index", "text", "...", "gold"), flags="config.options.")
    faults = Faults()
    found = [record.values for record in records.read(path, faults, table)]
    assert [(values["text"], values["gold"]) for values in found] == [("x", "a"), ("y", "b")]
    assert "dev.tsv line 1 was passed over: it holds the names of config" in faults.notes[0]
    path = write("a.tsv", "0\tx\n")
    with pytest.raises(UserError, match=r"has 2 columns but config\.\S+ names 3 or more \(index"):
        list(records.read(path, Faults(), table))
    lists = write("b.jsonl", '["who", "it", 3]\n["who"]\n')
    faults = Faults(skip=True)
    table = records.Table(("query", "positive", "..."), flags="config.options.")
    (found,) = records.read(lists, faults, table)
    assert found.values == {"query": "who", "positive": "it"}
    assert "line 2 has 1 values but config.options.header names 2 or more" in faults.first


def test_columns_without_a_name_are_left_out(write):
    assert read(write("spam.csv", "v1,v2,,,\nham,hello,,,\n")) == [{"v1": "ham", "v2": "hello"}]


def test_parquet_that_python_cannot_hold(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "at": pa.array([2**31 - 1], pa.date32())}), path)
    with pytest.raises(UserError, match=r"a\.parquet rows 1 to 1 cannot be read"):
        read(path)


def test_damaged_parquet_is_one_sentence(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        read(path)
