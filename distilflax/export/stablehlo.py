"""The jitted forward pass as StableHLO, for a CPU, a CUDA GPU and a TPU in one file.

    model.stablehlo       the program, by `jax.export`; batch and length are dynamic
    weights.safetensors   its first argument, by path

Loading needs jax, numpy and safetensors, and none of this package: `jax.export.deserialize`, then
`call(weights, input_ids, attention_mask)`. JAX promises to read a program for six months after it
was written, and says so by a range of versions, which `load` checks first.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import export

from distilflax.errors import UserError, first_line
from distilflax.export.parity import Run
from distilflax.export.samples import Batch
from distilflax.export.subject import Subject, forward
from distilflax.weights import tensor_file

PROGRAM, WEIGHTS = "model.stablehlo", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write both files; returns what the manifest says of them."""
    flat = subject.flat()
    run = forward(subject)
    batch, length = export.symbolic_shape(
        "batch, length", constraints=[f"length <= {subject.encoder.max_positions}"]
    )
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in flat.items()}
    program = export.export(
        jax.jit(lambda weights, *given: run(unflatten_dict(weights, sep="/"), *given)),
        platforms=PLATFORMS,
    )(shapes, *[ids] * len(subject.inputs))
    (folder / PROGRAM).write_bytes(program.serialize())
    tensor_file.write(folder / WEIGHTS, flat)
    return {
        "platforms": list(program.platforms),
        "calling_convention": program.calling_convention_version,
        "length": [1, subject.encoder.max_positions],
    }


def load(folder: Path, manifest: dict[str, Any]) -> Run:
    """The program, ready to be called on this machine's device.

    Raises:
      UserError: a version that this jax does not read, a platform that the program is not for, or
        a file that is damaged.
    """
    version = manifest.get("calling_convention")
    least = export.minimum_supported_calling_convention_version
    most = export.maximum_supported_calling_convention_version
    if not isinstance(version, int) or not least <= version <= most:
        raise UserError(
            f"{folder / PROGRAM} has calling convention {version}, and jax {jax.__version__} reads "
            f"{least} to {most}; export it again, or use the jax that the manifest names."
        )
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in manifest.get("platforms", ()):
        raise UserError(
            f"{folder / PROGRAM} is for {', '.join(manifest.get('platforms', ()))}, and this "
            f"machine's jax runs on {platform}; set JAX_PLATFORMS=cpu, or export it again."
        )
    try:
        program = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    except Exception as error:  # the flatbuffer's own errors are of every kind
        reason = first_line(error)
        raise UserError(f"{folder / PROGRAM} cannot be read ({reason}); copy it again.") from None
    entries = tensor_file.read_header(folder / WEIGHTS)
    weights = jax.device_put(dict(tensor_file.read(entries.items())))
    # Compiled once for each shape: what `call` itself would do anew at every call.
    call = jax.jit(program.call)
    inputs = len(program.in_avals) - len(entries)

    def run(batch: Batch) -> dict[str, np.ndarray]:
        given = (array.astype(np.int32) for array in batch[:inputs])
        return jax.device_get(call(weights, *given))

    return run
