"""What is said of files that are read, and fingerprints of what was."""

import pytest

from distilflax.tasks import TASKS, Retrieval, Tagging
from distilflax.tasks.data import Reader, fingerprint
from distilflax.tasks.records import Faults
from distilflax.tasks.settings import default_config, from_values


def test_a_part_that_is_read_again_is_no_other_part(write):
    """As for thresholds and then for figures."""
    path = write("dev.tsv", "text\tlabel\ngood\t1\nbad\t0\n")
    values = default_config("classification").to_dict()
    values["data"] |= {"folder": str(path.parent)}
    reader, task = Reader(from_values(values), lambda text: None), TASKS["classification"]()
    first, again = (reader.examples(task, "dev", "dev.tsv") for _ in range(2))
    assert first == again and reader.notes == []
    reader.examples(task, "test", "dev.tsv")
    assert reader.notes == ["test: dev.tsv is dev data too"]


def test_queries_of_several_records_are_not_said_to_be_put_aside(write):
    rows = [{"query": "who", "positive": name, "score": i} for i, name in enumerate("ab")]
    path = write("dev.jsonl", rows)
    values = default_config("retrieval").to_dict()
    values["data"] |= {"folder": str(path.parent)}
    reader, task = Reader(from_values(values), lambda text: None), Retrieval(loss_name="margin_mse")
    found = reader.checked(task, "dev", reader.examples(task, "dev", "dev.jsonl"))
    assert [q.grades for q in found] == [(0, 1)]
    assert reader.notes == ["dev: 1 records have a 'score' of 0 or less, and so are negatives"]


@pytest.mark.parametrize(
    ("word", "published"), [("Anna", "7f035b72b46f575c"), ("#Anna", "497c2f293f0ff09e")]
)
def test_fingerprints_of_tagging_are_those_of_published_results(write, word, published):
    """Whether a line looks like a comment is no data."""
    found = Tagging().read([write("a.conll", f"{word} B-per\nran O\n")], Faults())
    assert found[0].hashed == ((0,) if word.startswith("#") else ())
    assert fingerprint(found) == published
