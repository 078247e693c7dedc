"""Lists that stand as text in the cells of a table, as pandas and `datasets` write them."""

import datasets
import pytest

from distilflax.errors import UserError
from distilflax.tasks import Classification, Tagging, written_lists
from distilflax.tasks.records import Faults


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", []),
        ('["a", "it\'s"]', ["a", "it's"]),
        ("['a', \"it's\", 'x [1] y']", ["a", "it's", "x [1] y"]),
        ("['a' \"it's\"\n 'c d']", ["a", "it's", "c d"]),  # which Python would make one text of
        ("[27]", [27]),
        ("[ 2 14]", [2, 14]),
        ("[0. 1.5 -1.]", [0.0, 1.5, -1.0]),
        ("[True, False]", [True, False]),
        ("[ True False]", [True, False]),
    ],
)
def test_lists_are_read_as_python_json_and_numpy_write_them(text, found):
    assert written_lists.is_written(text)
    assert written_lists.read(text, "line 2", "write it") == found


@pytest.mark.parametrize(
    "text", ["[a, b]", "[0 1 ... 7]", "['a'", "['a'], ['b']", "[f(1)]", "[1" + "]" * 99, "[0 007]"]
)
def test_brackets_around_no_list_are_told(text):
    with pytest.raises(UserError, match=r"^line 2 is a list written as text \(\[.* JSON lines\.$"):
        written_lists.read(text, "line 2", "write it")


def test_many_labels_may_be_a_list_in_a_cell(write):
    content = "text,label\nx,\"['cs.CV', 'cs.LG']\"\ny,['cs.CV']\nz,[]\nw,\"cs.CV,cs.LG\"\n"
    task = Classification(problem="multi")
    found = task.read([write("a.csv", content)], Faults())
    both = ("cs.CV", "cs.LG")
    assert [e.label for e in found] == [both, ("cs.CV",), (), both]
    names = tuple("abcdefgh")
    numbered = Classification(problem="multi", label_names=names)
    path = write("b.csv", 'text,label\nx,[6]\ny,[ 2 4]\nz,"[0, 7]"\n')
    assert [e.label for e in numbered.read([path], Faults())] == [("g",), ("c", "e"), ("a", "h")]
    each = Classification(problem="multi", label_names=("a", "b", "c"))
    path = write("c.csv", 'text,label\nx,"[1, 0, 1]"\ny,[0. 0. 0.]\n')
    assert [e.label for e in each.read([path], Faults())] == [("a", "c"), ()]
    bracketed = write("e.csv", 'text,label\nx,"[urgent],[spam]"\ny,[neutral]\n')
    names = [e.label for e in task.read([bracketed], Faults())]
    assert names == [("[urgent]", "[spam]"), ("[neutral]",)]
    faults = Faults(skip=True)
    path = write("d.csv", 'text,label\nx,"[a, b]"\ny,a\n')
    assert [e.label for e in task.read([path], faults)] == [("a",)]
    assert "line 2: 'label' is a list written as text ([a, b])" in faults.first
    assert "write labels with ',' between, or the records as JSON lines" in faults.first


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    ("cell", "separator", "found"),
    [
        ("0,1,0", ",", ("q",)),
        ("1 0 0", " ", ("p",)),
        ("0, 0, 0", ",", ()),
        ("1.0,0.0,1.0", ",", ("p", "r")),
        (["0", "1", "0"], ",", ("q",)),
        ([True, False, True], ",", ("p", "r")),
        ("0,2", ",", ("p", "r")),  # numbers of labels
        ("1", ",", ("q",)),
    ],
)
def test_a_0_or_1_for_each_label_may_be_text(write, name, cell, separator, found):
    record = {"text": "x", "label": cell}
    path = write("a.csv", f'text,label\nx,"{cell}"\n') if name == "a.csv" else write(name, [record])
    task = Classification(problem="multi", label_names=("p", "q", "r"), separator=separator)
    assert task.read([path], Faults())[0].label == found


def test_words_and_tags_may_be_lists_in_cells(write, tmp_path):
    rows = {"tokens": [["New York", "it's"], ["x"]], "tags": [["B-loc", "O"], ["O"]]}
    datasets.Dataset.from_dict(rows).to_csv(tmp_path / "a.csv")
    python = "tokens\ttags\n['New York', \"it's\"]\t['B-loc', 'O']\n['x']\t['O']\n"
    for path in (tmp_path / "a.csv", write("b.tsv", python)):
        found = Tagging().read([path], Faults())
        assert [(s.words, s.tags) for s in found] == [
            (("New York", "it's"), ("B-loc", "O")),
            (("x",), ("O",)),
        ]
        assert Tagging().read([path], Faults(), labelled=False)[0].words == ("New York", "it's")
    # As in Kaggle's ner.csv.
    mixed = write("c.tsv", "tokens\ttags\nfly home\t['O', 'B-loc']\n")
    assert Tagging().read([mixed], Faults())[0].tags == ("O", "B-loc")
    numbers = write("d.tsv", "tokens\ttags\n['fly' 'home']\t[0 1]\n")
    (found,) = Tagging(tag_names=("O", "B-loc")).read([numbers], Faults())
    assert (found.words, found.tags) == (("fly", "home"), ("O", "B-loc"))


def test_brackets_may_be_words_and_tags(write):
    path = write("a.tsv", "tokens\ttags\n[ Music ]\tO O O\n[ Music ]\t[ NN ]\n")
    found = Tagging().read([path], Faults())
    assert [s.words for s in found] == [("[", "Music", "]")] * 2
    assert found[1].tags == ("[", "NN", "]")
    said = write("c.tsv", 'tokens\ttags\n["Hello" he said]\tO O O\n[CLS] a [SEP]\t[CLS] O [SEP]\n')
    first, second = Tagging().read([said], Faults())
    assert first.words == ('["Hello"', "he", "said]") and second.tags == ("[CLS]", "O", "[SEP]")
    for tags, told in (
        (
            "[O, O]",
            r"line 2: 'tags' is a list written as text .* write words and tags with nothing",
        ),
        ("[None, 'O']", r"line 2: 'tags' is \[None, 'O'\], not a list of texts; mend it"),
    ):
        with pytest.raises(UserError, match=told):
            Tagging().read([write("b.tsv", f"tokens\ttags\nfly home\t{tags}\n")], Faults())
