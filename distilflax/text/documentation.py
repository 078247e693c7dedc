"""Real English that every machine has: the docstrings and help topics of the installed Python.

A newcomer's machine may reach no data-set hub, and still holds megabytes of edited technical prose.
An entry is a docstring with a summary and at least one paragraph below it. Its first line is the
summary, so "find the body that belongs to this summary" is a retrieval benchmark for free. Source
files are only ever read as text: no third-party module is imported.
"""

import ast
import hashlib
import json
import os
import pydoc_data.topics
import re
import signal
import subprocess
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import distilflax
from distilflax.text import prose

# Test suites repeat themselves, and vendored copies repeat their originals.
_SKIPPED_FOLDERS = prose.words(
    "test tests testing _testing idle_test site-packages dist-packages vendor vendored _vendor "
    "_vendored third_party __pycache__ node_modules lib2to3"
)
_LARGEST_SOURCE = 4 << 20  # bytes; what is larger was generated
_COMMONEST_PARAGRAPH = 5  # entries; what more of them share is boilerplate and identifies none
_PROCESSES = min(os.cpu_count() or 1, 8)  # more would spend their time on starting
_FORMAT = 2  # raise it when the same packages would give other entries than before
_BLANK_LINE = re.compile(r"\n[ \t]*\n")

Entry = tuple[str, list[str]]  # the summary, the paragraphs of the body


def read(roots: Iterable[Path] | None = None, processes: int = 0) -> list[str]:
    """Every entry, as its summary and the paragraphs of its body with blank lines between.

    The order is that of a hash of the text: the same on every machine with the same packages, and
    any first n of them are a fair sample.

    Args:
      roots: folders of Python sources; None for those of this interpreter and its help topics.
      processes: how many read at once; 0 for one a core, up to eight.
    """
    topics = pydoc_data.topics.topics.values() if roots is None else ()
    if roots is None:
        roots = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    found = _extract(list(source_files(sorted(roots))), processes or _PROCESSES)
    found += [entry for text in topics if (entry := prose.entry(text))]
    texts = ["\n\n".join([title, *body]) for title, body in distinct(found)]
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def identity() -> str:
    """What `read` depends on, without reading it: the versions of Python and of every package."""
    packages = {f"{found.name}=={found.version}" for found in metadata.distributions()}
    return json.dumps([_FORMAT, sys.version, *sorted(packages)])


def distinct(entries: Iterable[Entry]) -> list[Entry]:
    """Entries that no other has the summary or the opening of, without shared boilerplate.

    Packages copy each other's docstrings and fill in templates ("Constructs a FooConfig"): as
    text they teach nothing twice, and as a benchmark they have no right answer. Of those that
    agree in all words but identifiers, the longest is kept.
    """
    entries = list(entries)
    uses = Counter(paragraph for _, body in entries for paragraph in set(body))
    trimmed = []
    for title, body in entries:
        own = [text for text in dict.fromkeys(body) if uses[text] <= _COMMONEST_PARAGRAPH]
        if sum(map(len, own)) >= prose.SHORTEST_BODY:
            trimmed.append((title, own))
    trimmed.sort(key=lambda entry: (-sum(map(len, entry[1])), entry))
    seen: set[str] = set()
    kept = []
    for title, body in trimmed:
        keys = {
            f"title {prose.plain_words(title)}",
            f"body {prose.plain_words(' '.join(body)[:400])[:120]}",
        }
        if not keys & seen:
            kept.append((title, body))
        seen |= keys
    return kept


def source_files(roots: Iterable[Path]) -> Iterator[Path]:
    """Every Python source below `roots` that is neither a test nor a vendored copy."""
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(
                name
                for name in subfolders
                if name not in _SKIPPED_FOLDERS and not name.endswith(("-info", ".libs"))
            )
            for name in sorted(names):
                if name.endswith(".py") and not name.startswith(("test_", "conftest")):
                    yield Path(folder, name)


def entries_of(path: Path) -> list[Entry]:
    """The entries of one source file; none where it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST_SOURCE:
            return []
        source = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [found for text in docstrings(source) if (found := prose.entry(text))]


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of more than one paragraph in a Python source, decoded, as they follow.

    A docstring is a triple-quoted literal that follows the colon of a header, opens the module, or
    is a later argument of a call (numpy and torch document their C functions with
    `add_newdoc(module, name, literal)`). Finding these by their quotes takes a thirtieth of the
    time of `ast.parse`, and a wrong guess costs nothing: code does not pass for English.
    """
    for start, end in _literals(source):
        text = source[start + 3 : end - 3]
        if not _BLANK_LINE.search(text) or not _documents(source, start):
            continue
        if "\\" in text and source[start - 1 : start].lower() != "r":
            text = _decoded(source[start:end])
        if text:
            yield text


def _decoded(literal: str) -> str:
    try:
        with warnings.catch_warnings():
            # Many a docstring has a backslash that Python warns of, and its users cannot help it.
            warnings.simplefilter("ignore")
            return ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        return ""


def _literals(source: str) -> Iterator[tuple[int, int]]:
    """Where each triple-quoted literal begins and ends, quotes included."""
    end = 0
    following = {quotes: source.find(quotes) for quotes in ('"""', "'''")}
    while True:
        for quotes, at in following.items():
            if 0 <= at < end:
                following[quotes] = source.find(quotes, end)
        ahead = [(at, quotes) for quotes, at in following.items() if at >= 0]
        if not ahead:
            return
        start, quotes = min(ahead)
        end = source.find(quotes, start + 3)
        while end > 0 and source[end - 1] == "\\" and source[end - 2] != "\\":
            end = source.find(quotes, end + 1)
        if end < 0:
            return
        end += 3
        yield start, end


def _documents(source: str, start: int) -> bool:
    """Whether a literal that starts here stands where documentation does."""
    before = source[max(0, start - 200) : start].rstrip("rRuU").rstrip()
    if before.endswith((":", ",")):
        return True
    return start < 4096 and all(
        line.startswith("#") or not line.strip(" rRuU") for line in source[:start].splitlines()
    )


def _extract(files: list[Path], processes: int) -> list[Entry]:
    """The entries of all files, found in fresh interpreters that import nothing but this module.

    A child of `multiprocessing` would import the caller's `__main__` again, jax and all, and hang a
    script that has no `if __name__ == "__main__"`.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(distilflax.__file__).parents[1])}

    def extract(share: list[Path]) -> list[Entry]:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input="\n".join(map(str, share)),
            stdout=subprocess.PIPE,
            env=environment,
            encoding="utf-8",
            check=True,
        )
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    shares = [files[first::processes] for first in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        return [entry for entries in pool.map(extract, shares) for entry in entries]


def _serve() -> None:
    """One child of `_extract`: paths on standard input, entries as JSON on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback of its own
    for path in sys.stdin.read().splitlines():
        for entry in entries_of(Path(path)):
            print(json.dumps(entry))


if __name__ == "__main__":
    _serve()
