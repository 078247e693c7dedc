import ast
import email
import inspect
import json
import sysconfig
from pathlib import Path

import optax
import pytest

from distilflax.text import documentation

BODY = "It is the one that {what}, and it says so at length, so that there is a body to find. " * 3


def entry(title, what):
    return title, [BODY.format(what=what)]


def test_docstrings_are_those_that_ast_finds_and_none_is_missed():
    """The scanner against the parser, on packages of the standard library."""
    checked = 0
    for path in Path(email.__file__).parent.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        expected = {
            inspect.cleandoc(text)
            for node in ast.walk(tree)
            if isinstance(node, owners) and (text := ast.get_docstring(node, clean=False))
            if "\n\n" in inspect.cleandoc(text)
        }
        found = {inspect.cleandoc(text) for text in documentation.docstrings(source)}
        assert expected <= found
        checked += len(expected)
    assert checked > 50


def test_docstrings_of_calls_and_escapes_are_decoded():
    source = 'add_newdoc("m", "f", """One\\tline.\n\nTwo.""")\ndef f():\n    r"""A\\tb.\n\nC."""\n'
    assert list(documentation.docstrings(source)) == ["One\tline.\n\nTwo.", "A\\tb.\n\nC."]


def test_a_backslash_that_python_warns_of_is_kept_in_silence():
    (text,) = documentation.docstrings('def f():\n    """Matches \\d.\n\nTwo."""\n')
    assert text == "Matches \\d.\n\nTwo."


def test_a_string_that_is_no_documentation_or_is_never_closed():
    assert list(documentation.docstrings('x = """One.\n\nTwo."""\n')) == []
    assert list(documentation.docstrings('def f():\n    """One.\n\nTwo.')) == []


def test_read_is_the_same_for_any_number_of_processes(tmp_path):
    package = tmp_path / "package"
    (package / "tests").mkdir(parents=True)
    for index, name in enumerate(["alpha", "beta", "gamma", "delta", "kappa"]):
        body = BODY.format(what=f"is about {name}")
        text = f'def f():\n    """Computes the {name} of the whole table.\n\n    {body}\n    """\n'
        (package / f"m{index}.py").write_text(text)
        (package / "tests" / f"m{index}.py").write_text(text.replace("whole", "tested"))
    (package / "bad.py").write_bytes(b'"""\xff\xfe\n\n"""')
    one, two = (documentation.read([package], processes) for processes in (1, 2))
    assert one == two
    assert len(one) == 5
    assert all(text.startswith("Computes the ") and "\n\nIt is the" in text for text in one)
    assert not any("tested" in text for text in one)


def test_entries_with_the_same_summary_or_the_same_body_are_one():
    kept = documentation.distinct(
        [
            entry("Returns the mean of all the values", "is short"),
            entry("Returns the mean of all the values", "is the longest of them by some words"),
            entry("Gives back the mean of every value", "is the longest of them by some words"),
            entry("Builds a FooConfig from the given text", "builds a foo"),
            entry("Builds a BarConfig from the given text", "builds a bar of iron"),
            entry("Opens the file that was named before", "opens"),
        ]
    )
    assert sorted(title for title, _ in kept) == [
        "Builds a BarConfig from the given text",
        "Gives back the mean of every value",
        "Opens the file that was named before",
    ]


def test_a_paragraph_that_many_entries_share_is_boilerplate():
    shared = "This paragraph is in the documentation of all of them, and it identifies none."
    names = ["one", "two", "three", "four", "five", "six", "seven"]
    entries = [(f"Does the thing number {n} to it", [shared, BODY.format(what=n)]) for n in names]
    assert all(shared not in body for _, body in documentation.distinct(entries))
    assert all(shared in body for _, body in documentation.distinct(entries[:3]))


def test_distinct_does_not_depend_on_the_order():
    entries = [entry(f"Does the {w} thing to the table", w) for w in ("big", "small", "odd")]
    entries += [entry("Does the big thing to the table", "is big")]
    assert documentation.distinct(entries) == documentation.distinct(entries[::-1])


def test_identity_names_python_and_the_packages():
    _, _, *packages = json.loads(documentation.identity())
    assert any(package.startswith("numpy==") for package in packages)
    assert documentation.identity() == documentation.identity()


@pytest.mark.slow
def test_the_documentation_of_this_machine(monkeypatch):
    """Of Python's own library and help topics, and of one of the installed packages: all of them
    take ten times as long."""
    paths = {"stdlib": sysconfig.get_path("stdlib"), "purelib": Path(optax.__file__).parent}
    paths["platlib"] = paths["purelib"]
    monkeypatch.setattr(sysconfig, "get_path", paths.__getitem__)
    entries = documentation.read()
    assert len(entries) > 1200
    titles = [text.partition("\n\n")[0] for text in entries]
    assert len(set(titles)) == len(titles)
    assert optax.radam.__doc__.partition("\n")[0].rstrip(".") in titles
    assert all(
        "\n" not in title and text.count("\n\n")
        for title, text in zip(titles, entries, strict=True)
    )
