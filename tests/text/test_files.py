import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax.errors import UserError
from distilflax.text import files

TEXTS = ["The first document.", "Café, naïve — ünïcode.", 'She said "yes", then left.']


def read(path, column="text"):
    return list(files.documents(path, column))


def plain(path, compress=lambda data: data):
    path.write_bytes(compress("\n\n".join([*TEXTS, " "]).encode() + b"\n"))
    return path


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSIONS = {
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstd,
}


def test_each_line_of_plain_text_is_a_document_and_blank_ones_are_none(tmp_path):
    assert read(plain(tmp_path / "a.txt")) == TEXTS
    assert read(plain(tmp_path / "unknown.suffix")) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_text_is_the_same_text(tmp_path, suffix):
    assert read(plain(tmp_path / f"a.txt{suffix}", COMPRESSIONS[suffix])) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_compressed_file_that_is_cut_short_is_one_sentence(tmp_path, suffix):
    body = "".join(f"line {i} {hash(str(i))}\n" for i in range(3000)).encode()
    whole = COMPRESSIONS[suffix](body)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"a\.txt\{suffix} is damaged.*again"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_file_that_is_not_what_its_suffix_says(tmp_path, suffix):
    path = plain(tmp_path / f"a.txt{suffix}")
    with pytest.raises(UserError, match="not what its suffix"):
        read(path)


def test_json_lines_compressed_or_not(tmp_path):
    lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.jsonl.gz") == TEXTS


def test_half_a_surrogate_pair_in_json_becomes_text_that_can_be_written(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d here", "other": null}\n')
    (text,) = read(tmp_path / "a.jsonl")
    assert text.encode() == b"half ? here"


def test_null_records_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "kept"}\n')
    assert read(tmp_path / "a.jsonl") == ["kept"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", "line 2 is not a JSON object"),
        ("{nonsense", "line 2 is not a JSON record.*jq"),
        ('{"txt": "a"}', r"no column 'text' \(data.column\); choose from txt; did you mean 'txt'"),
        ('{"text": 5}', "line 2: 'text' is not text but 5"),
        ("[" * 100_000, "line 2 is not a JSON record"),
    ],
)
def test_malformed_json_lines(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.jsonl")


def test_csv_keeps_quoted_commas_and_line_ends(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"one, two\n\nthree"\n2,"say ""hi"""\n')
    assert read(tmp_path / "a.csv") == ["one, two\n\nthree", 'say "hi"']


def test_a_csv_field_may_be_as_long_as_an_article(tmp_path):
    article = "word " * 60_000
    (tmp_path / "a.csv").write_text(f"text\n{article}\n")
    assert read(tmp_path / "a.csv") == [article]


def test_a_quote_in_tsv_is_text(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"open quote\t1\nnext\t0\n')
    assert read(tmp_path / "a.tsv") == ['"open quote', "next"]


def test_a_row_without_the_column(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,fine\n2\n")
    with pytest.raises(UserError, match="line 3 has 1 columns but the first line names 2"):
        read(tmp_path / "a.csv")


def test_a_text_with_an_unquoted_comma_is_not_cut(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,hello, world\n")
    with pytest.raises(UserError, match=r"line 2 has 3 columns .* 'text' may be cut"):
        read(tmp_path / "a.csv")
    # What a spreadsheet leaves out or adds is not.
    (tmp_path / "a.csv").write_text("text,notes\nhello\nworld,a,,\n")
    assert read(tmp_path / "a.csv") == ["hello", "world"]
    (tmp_path / "a.csv").write_text("text,text\n1,2\n")
    with pytest.raises(UserError, match="two columns 'text'"):
        read(tmp_path / "a.csv")


def test_a_quote_left_open(tmp_path):
    (tmp_path / "a.csv").write_text('text\nfine\n"never closed\nmore\n')
    with pytest.raises(UserError, match=r"a\.csv line 3.*is a quote left open"):
        read(tmp_path / "a.csv")


def test_an_unknown_csv_column_names_the_nearest(tmp_path):
    (tmp_path / "a.csv").write_text("sentence,label\nx,1\n")
    with pytest.raises(UserError, match=r"no column 'sentense'.*did you mean 'sentence'"):
        read(tmp_path / "a.csv", "sentense")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary("int32", "string")])
def test_parquet_of_every_string_type(tmp_path, kind):
    column = pa.array([*TEXTS, None]).cast(kind)
    pq.write_table(pa.table({"body": column, "n": range(4)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "body") == TEXTS


def test_parquet_without_the_column_or_with_numbers_in_it(tmp_path):
    pq.write_table(pa.table({"body": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'text'.*choose from body"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'body' holds int64, not text"):
        read(tmp_path / "a.parquet", "body")


def test_damaged_parquet(tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        read(tmp_path / "a.parquet")


def test_bad_utf8_names_the_line_the_byte_and_the_remedy(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\ncaf\xe9 latin\n")
    with pytest.raises(UserError, match=r"a\.txt line 2 .*0xe9 at position 4.*iconv"):
        read(tmp_path / "a.txt")


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\nhello\n")
    assert read(tmp_path / "a.csv") == ["hello"]


def test_a_binary_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x7fELF\0\0\0")
    with pytest.raises(UserError, match="line 1 is not text"):
        read(tmp_path / "a.bin")


def test_an_archive_of_files_and_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="unpack it"):
        read(tmp_path / "a.zip")
    with pytest.raises(UserError, match="There is no file"):
        read(tmp_path / "a.txt")
