import gzip
import lzma

import pytest

from distilflax.errors import UserError
from distilflax.text import lines


def read(path, **options):
    return [line for _, line in lines.read(path, **options)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("x".encode("utf-16"), r"a\.tsv is in UTF-16; .*iconv -f utf-16"),
        (b"one\rtwo\rthree\r", "ends its lines with carriage returns alone"),
        ("ab\ncd\n".encode("utf-16-le"), r"a\.tsv line 1 is not text \(zero bytes"),
        (b"fine\ncaf\xe9\n", "line 2 is not UTF-8 .*0xe9 at position 4"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, content, sentence):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "a.tsv")


def test_only_a_line_feed_ends_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028\rstill\r\nthe\0 other".encode())
    assert read(tmp_path / "a.txt") == ["one\u2028\rstill", "the\0 other"]


def test_an_endless_line_is_refused_before_it_fills_memory(tmp_path):
    (tmp_path / "bomb.txt.xz").write_bytes(lzma.compress(b"a" * (3 << 20)))
    with pytest.raises(UserError, match=r"line 1 is not text.*1 MiB"):
        read(tmp_path / "bomb.txt.xz", longest=1 << 20)


def test_bytes_changed_inside_of_an_archive(tmp_path):
    content = bytearray(gzip.compress(b"".join(b"%d\n" % (i * i) for i in range(9999))))
    content[200:210] = bytes(10)
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.gz is damaged"):
        read(tmp_path / "a.gz")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "n" * 300])
def test_names_that_cannot_be_looked_up(path):
    with pytest.raises(UserError, match="cannot be looked up"):
        lines.local(path)


def test_half_a_surrogate_pair_becomes_one_character():
    assert len(lines.whole("a\ud83db")) == 3
    lines.whole("a\ud83db").encode()
    text = "café " * 9
    assert lines.whole(text) is text
