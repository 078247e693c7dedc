"""ONNX files: the graph with its weights stored in one way or another, and ONNX Runtime's session.

Only the files called `onnx_` need the packages of the extra `export`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from distilflax.errors import UserError, choose_from, first_line
from distilflax.export import onnx_model
from distilflax.export.calibration import Calibration
from distilflax.export.onnx_blocks import BlockWeights
from distilflax.export.onnx_static import StaticInt8
from distilflax.export.onnx_weights import Full, Int8Weights, PartlyFloat
from distilflax.export.parity import Run
from distilflax.export.samples import Batch
from distilflax.export.subject import Subject
from distilflax.models.int8 import LARGEST, LARGEST_ROW
from distilflax.train import machine
from distilflax.weights import writer

FILE = "model.onnx"
RANGES = ("portable", "full", "auto")
_BLOCK_BITS = {"block4": 4, "block8": 8}
# What the processor calls the instructions that add in 32 bits: x86 and ARM.
_WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}


def write(
    subject: Subject,
    folder: Path,
    *,
    stored: str,
    fused: bool,
    opset: int,
    int8_range: str,
    calibration: Calibration | None,
    in_float: Collection[str],
) -> dict[str, Any]:
    """Write model.onnx and, for the libraries that look for it, config.json.

    Args:
      stored: float32, float16, int8, static (int8 with calibrated activations), or block8 and
        block4 for the weights alone.
      fused: with ONNX Runtime's own attention.
      opset: of the standard operators.
      int8_range: of `RANGES`; `auto` is what this machine's processor needs.
      calibration: of `calibration.measure`, for static int8.
      in_float: the groups (see `groups`) that are left in float32.

    Raises:
      UserError: an unknown opset or range, no calibration where there has to be one, or a model too
        large for one file.
    """
    if stored in ("int8", "static"):
        largest = _largest(int8_range)
    if stored == "float32":
        storage, details = Full(), {"weights": "float32"}
    elif stored == "float16":
        storage, details = Full(np.float16), {"weights": "float16, computed with in float32"}
    elif stored in _BLOCK_BITS:
        bits = _BLOCK_BITS[stored]
        told = f"int{bits} in blocks, tables int8, computed with in float32"
        storage = BlockWeights(bits)
        details = {"weights": told, "operators": "ONNX Runtime's MatMulNBits"}
    else:
        # The masked-LM head multiplies with the table of words: the same numbers, so their range.
        kept = largest, largest if subject.head == "masked_lm" else LARGEST_ROW
        told = f"int8, -{largest} to {largest}, one scale for each output"
        details = {"weights": told, "activations": "uint8, dynamic"}
        if stored == "static":
            if calibration is None:
                raise UserError(
                    "Static int8 is measured on text of the kind the model is for; give a file of "
                    "it in --calibration."
                )
            storage = StaticInt8(calibration.ranges, *kept)
            told = f"{calibration.texts} texts, percentile {calibration.percentile:g}"
            details["activations"] = f"uint8, calibrated on {told}"
        else:
            storage = Int8Weights(*kept)
    if in_float:
        storage, details["in_float"] = PartlyFloat(storage, in_float), sorted(in_float)
    model = onnx_model.build(
        subject.settings(),
        subject.flat(),
        storage,
        with_types=subject.with_types,
        fused=fused,
        opset=opset,
    )
    (folder / FILE).write_bytes(model.SerializeToString())
    headed = (subject.checkpoint.head, subject.checkpoint.own) if subject.part == "head" else ()
    config = writer.describe(subject.encoder, subject.params, *headed)
    writer.write_json(folder / "config.json", config)
    operators = "ONNX Runtime's attention, else standard" if fused else "standard"
    return {"opset": opset, "operators": operators} | details


def _largest(int8_range: str) -> int:
    """The greatest weight in magnitude."""
    if int8_range not in RANGES:
        raise UserError(f"--int8_range is {int8_range!r}; {choose_from(int8_range, RANGES)}")
    if int8_range == "auto":
        int8_range = "full" if has_wide_sums() else "portable"
    return LARGEST[int8_range]


def has_wide_sums() -> bool:
    """Whether this processor adds products of 8 bits in 32, where they do not saturate."""
    return bool(_WIDE_SUMS & machine.instructions())


def session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU with so many threads; 0 is its own choice.

    Raises:
      UserError: a file that this version does not load.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class but this one
        reason = first_line(error)
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} does not load {path} ({reason[:300]}); export "
            "with an older --opset, or update it."
        ) from None


def load(folder: Path, manifest: dict[str, Any]) -> Run:
    """The file in a session; raises as `session` does."""
    del manifest
    opened = session(folder / FILE)
    inputs = [value.name for value in opened.get_inputs()]
    outputs = [value.name for value in opened.get_outputs()]

    def run(batch: Batch) -> dict[str, np.ndarray]:
        given = {name: getattr(batch, name) for name in inputs}
        return dict(zip(outputs, opened.run(outputs, given), strict=True))

    return run
