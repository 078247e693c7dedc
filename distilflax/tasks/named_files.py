"""The files that a config names."""

from pathlib import Path

from distilflax.errors import UserError, choose_from
from distilflax.text import lines


def find(folder: str | Path, names: str) -> list[Path]:
    """The files that a comma-separated list names, inside of `folder`.

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
        if not shards and not path.is_file():
            there = sorted(path.name for path in folder.iterdir() if path.is_file())
            raise UserError(f"{folder} has no file {name!r}; {choose_from(name, there)}")
        found += shards or [path]
    return found
