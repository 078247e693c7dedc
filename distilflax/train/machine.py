"""What a run or a measurement was made on: without it a figure says little.

Nothing here names the machine, its user or its folders.
"""

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax

PACKAGES = (
    "distilflax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tokenizers",
)

CPUINFO = Path("/proc/cpuinfo")


def record() -> dict:
    """Time, machine, versions and commit of this process, as JSON values."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **describe(),
        "versions": versions(),
        "commit": commit(),
    }


def describe() -> dict[str, str | int]:
    """The processor, its cores that this process may use, and the devices that jax runs on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Of Python, of the packages that decide what is computed, and of `more` where installed."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name not in more:
                found[name] = "not installed"  # run from a checkout
    return found


def commit() -> str | None:
    """The git commit of this code, "-dirty" if it was changed since; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository, which does not track it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None


def processor_key() -> str:
    """A short name for what a compiled CPU program depends on beside the program itself."""
    try:
        lines = CPUINFO.read_text().splitlines()
        told = ("model name", "flags", "Features", "CPU part")
        processor = sorted({line for line in lines if line.startswith(told)})
    except OSError:
        processor = [platform.machine(), platform.processor()]
    text = "\n".join([metadata.version("jaxlib"), *processor])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def instructions() -> set[str]:
    """What the processor can do, as Linux names it: avx2, avx512_vnni, asimddp, ... or nothing."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    told = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set().union(*(line.split() for line in told))


def _processor() -> str:
    """The model's name: `platform` has only the architecture on Linux."""
    try:
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
