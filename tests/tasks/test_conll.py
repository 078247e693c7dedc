"""Files that are read as CoNLL columns, and have none."""

import pytest

from distilflax.errors import UserError
from distilflax.tasks import Tagging
from distilflax.tasks.records import Faults

# As some copies of SNIPS and ATIS are.
GATED = "".join(
    f"add:O {'the:O ' * (i % 5)}song{i}:B-item <=> AddToPlaylist\nplay:O it:O <=> PlayMusic\n"
    for i in range(20)
)
TABBED = "".join(f"add song{i}\tO B-item\nstop\tO\nplay it\tO O\n" for i in range(20))


def read(path, **options):
    return Tagging(**options).read([path], Faults())


@pytest.mark.parametrize(
    ("content", "what"),
    [(GATED, "40 words, with lines of different numbers"), (TABBED, "60 words, with tags with sp")],
)
def test_a_file_of_a_sentence_a_line_is_no_sentence(write, content, what):
    for suffix in (".txt", ".iob"):
        path = write(f"a{suffix}", f"# a comment\n\n{content}\n")
        told = rf"{path} would be one sentence of {what}.*options\.delimiter=tab and .*=tokens,tags"
        with pytest.raises(UserError, match=told):
            read(path, comment="# ")
        assert Tagging().read([path], Faults(), labelled=False)


def test_what_is_refused_is_read_as_the_message_says(write):
    found = read(write("a.iob", TABBED), delimiter="tab", header=("tokens", "tags"))
    assert found[0].words == ("add", "song0") and len(found) == 60


@pytest.mark.parametrize(
    "content",
    [
        "Anna NNP B-per\nlives VBZ O\n" * 50,
        "New York\tB-loc\nla la\tO\n" * 50,
        "Anna B-per\nlives\tO\nin O\nNew York B-loc\nnow O\n" * 50,
    ],
)
def test_a_long_sentence_in_columns_is_one(write, content):
    (found,) = read(write("a.txt", content))
    assert len(found.words) == content.count("\n")
