"""manifest.json: what an export is, how it was checked, and what its files should be."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilflax import json_file
from distilflax.errors import UserError, choose_from
from distilflax.models import OUTPUT_ACTIVATIONS, PROBLEMS
from distilflax.text import on_disk
from distilflax.train import machine
from distilflax.weights import writer
from distilflax.weights.sentence import prompts_hold

FILE = "manifest.json"
# Counts up when a reader of older exports would be wrong about newer ones.
VERSION = 1

_MORE_PACKAGES = ("onnx", "onnxruntime", "ai-edge-litert", "safetensors")


def write(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Describe every file of `folder` beside `content`; returns the whole manifest."""
    manifest = {
        "version": VERSION,
        **content,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": on_disk.sha256(folder / name)}
            for name in files(folder)
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "commit": machine.commit(),
    }
    writer.write_json(folder / FILE, manifest)
    return manifest


def read(folder: Path, formats: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The manifest of an export whose files are all there and unchanged.

    Args:
      formats: the files without which there is no export of a format, by its name.

    Raises:
      UserError: no export, one of another version, a value of another kind than it should be, or a
        file that is missing or was changed.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} is no export: it has no {FILE}; give the folder of one.")
    manifest = json_file.read(folder / FILE)
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder / FILE} is of version {str(manifest.get('version'))[:20]} and this package "
            f"reads {VERSION}; export the model again."
        )
    name = str(manifest.get("format"))[:40]
    if name not in formats:
        raise UserError(f"{folder / FILE}: {name!r} is no format; {choose_from(name, formats)}")
    model = manifest.get("model")
    if not isinstance(model, dict) or not _model_holds(model):
        raise UserError(f"{folder / FILE} does not describe its model; export the model again.")
    for key, holds in _OF_FORMATS.items():
        if key in manifest and not holds(manifest[key]):
            raise UserError(
                f"{folder / FILE}: {key} is {manifest[key]!r:.80}, which no export has; export the "
                "model again."
            )
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not listed.keys() >= set(formats[name]):
        raise UserError(
            f"{folder / FILE} should list its files, {', '.join(formats[name])} among them; export "
            "the model again."
        )
    for file, entry in listed.items():
        path = folder / file
        # A plain name or one inside of the folder: the manifest comes from outside.
        if ".." in Path(file).parts or Path(file).is_absolute():
            raise UserError(f"{folder / FILE} names {file[:80]!r}, which is outside the folder.")
        if not path.is_file():
            raise UserError(f"{folder} lacks {file}, which its {FILE} lists; copy it again.")
        described = isinstance(entry, dict) and _is_count(entry.get("bytes"))
        if not described or on_disk.sha256(path) != entry.get("sha256"):
            raise UserError(
                f"{path} is not the file that {FILE} describes (another checksum); copy or export "
                "it again."
            )
    return manifest


def _model_holds(model: dict[str, Any]) -> bool:
    """Whether what those who open an export ask of its model is there, and of its kind."""
    prompts, default = model.get("prompts", {}), model.get("default_prompt")
    return (
        all(isinstance(model.get(key), str) for key in ("name", "part", "head"))
        and all(_are_texts(model.get(key)) for key in ("inputs", "outputs"))
        and all(_is_count(model.get(key)) for key in ("vocab_size", "max_positions"))
        and _is_count(model.get("max_seq_length", 1))
        and model.get("problem", "single") in PROBLEMS
        and model.get("activation", "") in OUTPUT_ACTIVATIONS
        and isinstance(model.get("out_of_scope", ""), str)
        and _is_share(model.get("threshold", 0.0))
        and prompts_hold(prompts, default)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _are_graphs(value: Any) -> bool:
    return isinstance(value, dict) and all(n is None or _is_count(n) for n in value.values())


# What formats add, by its key: fewest and most tokens, devices, and the length of each graph.
_OF_FORMATS = {"length": _are_counts, "platforms": _are_texts, "signatures": _are_graphs}


def replaceable(folder: Path) -> bool:
    """Whether `folder` is nothing but an export: what its manifest lists, and no file besides."""
    try:
        listed = json_file.parse((folder / FILE).read_bytes(), FILE)["files"]
        return set(files(folder)) == set(listed)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def files(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest, by its path from there."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != FILE)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a file holds."""
    return machine.versions(_MORE_PACKAGES)
