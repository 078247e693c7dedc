"""Safetensors files in and out: every claim of a header is checked before memory is allocated.

The library that reads the tensors checks much of this too, but its sentences name neither the file
nor the tensor, and a mapping of a file that lies about its size is better not made at all.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.weights import sentence

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Bytes an element, for every type a file may hold; only those in READABLE can be weights.
_ITEMSIZE = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2}
_ITEMSIZE |= {"F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
READABLE = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}

_MOST_DIMENSIONS = 8


class Entry(NamedTuple):
    """What a file's header says of one tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def entries(folder: Path, whole: Path | None = None) -> dict[str, Entry]:
    """Every tensor of the model in `folder` by name, from headers alone: no tensor is read.

    `whole` is the sentence-transformers folder that `folder` is a part of.

    Raises:
      UserError: no safetensors there (with the way to convert a pickle), a shard that is missing,
        doubled or outside of the folder, or a header that does not describe its file.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickles:
        raise UserError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), which can run any code "
            "when it is read; convert it where you trust it, with "
            f"{conversion(whole or folder, str(whole or folder))}."
        )
    raise UserError(
        f"{folder} has no weights: expected {SINGLE}, or {INDEX} with the shards that it names."
    )


def conversion(folder: Path, name: str, revision: str = "") -> str:
    """What writes the pickle of `folder` as safetensors, with all that lies beside it: the pooling
    and prompts of sentence-transformers, or the tokenizer."""
    given = f'"{name}"' + (f', revision="{revision}"' if revision else "")
    if (folder / sentence.MODULES).is_file():
        return f'sentence-transformers: SentenceTransformer({given}).save("NEW_FOLDER")'
    classes = f"({_class_of(folder)}, AutoTokenizer)"
    each = f'c.from_pretrained({given}).save_pretrained("NEW_FOLDER")'
    return f"transformers: [{each} for c in {classes}]"


def _class_of(folder: Path) -> str:
    """The class that the config names: another would drop its head, or draw a new one."""
    path = folder / "config.json"
    named = json_file.read_if_there(path).get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) and first.isidentifier() else "AutoModel"


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors that the file at `path` holds, after checking that they fill it exactly.

    The format (https://github.com/huggingface/safetensors#format): 8 bytes of little-endian length,
    that many bytes of JSON, then the tensors end to end, without gaps or overlaps.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise UserError(
                    f"{path} is truncated or not a safetensors file: it has {size:,} bytes, "
                    "too few for the header that it announces; fetch or save it again."
                )
            if length > json_file.LARGEST:
                raise UserError(f"{path} announces an absurd header of {length:,} bytes.")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None

    header = json_file.parse(text, f"the header of {path}")
    if not isinstance(header, dict):
        raise UserError(f"the header of {path} should be a JSON object of tensors.")
    header.pop("__metadata__", None)
    found, spans = {}, []
    for name, claim in header.items():
        entry, begin, end = _check_claim(path, name, claim)
        found[name] = entry
        spans.append((begin, end, name))
    _check_spans(path, sorted(spans), size - 8 - length)
    return found


def _check_claim(path: Path, name: str, claim: object) -> tuple[Entry, int, int]:
    """One header entry and its span of bytes, after checking that shape and span agree."""
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where} should be described by dtype, shape and data_offsets.")
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEMSIZE:
        raise UserError(f"{where} has the unknown dtype {str(dtype)[:40]!r}.")
    if not _whole_numbers(shape) or len(shape) > _MOST_DIMENSIONS:
        raise UserError(f"{where} has a shape that is not a list of whole numbers.")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where} has data_offsets that are not a begin and an end.")
    begin, end = offsets
    # Python's integers do not overflow: a shape of 2**62 x 4 is simply too large for its span.
    wanted = math.prod(shape) * _ITEMSIZE[dtype]
    if wanted != end - begin:
        raise UserError(
            f"{where} has shape {_show(shape)} of {dtype}, which does not take the "
            f"{end - begin:,} bytes between its data_offsets."
        )
    return Entry(path, dtype, tuple(shape)), begin, end


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """`spans` (sorted) must fill the `size` bytes after the header: no gap, overlap or rest."""
    at, before = 0, "the header"
    for begin, end, name in spans:
        if begin != at:
            what = "overlaps" if begin < at else "leaves a gap after"
            raise UserError(f"{path}: tensor {name[:200]!r} {what} {before[:200]}.")
        at, before = end, repr(name)
    if at > size:
        raise UserError(
            f"{path} is truncated: its tensors need {at:,} bytes after the header and there are "
            f"{size:,}; fetch or save it again."
        )
    if at < size:
        raise UserError(f"{path} has {size - at:,} bytes after its last tensor; it is damaged.")


def _sharded(folder: Path) -> dict[str, Entry]:
    """The tensors of all shards, which must be exactly those that the index names."""
    index = folder / INDEX
    names = json_file.read(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{index} should have a weight_map from tensor names to file names.")
    found: dict[str, Entry] = {}
    for file in sorted(set(names.values())):
        # A plain name only: an index from outside must not make us open files of its choosing.
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{index} names the shard {file[:200]!r}, which is outside the folder.")
        if not (folder / file).is_file():
            raise UserError(f"{folder} lacks the shard {file}, which its {INDEX} names.")
        for name, entry in read_header(folder / file).items():
            if names.get(name) != file:
                raise UserError(
                    f"{folder / file} holds {name[:200]!r}, which {INDEX} does not say."
                )
            found[name] = entry
    for name, file in names.items():
        if name not in found:
            raise UserError(f"{folder / file} lacks tensor {name[:200]!r}, which {INDEX} promises.")
    return found


def read(
    wanted: Iterable[tuple[str, Entry]],
) -> Iterator[tuple[str, Float[np.ndarray, "*shape"]]]:
    """The wanted tensors as float32 arrays of their own memory, file by file.

    Raises:
      UserError: the tensor is not of float32, float16 or bfloat16, or has a NaN or an infinity.
    """
    by_file: dict[Path, list[str]] = {}
    for name, entry in wanted:
        if entry.dtype not in READABLE:
            raise UserError(
                f"{entry.file}: tensor {name!r} is {entry.dtype}; weights must be "
                f"{', '.join(READABLE)} (a quantised model has to be dequantised first)."
            )
        by_file.setdefault(entry.file, []).append(name)
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="np") as file:
                for name in names:
                    tensor = file.get_tensor(name).astype(np.float32, copy=False)
                    if not np.isfinite(tensor).all():
                        raise UserError(
                            f"{path}: tensor {name!r} has values that are not finite; the model "
                            "diverged, or was stored in too few bits."
                        )
                    yield name, tensor
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}).") from None


def write(path: Path, tensors: Mapping[str, Shaped[np.ndarray, "*shape"]]) -> None:
    """Write a safetensors file that transformers accepts, and see it onto the disk.

    Raises:
      OSError: as the file system does; the library's own exception is turned into it.
    """
    try:
        # Without this metadata transformers refuses to say which framework wrote the file.
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def _show(shape: list[int]) -> str:
    text = " x ".join(str(size) if size < 10**18 else "(absurd)" for size in shape)
    return text or "()"
