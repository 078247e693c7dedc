"""Host arrays to global arrays: rows spread over the mesh's `data` and `fsdp` axes.

There is no prefetch to the device here. A step is dispatched asynchronously and its metrics are
read one step late, so the next batch is already on its way while the device computes.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Shaped

from distilflax.errors import UserError

ROW_AXES = ("data", "fsdp")  # parameters are sharded over fsdp, but each shard has its own rows


def row_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: axis 0 over (data, fsdp), everything else replicated."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def check_divides(batch_size: int, mesh: Mesh, place: str = "config.training.batch_size") -> None:
    """Raises `UserError` unless `batch_size` rows spread evenly over the mesh."""
    shards = row_shards(mesh)
    if batch_size % shards:
        axes = " x ".join(f"{name}={mesh.shape[name]}" for name in ROW_AXES)
        raise UserError(
            f"{place} {batch_size} does not divide over the mesh's {shards} shards ({axes}); "
            f"make it a multiple of {shards} or change config.mesh."
        )


def process_slice(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process loads slice `index` of `count` equal slices of each batch.

    That is (process_index, process_count) on most meshes, but not where a tensor axis spans
    processes, which then must load the same rows, nor where the mesh orders them otherwise.

    Raises:
      UserError: the rows of this process are not one such slice.
    """
    names = (*ROW_AXES, *(name for name in mesh.axis_names if name not in ROW_AXES))
    by_row = mesh.devices.transpose([mesh.axis_names.index(name) for name in names])
    here = jax.process_index()
    held = [
        any(device.process_index == here for device in replicas)
        for replicas in by_row.reshape(row_shards(mesh), -1)
    ]
    return slice_of_shards(np.array(held), here)


def slice_of_shards(held: Bool[np.ndarray, "shards"], process: int) -> tuple[int, int]:
    """(index, count) such that `held` is exactly slice `index` of `count` equal slices."""
    width = max(int(held.sum()), 1)
    index, count = int(held.argmax()) // width, len(held) // width
    if len(held) % width or not held[index * width : (index + 1) * width].all():
        raise UserError(
            f"the mesh gives process {process} the row shards {np.flatnonzero(held).tolist()}, "
            f"which are not one of equal slices of {len(held)}; order the mesh's devices by "
            "process."
        )
    return index, count


def to_global(
    batch: Mapping[str, Shaped[np.ndarray, "rows ..."]], mesh: Mesh
) -> dict[str, Shaped[Array, "batch ..."]]:
    """This process's rows of a batch as global arrays; every process must call it.

    Raises:
      UserError: the global batch does not divide over the mesh.
    """
    _, count = process_slice(mesh)
    sharding = row_sharding(mesh)
    placed = {}
    for name, rows in batch.items():
        check_divides(len(rows) * count, mesh)
        shape = (len(rows) * count, *rows.shape[1:])
        placed[name] = jax.make_array_from_process_local_data(sharding, rows, shape)
    return placed


def row_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are divided into."""
    return int(np.prod([mesh.shape[name] for name in ROW_AXES]))
