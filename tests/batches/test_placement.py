"""Placement: global arrays over (data, fsdp), and meshes that a batch does not fit."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from distilflax.batches.placement import check_divides, process_slice, slice_of_shards, to_global
from distilflax.errors import UserError


def mesh_of(data, fsdp, tensor):
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh((data, fsdp, tensor), axes, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("shape", ((8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)))
def test_rows_are_spread_and_keep_their_values(shape):
    mesh = mesh_of(*shape)
    batch = {
        "input_ids": np.arange(48, dtype=np.int32).reshape(16, 3),
        "weight": np.ones(16, np.float32),
    }
    placed = to_global(batch, mesh)
    for name, rows in batch.items():
        np.testing.assert_array_equal(placed[name], rows)
        assert placed[name].sharding.spec == PartitionSpec(("data", "fsdp"))
        shard = placed[name].addressable_shards[0].data
        assert len(shard) == 16 // (shape[0] * shape[1])
    assert process_slice(mesh) == (0, 1)


def test_a_batch_that_does_not_divide_is_refused():
    mesh = mesh_of(4, 2, 1)
    expected = r"training.batch_size 12 .* 8 shards \(data=4 x fsdp=2\); make it a multiple of 8"
    with pytest.raises(UserError, match=expected):
        check_divides(12, mesh)
    with pytest.raises(UserError, match=expected):
        to_global({"input_ids": np.zeros((12, 4), np.int32)}, mesh)
    with pytest.raises(UserError, match=r"^config.evaluation.batch_size 12"):
        check_divides(12, mesh, "config.evaluation.batch_size")
    check_divides(16, mesh)


def test_the_slice_of_a_process_follows_the_mesh_and_not_its_number():
    shards = np.arange(8)
    assert slice_of_shards(shards // 2 == 0, 0) == (0, 4)
    assert slice_of_shards(shards // 2 == 3, 0) == (3, 4)
    assert slice_of_shards(shards >= 0, 5) == (0, 1)  # a tensor axis over all processes
    for held in (shards % 2 == 0, (shards == 1) | (shards == 2), shards < 3):
        with pytest.raises(UserError, match=r"process 0 the row shards .*order the mesh's devices"):
            slice_of_shards(held, 0)
