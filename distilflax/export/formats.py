"""The formats: how each is written, and how it is opened again.

A new format is one entry of `FORMATS`. What `write` leaves in the folder is all that a user copies;
what it returns goes into the manifest, from which `load` knows how to open the files again.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distilflax import weights
from distilflax.errors import UserError, choose_from
from distilflax.export import card, numpy_model, stablehlo
from distilflax.export.calibration import Calibration
from distilflax.export.parity import Run
from distilflax.export.samples import Batch
from distilflax.export.subject import Subject, forward, open_subject
from distilflax.settings import Compute
from distilflax.weights import tensor_file, writer


@dataclass(frozen=True)
class Options:
    """What ONNX files may be told, see `onnx_file.write`; and LiteRT files: `lengths`, see
    `litert_file.write`."""

    opset: int = 17
    int8_range: str = "portable"
    calibration: Calibration | None = None
    in_float: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()


# What is read, by how the weights are stored; static int8 reads all.
_ONNX_OPTIONS = {
    "float32": ("opset",),
    "float16": ("opset", "in_float"),
    "int8": ("opset", "in_float", "int8_range"),
    "static": ("opset", "in_float", "int8_range", "calibration"),
    "block8": ("opset", "in_float"),
    "block4": ("opset", "in_float"),
}


def in_numpy(subject: Subject) -> Run:
    """The model in numpy, which every format is compared with."""
    return _as_run(numpy_model.Model(subject.settings(), subject.flat()))


def jitted(subject: Subject, compute: Compute | None = None) -> Run:
    """The model as it was trained, which the numpy one is compared with."""
    call = jax.jit(forward(subject, compute))
    # Once: as numpy arrays, all weights would be copied at every call.
    params = jax.device_put(subject.params)

    def run(batch: Batch) -> dict[str, np.ndarray]:
        given = (array.astype(np.int32) for array in batch[: len(subject.inputs)])
        return jax.device_get(call(params, *given))

    return run


def _as_run(model: numpy_model.Model) -> Run:
    def run(batch: Batch) -> dict[str, np.ndarray]:
        return model(batch.input_ids, batch.attention_mask, batch.token_type_ids)

    return run


@dataclass(frozen=True)
class Format:
    """`write` and `load` as in the module; `files` are those that no export of it is without;
    `exact` is float32 arithmetic on the same weights; `reference` is what it is compared with;
    `faster_than` the format that it has to beat here; `reads` which of `Options` it reads;
    `keeps_tokenizer` whether its tokenizer stays as it was."""

    write: Callable[[Subject, Path, Options], dict[str, Any]]
    load: Callable[[Path, dict[str, Any]], Run]
    files: tuple[str, ...]
    exact: bool = True
    reference: Callable[[Subject], Run] = in_numpy
    faster_than: str = ""
    reads: tuple[str, ...] = ()
    keeps_tokenizer: bool = False


def format_of(name: str) -> Format:
    """The entry of `FORMATS`; raises `UserError` where there is none."""
    if name not in FORMATS:
        raise UserError(f"--format is {name!r}; {choose_from(name, FORMATS)}")
    return FORMATS[name]


def _write_hf(subject: Subject, folder: Path, options: Options) -> dict[str, Any]:
    """The task head and what is below it, or all but it that the folder had; and a model card."""
    del options
    found, headed = subject.checkpoint, subject.part == "head"
    headless = {name: group for name, group in found.params.items() if name != "task_head"}
    # A pooler that no head reads is not in the subject's parameters.
    encoder = replace(found.encoder, pooler=subject.pooler) if headed else found.encoder
    weights.save(
        folder,
        encoder,
        subject.params if headed else headless,
        tokenizer_folder=found.folder,
        sentence=found.sentence,
        head=found.head if headed else None,
        own=found.own if headed else None,
    )
    (folder / card.FILE).write_text(card.write(subject), encoding="utf-8")
    return {}


def _load_hf(folder: Path, manifest: dict[str, Any]) -> Run:
    return in_numpy(open_subject(folder, manifest["model"]["part"]))


_NUMPY_FILES = ("weights.safetensors", "settings.json", "model.py")


def _write_numpy(subject: Subject, folder: Path, options: Options) -> dict[str, Any]:
    del options
    tensors, settings, program = (folder / name for name in _NUMPY_FILES)
    tensor_file.write(tensors, subject.flat())
    writer.write_json(settings, subject.settings())
    shutil.copyfile(numpy_model.__file__, program)
    return {}


def _load_numpy(folder: Path, manifest: dict[str, Any]) -> Run:
    del manifest
    return _as_run(numpy_model.load(folder))


def _write_stablehlo(subject: Subject, folder: Path, options: Options) -> dict[str, Any]:
    del options
    return stablehlo.write(subject, folder)


def _onnx(stored: str, *, fused: bool = False) -> Format:
    def write(subject: Subject, folder: Path, options: Options) -> dict[str, Any]:
        given = {name: getattr(options, name) for name in _ONNX_OPTIONS["static"]}
        return _onnx_file().write(subject, folder, stored=stored, fused=fused, **given)

    def load(folder: Path, manifest: dict[str, Any]) -> Run:
        return _onnx_file().load(folder, manifest)

    exact = stored == "float32"
    faster_than = ("onnx-ort" if fused else "onnx") if stored in ("int8", "static") else ""
    reads = _ONNX_OPTIONS[stored]
    return Format(write, load, ("model.onnx",), exact, faster_than=faster_than, reads=reads)


def _onnx_file():
    try:
        from distilflax.export import onnx_file
    except ModuleNotFoundError as error:
        raise UserError(
            f"The ONNX formats need the package {error.name}; pip install -e '.[export]'."
        ) from None
    return onnx_file


def _litert(*, int8: bool) -> Format:
    def write(subject: Subject, folder: Path, options: Options) -> dict[str, Any]:
        return _litert_file().write(subject, folder, int8=int8, lengths=options.lengths)

    def load(folder: Path, manifest: dict[str, Any]) -> Run:
        return _litert_file().load(folder, manifest)

    return Format(write, load, ("model.tflite",), exact=not int8, reads=("lengths",))


def _litert_file():
    try:
        from distilflax.export import litert_file
    except ModuleNotFoundError as error:
        raise UserError(
            f"The LiteRT formats need the package {error.name}; pip install -e '.[litert]'."
        ) from None
    return litert_file


FORMATS: dict[str, Format] = {
    "hf": Format(_write_hf, _load_hf, ("config.json", "model.safetensors"), keeps_tokenizer=True),
    "numpy": Format(_write_numpy, _load_numpy, _NUMPY_FILES, reference=jitted),
    "stablehlo": Format(_write_stablehlo, stablehlo.load, (stablehlo.PROGRAM, stablehlo.WEIGHTS)),
    "onnx": _onnx("float32"),
    "onnx-ort": _onnx("float32", fused=True),
    "onnx-fp16": _onnx("float16"),
    "onnx-int8": _onnx("int8"),
    "onnx-ort-int8": _onnx("int8", fused=True),
    "onnx-int8-static": _onnx("static"),
    "onnx-w8": _onnx("block8"),
    "onnx-w4": _onnx("block4"),
    "litert": _litert(int8=False),
    "litert-int8": _litert(int8=True),
}

# What `manifest.read` asks for, by format.
FILES = {name: form.files for name, form in FORMATS.items()}
