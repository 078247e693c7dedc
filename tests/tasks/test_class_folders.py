"""Texts in a file each, whose folder is their class, or a line each, whose file is."""

import gzip

import pytest

from distilflax.errors import UserError
from distilflax.tasks import Classification, Tagging, named_files
from distilflax.tasks.classification import Example
from distilflax.tasks.records import Faults


@pytest.fixture
def imdb(tmp_path):
    """A folder as IMDB's, of few texts."""
    for name, content in (
        ("pos/1_9.txt", b"good film\nvery good\n"),
        ("pos/0_7.txt", b"good"),
        ("pos/.DS_Store", b"\0\0\0"),
        ("neg/0_3.txt.gz", gzip.compress(b"bad")),
        ("unsup/0_0.txt", b"film"),
    ):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "train/urls_pos.txt").write_text("http\n")
    return tmp_path


def read(folder, names, faults=None, **options):
    found = named_files.find(folder, names)
    return Classification(**options).read(found, faults or Faults())


def test_a_folder_is_the_class_of_its_files(imdb):
    faults = Faults()
    found = read(imdb, "train", faults)
    assert [(e.text, e.label) for e in found] == [
        ("bad", "neg"),
        ("good", "pos"),
        ("good film\nvery good", "pos"),
        ("film", "unsup"),
    ]
    assert found[1] == Example(str(imdb / "train/pos/0_7.txt"), "good", None, "pos")
    assert faults.notes == [
        f"1 files of {imdb / 'train'} that stand beside its folders were passed over (urls_pos.txt)"
    ]
    # Those that are named, in that order, and no others.
    assert [e.label for e in read(imdb, "train/pos/, train/neg")] == ["pos", "pos", "neg"]
    (unlabelled,) = Classification().read([imdb / "train/unsup"], Faults(), labelled=False)
    assert unlabelled.label is None
    named = read(imdb / "train", "pos,neg", label_names=("neg", "pos"))
    assert Classification(label_names=("neg", "pos")).learn(named).labels == ("neg", "pos")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"neg/1\.txt is empty; give it a text, or leave the file out"),
        (b" \n\n", r"neg/1\.txt is empty"),
        ("two\ncafé".encode("latin1"), r"neg/1\.txt line 2 is not UTF-8 .* `iconv -f latin1"),
        (b"\0\0\0", r"neg/1\.txt line 1 is not text"),
    ],
)
def test_a_file_that_holds_no_text_is_a_fault_of_its_own(imdb, content, sentence):
    (imdb / "train/neg/1.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(imdb, "train")
    faults = Faults(skip=True)
    assert len(read(imdb, "train", faults)) == 4 and faults.count == 1


def test_folders_of_something_else_are_refused(imdb):
    with pytest.raises(UserError, match=r"train/neg is a folder where texts of the class 'train'"):
        read(imdb.parent, imdb.name)
    with pytest.raises(UserError, match=r"has no file 'trian'; choose from train; did you mean"):
        read(imdb, "trian")
    with pytest.raises(UserError, match=r"0_3\.txt\.gz has no column 'review' .* from text, label"):
        read(imdb, "train", text="review")
    for task in (Tagging(), Tagging(header=("tokens",), delimiter=";"), Tagging(bracketed="text")):
        with pytest.raises(UserError, match="train/neg is a folder; name the files in it, with co"):
            task.read(named_files.find(imdb, "train/neg"), Faults())
    (imdb / "tables").mkdir()
    with pytest.raises(UserError, match="tables has no records"):
        read(imdb, "tables")
    (imdb / "tables/train.csv.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"tables is a folder, .* and has train\.csv\.gz; name the"):
        read(imdb, "tables")


def test_a_suffix_is_the_class_of_its_lines(write, tmp_path):
    write("rt.pos", 'a good, "very" good film \n\ngood\n')
    write("rt.neg.gz", gzip.compress(b"bad\n"))
    write("rt.csv", "text\n")  # whatever else it would say
    faults = Faults()
    found = read(tmp_path, "rt.pos,rt.neg.gz,rt.csv", faults, delimiter="suffix")
    assert [(e.text, e.label) for e in found] == [
        ('a good, "very" good film', "pos"),
        ("good", "pos"),
        ("bad", "neg"),
        ("text", "csv"),
    ]
    assert found[1].place.endswith("rt.pos line 3") and faults.notes[0].startswith("1 blank lines")
    with pytest.raises(UserError, match=r"rt\.pos: config\.options\.quoting=csv is for a table wh"):
        read(tmp_path, "rt.pos", delimiter="suffix", quoting="csv")
    write("rt", "bad\n")
    with pytest.raises(UserError, match="rt has no suffix, which is to be its class"):
        read(tmp_path, "rt", delimiter="suffix")
    with pytest.raises(UserError, match=r"'\.pos' is no format; .*suffix if that is the class"):
        read(tmp_path, "rt.pos")
