"""What `data.sources` may name, and the documents that it stands for.

A comma-separated list of files, folders, globs, `hf:NAME[:CONFIG]@SPLIT`, and `documentation`.
A document is a string whose paragraphs have blank lines between them; in plain text each line is a
document of one paragraph.
"""

import glob
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import huggingface_hub

from distilflax.errors import UserError
from distilflax.text import documentation, files, lines


@runtime_checkable
class Source(Protocol):
    """One place that documents come from."""

    def identity(self) -> str:
        """A text that changes whenever the documents may have; found without reading them."""

    def documents(self, column: str) -> Iterator[str]:
        """The documents in order, as a stream."""


def read(sources: str, column: str = "text", cache: str | Path | None = None) -> Iterator[str]:
    """The documents of every source in turn, as a stream.

    Args:
      sources: as `data.sources` of an experiment.
      column: of JSON lines, CSV, Parquet and hub data sets; plain text has none.
      cache: folder for what has to be downloaded; None for that of `datasets`.

    Raises:
      UserError: at once if a source does not exist, and while reading if one is malformed.
    """
    return (text for source in resolve(sources, cache) for text in source.documents(column))


def resolve(sources: str, cache: str | Path | None = None) -> list[Source]:
    """The sources that a comma-separated list names; folders and globs in the order of names."""
    found: list[Source] = []
    for name in filter(None, map(str.strip, sources.split(","))):
        if name == "documentation":
            found.append(Documentation())
        elif name.startswith("hf:"):
            found.append(_hub(name, cache))
        else:
            found.extend(map(File, _paths(name)))
    if not found:
        raise UserError(
            "data.sources names nothing; give files, folders, globs, hf:NAME@SPLIT or "
            "documentation, separated by commas."
        )
    return found


@dataclass(frozen=True)
class File:
    """A file of any format that `files` reads."""

    path: Path

    def identity(self) -> str:
        with lines.explained(self.path):
            status = self.path.stat()
        return json.dumps([str(self.path.resolve()), status.st_size, status.st_mtime_ns])

    def documents(self, column: str) -> Iterator[str]:
        return files.documents(self.path, column)


@dataclass(frozen=True)
class Documentation:
    """The docstrings and help topics of the Python that runs this."""

    def identity(self) -> str:
        return documentation.identity()

    def documents(self, column: str) -> Iterator[str]:
        yield from documentation.read()


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub; downloaded once, then memory-mapped."""

    name: str
    config: str | None
    split: str
    cache: str | None

    def identity(self) -> str:
        return json.dumps([self.name, self.config, self.split, self._load()._fingerprint])

    def documents(self, column: str) -> Iterator[str]:
        dataset = self._load()
        if column not in dataset.column_names:
            raise files.no_column(f"hf:{self.name}", column, dataset.column_names)
        for batch in dataset.select_columns(column).iter(batch_size=1024):
            for text in batch[column]:
                if text is not None and not isinstance(text, str):
                    raise UserError(
                        f"hf:{self.name}: column {column!r} holds {text!r:.40}, not text."
                    )
                if text and not text.isspace():
                    yield text

    def _load(self):
        # Imported here: it takes a second, and few runs read from the hub.
        import datasets

        # It says that it tries again, six times and twice each; what matters is how that ends.
        huggingface_hub.utils.logging.set_verbosity_error()
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        shown = f"hf:{self.name}" + (f":{self.config}" if self.config else "")
        try:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, cache_dir=self.cache
            )
        except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
            if datasets.config.HF_HUB_OFFLINE or "reach" in str(error):
                raise UserError(
                    f"{shown} is not in the cache and the hub cannot be reached; connect this "
                    "machine, or download the data set and give its files in data.sources."
                ) from None
            raise UserError(
                f"{shown} is not on the hub, or needs a login; check the name, or run `hf auth "
                "login`."
            ) from None
        except RuntimeError as error:
            if "script" not in str(error):
                raise
            raise UserError(
                f"{shown} comes with a script of its own, which `datasets` no longer runs; give a "
                "copy of it in Parquet files, or its files, in data.sources."
            ) from None
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
            # An unknown configuration or split comes as a ValueError that lists the valid ones.
            raise UserError(f"{shown}@{self.split}: {' '.join(str(error).split())}") from None


def _hub(name: str, cache: str | Path | None) -> Hub:
    dataset, _, split = name.removeprefix("hf:").rpartition("@")
    if not dataset or not split:
        raise UserError(
            f"{name!r} in data.sources lacks its split; write hf:NAME[:CONFIG]@SPLIT, for example "
            "hf:Salesforce/wikitext:wikitext-103-raw-v1@train."
        )
    dataset, _, config = dataset.partition(":")
    folder = None if cache is None else str(Path(cache).expanduser() / "datasets")
    return Hub(dataset, config or None, split, folder)


def _inside(folder: Path) -> Iterator[Path]:
    """The text files of a folder and of those below it, through links too, each folder once;
    names that begin with a dot are passed over.

    Raises:
      UserError: a folder cannot be read.
    """

    def refuse(error: OSError):
        raise UserError(
            f"{error.filename} in data.sources cannot be read ({error.strerror})."
        ) from None

    seen = set()
    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        # As of files: what a notebook or an environment keeps beside the texts is none.
        below[:] = sorted(name for name in below if not name.startswith("."))
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        for name in names:
            if not name.startswith(".") and files.is_recognised(Path(name)):
                yield Path(place, name)


def _paths(name: str) -> list[Path]:
    path = lines.local(name)
    if path.is_dir():
        inside = sorted(_inside(path))
        if not inside:
            raise UserError(
                f"The folder {path} in data.sources holds no text files; give files by name, or "
                f"use the suffixes {' '.join(files.RECOGNISED)} (and .xz .gz .bz2 .zst)."
            )
        return inside
    if path.exists():
        return [path]
    if glob.has_magic(name):
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
        if matches := [match for match in matches if match.is_file()]:
            return matches
        if glob.glob(str(path)):
            raise UserError(
                f"What {name!r} in data.sources matches are folders, and no file; name the folder "
                "above them, which is read with all that is in it."
            )
        raise UserError(f"No file matches {name!r} in data.sources; check the pattern.")
    raise UserError(
        f"{name!r} in data.sources is no file or folder here; give an existing path, a glob, "
        "hf:NAME@SPLIT or documentation."
    )
