"""How much memory a program takes, how much there is, and one sentence where it does not fit."""

import resource
from pathlib import Path
from typing import Any

import jax

from distilflax.errors import UserError

_MEMINFO = Path("/proc/meminfo")
# Of a container: version 2 of Linux's control groups, then version 1.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available() -> int | None:
    """Bytes that can still be taken: of the smallest local accelerator, or of main memory.

    None where the system does not say.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = [one.memory_stats() or {} for one in jax.local_devices()]
        if not all("bytes_limit" in one for one in stats):
            return None
        return min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
    return min((free for free in (_free_on_machine(), *_free_in_container()) if free), default=None)


def needed(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that a compiled program holds while it runs: arguments, results, and what is between.

    Of the memory that `available` speaks of.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return _sharing() * (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def held(arrays: Any) -> int:
    """Bytes that arrays on the devices take of the memory that `available` speaks of."""
    shards = (leaf.addressable_shards[0].data for leaf in jax.tree.leaves(arrays))
    return _sharing() * sum(shard.nbytes for shard in shards)


def check_arms(compiled: jax.stages.Compiled, arms: int, shared: Any) -> None:
    """Refuses a program of so many arms where it does not fit; nothing has been allocated yet.

    Args:
      shared: the arrays that all arms use, the teacher's; already in memory.

    Raises:
      UserError: how much it would take, how much there is, and how many arms would fit.
    """
    takes, room = needed(compiled), available()
    if takes is None or room is None:
        return
    takes -= held(shared)
    if takes <= room:
        return
    fits = int(room // (takes / arms))
    remedy = (
        f"set config.ablation.arms_at_once={fits}, which fits"
        if fits
        else "not even one does: lower config.training.batch_size or config.data.max_length"
    )
    # Another folder, because this one belongs to its config: a group's holds the arms as grouped.
    raise UserError(
        f"{arms} arms in one program take {takes / 1e9:,.1f} GB of memory and {room / 1e9:,.1f} GB "
        f"are left; {remedy}, and give another --workdir."
    )


def _sharing() -> int:
    """How many devices take of one memory: virtual devices of a CPU do."""
    devices = jax.local_devices()
    return len(devices) if devices[0].platform == "cpu" else 1


def _free_on_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
        (kilobytes,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return 1024 * int(kilobytes)
    except (OSError, ValueError):
        return None


def _free_in_container() -> list[int]:
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    for limit in _LIMITS:
        try:
            found.append(max(1, int(limit.read_text()) - own))
        except (OSError, ValueError):
            continue  # No such file, or the word "max".
    return found
