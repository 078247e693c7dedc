"""`python -m experiments.search`: what texts hold is shown as it stands."""

import numpy as np

from experiments import search


def test_brackets_in_texts_are_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    documents = ["dict[str, int]\nmore", "the end [/quote]"]
    found = (np.array([[0.9, 0.1]]), np.array([[0, 1]]))
    search._show(["list[int] or [bold]?"], documents, {"teacher": found, "student": found})
    shown = capsys.readouterr().out
    for text in ("dict[str, int]", "[/quote]", "list[int] or [bold]?"):
        assert text in shown
