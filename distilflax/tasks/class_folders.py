"""Texts in folders, each in a file of its own, and the folder's name their class: IMDB (Maas et al.
2011), 20 Newsgroups.
"""

from collections.abc import Container, Iterator
from pathlib import Path

from distilflax.errors import UserError
from distilflax.tasks.faults import Faults
from distilflax.text import lines


def read(folder: Path, faults: Faults, formats: Container[str]) -> Iterator[tuple[str, str, str]]:
    """(the file, its text, its class) for each file of the folders in `folder`, or, where there are
    none, of itself; by name in order, without those whose name begins with a dot.

    Raises:
      UserError: folders in the folders of classes, a file of one of `formats` (suffixes), of which
        none is one text; and, unless `faults` counts them, files that are empty or cannot be read.
    """
    inside = _inside(folder)
    classes = [path for path in inside if path.is_dir()]
    others = [path.name for path in inside if not path.is_dir()]
    if classes and others:
        faults.note(
            f"{len(others):,} files of {folder} that stand beside its folders were passed over "
            f"({', '.join(others):.80})"
        )
    for one in classes or [folder]:
        for path in _inside(one):
            _check(path, formats)
            try:
                text = "\n".join(line for _, line in lines.read(path))
            except UserError as error:
                faults.add(str(error))
                continue
            if text.strip():
                yield str(path), text, one.name
            else:
                faults.add(f"{path} is empty; give it a text, or leave the file out.")


def _inside(folder: Path) -> list[Path]:
    with lines.explained(folder):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _check(path: Path, formats: Container[str]) -> None:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder where texts of the class {path.parent.name!r} should be, a file "
            "each; name the folders that have a class each, with commas between."
        )
    if lines.name_below(path).suffix in formats:
        raise UserError(
            f"{path.parent} is a folder, to be read as texts in a file each, and has {path.name}; "
            "name the files themselves, with commas between."
        )
