"""Where every array lives: the mesh, and one table from parameter paths to partition specs.

The mesh has three axes, all `AxisType.Auto`, so XLA inserts the collectives:

- `data`: a batch is split over it, parameters are copied along it;
- `fsdp`: a batch is split over it *and* so are the parameters and the optimizer state, gathered
  when a layer needs them (ZeRO-3, Rajbhandari et al. 2020, arXiv:1910.02054);
- `tensor`: one layer's arithmetic is split over it. Query, key, value and the first feed-forward
  kernel are split by output column, the two kernels that follow them by input row, so that each
  pair costs a single all-reduce (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053).

Shardings are computed from shapes (`jax.eval_shape`), before any array exists.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from distilflax import settings
from distilflax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# The first pattern that matches the whole path decides. Kernels are (in, out), tables (rows,
# width). What is replicated is written down as replicated: nothing gets there by default.
RULES: tuple[tuple[str, P], ...] = (
    # Rows of the vocabulary over `tensor`: the tied decoder then computes its own slice of the
    # logits on each device, and the vocabulary losses reduce over the slices.
    (r".*/embeddings/word", P("tensor", "fsdp")),
    (r"mlm_head/decoder", P("tensor", "fsdp")),
    # A few hundred rows: not worth splitting by row.
    (r".*/embeddings/(position|token_type)", P(None, "fsdp")),
    # Heads lie side by side in the output columns, so a column split is a split by heads.
    (r".*/attention/(query|key|value)/kernel", P("fsdp", "tensor")),
    (r".*/attention/output/kernel", P("tensor", "fsdp")),
    (r".*/ffn/up/kernel", P("fsdp", "tensor")),
    (r".*/ffn/down/kernel", P("tensor", "fsdp")),
    (r"projections/.*/kernel", P("fsdp", None)),
    # Each runs once for the whole model, and what follows it reads the full width.
    (r".*/pooler/kernel", P("fsdp", None)),
    (r"mlm_head/transform/kernel", P("fsdp", None)),
    # A few outputs a label: splitting those would leave most devices without any.
    (r"task_head/.*/kernel", P("fsdp", None)),
    # One number for each column: gathering them would cost more than holding them.
    (r".*/bias", P()),
    (r".*/scale", P()),
)


def make_mesh(
    mesh: settings.Mesh, batch_size: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh with axes `data`, `fsdp` and `tensor` over `devices` (default: all there are).

    `mesh.data = -1` takes what the other two leave. With `batch_size` (sequences that one pass of
    the model sees over all devices) the split of a batch is checked as well.

    Raises:
      UserError: the axes do not multiply to the number of devices, or the batch does not divide.
    """
    devices = jax.devices() if devices is None else list(devices)
    rest = mesh.fsdp * mesh.tensor
    data = len(devices) // rest if mesh.data == -1 else mesh.data
    if data * rest != len(devices) or data == 0:
        asked = f"data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor}"
        raise UserError(
            f"config.mesh: {asked} does not make up the {len(devices)} devices that are here; "
            "choose axes whose product is that number, or data=-1 for what fsdp and tensor leave."
        )
    ways = data * mesh.fsdp
    if batch_size is not None and batch_size % ways:
        raise UserError(
            f"config.training: a pass over {batch_size} sequences (batch_size / accumulate) does "
            f"not divide over data={data} x fsdp={mesh.fsdp}; choose a multiple of {ways}."
        )
    return jax.make_mesh(
        (data, mesh.fsdp, mesh.tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as text: `encoder/layers_0/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def param_shardings(mesh: Mesh, shapes: Any) -> Any:
    """The sharding of every parameter, from the table `RULES`.

    A dimension that an axis does not divide stays whole on that axis (30,522 words over 4 devices,
    say): XLA would otherwise pad it, and a checkpoint would depend on the padding.

    Args:
      shapes: tree of anything with a `.shape`, such as `jax.eval_shape` returns.

    Returns:
      The same tree of `NamedSharding`.

    Raises:
      UserError: a parameter that meets no rule.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _dividing(mesh, _rule(path_name(path)), leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def optimizer_shardings(
    optimizer: optax.GradientTransformation, state_shapes: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Shardings of an optimizer state: moments lie with their parameters, counters everywhere.

    Args:
      state_shapes: `jax.eval_shape(optimizer.init, params)`.
      shardings: what `param_shardings` gave for those parameters.
    """
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state_shapes,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def place(tree: Any, shardings: Any) -> Any:
    """`tree` (numpy or jax arrays) as global jax arrays that lie as `shardings` say.

    Always a copy: the result is about to be donated to the step, and a student that shared its
    embeddings with the teacher would take the teacher's memory with it. (`device_put(...,
    may_alias=False)` still shares the shard that is already in place; numpy memory is never
    donated.)
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        there = jax.device_put(leaf, sharding)
        return jnp.copy(there) if isinstance(leaf, jax.Array) else there

    return jax.tree.map(put, tree, shardings)


def _rule(name: str) -> P:
    for pattern, spec in RULES:
        if re.fullmatch(pattern, name):
            return spec
    raise UserError(
        f"parameter {name!r} meets no sharding rule; add one to RULES in "
        "distilflax/train/sharding.py that says how it is split."
    )


def _dividing(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> P:
    """`spec` without the axes that do not divide their dimension."""
    kept = []
    for axis, size in zip(spec, shape, strict=False):
        ways = math.prod(mesh.shape[name] for name in (axis,) if name is not None)
        kept.append(axis if size % ways == 0 else None)
    return P(*kept)


def on_host(mesh: Mesh, tree: Any) -> Any:
    """Whole numpy arrays on every process, wherever the parts are."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), whole)
