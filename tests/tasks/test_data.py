"""Fingerprints of what was read."""

import pytest

from distilflax.tasks import Tagging
from distilflax.tasks.data import fingerprint
from distilflax.tasks.records import Faults


@pytest.mark.parametrize(
    ("word", "published"), [("Anna", "7f035b72b46f575c"), ("#Anna", "497c2f293f0ff09e")]
)
def test_fingerprints_of_tagging_are_those_of_published_results(write, word, published):
    """Whether a line looks like a comment is no data."""
    found = Tagging().read([write("a.conll", f"{word} B-per\nran O\n")], Faults())
    assert found[0].hashed == ((0,) if word.startswith("#") else ())
    assert fingerprint(found) == published
