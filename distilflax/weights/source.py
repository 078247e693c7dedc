"""Where a model comes from: a folder, a Python package that ships one, or the Hugging Face hub."""

import importlib.util
import re
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download

from distilflax.errors import UserError, first_line
from distilflax.text.lines import local
from distilflax.weights import tensor_file

PACKAGE = "package:"

# Weights, descriptions and vocabularies. No pickle, no code, no other framework's weights.
DOWNLOADED = ["*.safetensors", "*.json", "*.txt"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?", re.ASCII)


def find(path: str | Path) -> Path:
    """The local folder that `path` means, downloaded if need be.

    `path` is an existing folder; `package:NAME/SUBFOLDER`, a folder inside an installed package
    (found without importing it); or a hub name, `NAME`, `OWNER/NAME` or `OWNER/NAME@REVISION`.
    A folder that exists is taken before a hub name of the same spelling.

    Raises:
      UserError: there is no such folder or package, the hub has or gives no such model, or none
        in safetensors (with the way to convert a pickle).
    """
    text = str(path).strip()
    if not text:
        raise UserError("No model was named: give a folder, a hub name or package:NAME/SUBFOLDER.")
    if text.startswith(PACKAGE):
        return _in_package(text)
    folder = local(text)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{text} is a file; give the folder that holds config.json and weights.")
    if not _HUB_NAME.fullmatch(text):
        raise UserError(
            f"There is no folder {text}, and it cannot be a hub name (OWNER/NAME) either."
        )
    return _from_hub(text)


def short_name(path: str | Path) -> str:
    """The last two steps of what `find` takes, which tell most models apart."""
    return "/".join(str(path).removeprefix(PACKAGE).rstrip("/").split("/")[-2:])


def _in_package(text: str) -> Path:
    package, _, inside = text.removeprefix(PACKAGE).partition("/")
    # A dotted name would import its parents; a plain one is looked up and runs nothing.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{text}: no package {package!r} is installed; install it "
            f"(pip install {package.replace('_', '-')}) or name another model."
        )
    if ".." in PurePosixPath(inside).parts or PurePosixPath(inside).is_absolute():
        raise UserError(f"{text}: the subfolder must lie inside the package.")
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise UserError(f"{text}: the package {package!r} has no folder {inside!r}.")
    return folder


def _from_hub(name: str) -> Path:
    repository, _, revision = name.partition("@")
    try:
        folder = Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=DOWNLOADED)
        )
    except (OSError, ValueError, RuntimeError) as error:
        # The hub's own errors (not found, gated, offline) and those of the network are of these
        # kinds; the first line says which, and the rest is addressed to programmers.
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"There is no folder {name}, and the Hugging Face hub did not give that model "
            f"({type(error).__name__}: {reason}); check the spelling and the network, or download "
            "it elsewhere and give the folder."
        ) from None
    # At any depth: sentence-transformers may have the encoder in a subfolder.
    if not any(folder.rglob("*.safetensors")):
        raise UserError(
            f"{name} on the Hugging Face hub has no weights in safetensors, so perhaps only as a "
            "pickle, which can run any code when it is read and is not downloaded; convert it "
            f"where you trust it, with {tensor_file.conversion(folder, repository, revision)}."
        )
    return folder
