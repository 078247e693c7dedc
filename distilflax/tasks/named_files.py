"""The files that a config names: several with commas between, and, with `+` between, files that
stand side by side, line i of each being a part of record i (as `paste` of Unix reads them).

Files side by side lie in one folder, which stands before the first alone: `train/seq.in+seq.out`.
They go by one path, which ends so; a file that is really called so is read as itself.
"""

from pathlib import Path

from distilflax.errors import UserError, choose_from
from distilflax.text import lines


def find(folder: str | Path, names: str) -> list[Path]:
    """The files that a comma-separated list names, inside of `folder`; those side by side are one
    path, and so is a folder of texts; one of `datasets` stands for its .arrow files.

    Raises:
      UserError: there is no such folder or file, with the files that are there.
    """
    folder = lines.local(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the data's as config.data.folder.")
    found = []
    for name in filter(None, map(str.strip, names.split(","))):
        path = lines.local(folder / name)
        shards = sorted(path.glob("*.arrow")) if path.is_dir() else []
        # Beside them `datasets` keeps what it made of them.
        shards = [shard for shard in shards if not shard.name.startswith("cache-")]
        if not path.is_dir():
            _check_there(folder, name, path)
        found += shards or [path]
    return found


def _check_there(folder: Path, name: str, path: Path) -> None:
    missing = next((part for part in beside(path) if not part.is_file()), None)
    if missing is None:
        return
    if path.parent.is_dir():
        folder, name = path.parent, missing.name
    elif "+" in name:
        raise UserError(
            f"There is no folder {path.parent}; of files side by side the first alone has its "
            "folder before it, as in train/seq.in+seq.out."
        )
    there = sorted(path.name for path in folder.iterdir())
    hint = ""
    if "qrels" in there:
        hint = " Judgements are in qrels; experiments.mine makes parts of such a folder."
    raise UserError(f"{folder} has no file {name!r}; {choose_from(name, there)}{hint}")


def check_no_folder(path: Path) -> None:
    """Of what is read out of files alone.

    Raises:
      UserError: a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the files in it, with commas between.")


def beside(path: Path) -> list[Path]:
    """The files that a path names: itself, or several side by side."""
    names = [name.strip() for name in path.name.split("+")]
    if len(names) == 1 or not all(names) or path.exists():
        return [path]
    return [path.parent / name for name in names]


def are_beside(path: Path) -> bool:
    """Whether a path names several files, side by side."""
    return len(beside(path)) > 1
