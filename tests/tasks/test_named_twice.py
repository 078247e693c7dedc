"""A first line of names that the options name otherwise, which would be a class of its own."""

from distilflax.tasks import Classification
from distilflax.tasks.records import Faults

ROWS = "".join(f"{i % 3},Oil,it rose\n" for i in range(30))


def notes(path, **options):
    faults = Faults()
    Classification(header=("label", "title", "text"), **options).read([path], faults)
    return faults.notes


def test_a_first_line_of_names_is_noted_where_it_would_be_a_class(write):
    # As AG News is on Kaggle.
    path = write("a.csv", "Class Index,Title,Description\n" + ROWS)
    (note,) = notes(path)
    assert note == (
        f"{path} line 1 alone has the label 'Class Index'; if it names the columns, leave out "
        "config.options.header"
    )


def test_a_first_line_like_others_is_not(write):
    assert not notes(write("b.csv", ROWS))
    assert not notes(write("c.csv", "3,a,b\n4,a,b\n" + ROWS))  # rare classes are
    assert not notes(write("d.csv", "3,a,b\n" + ROWS[: len(ROWS) // 3]))
    read = Classification(header=("label", "title", "text"))
    read.read([write("e.csv", "x,Title,text\n" + ROWS)], faults := Faults(), labelled=False)
    assert not faults.notes
