"""What a file costs beside its speed: bytes, and in a fresh process memory and the first answer.

Processes take turns, as the timings do. The files have been read before, so that what is counted is
imports, opening, preparing weights and one answer, and not the disk. The row "nothing" is Python
with numpy, which is in all others.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from distilflax.errors import UserError
from experiments import cold

NOTHING = "nothing"
_ROOT = Path(__file__).parents[1]


def measure(
    opened: Mapping[str, tuple[str, Path]], threads: int, shape: tuple[int, int], starts: int
) -> dict[str, dict]:
    """For each name: file_bytes, peak_bytes and first_answer_seconds, the last two of every start.

    Args:
      opened: name to (one of `cold.RUNTIMES`, the file or folder that it opens).
      shape: batch and length of the one answer.

    Raises:
      UserError: a process that ends without an answer.
    """
    everyone = {**opened, NOTHING: (NOTHING, Path(os.devnull))}
    found: dict[str, dict] = {
        name: {"file_bytes": size(path), "peak_bytes": [], "first_answer_seconds": []}
        for name, (_, path) in everyone.items()
    }
    for _ in range(starts):
        for name, (runtime, path) in everyone.items():
            given = [runtime, path, threads, *shape]
            command = [sys.executable, "-m", cold.__name__, *map(str, given)]
            begun = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env=_environment())
            seconds = time.perf_counter() - begun
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise UserError(f"{name} gave no answer in a process of its own: {reason[:300]}")
            found[name]["peak_bytes"].append(int(done.stdout.split()[-1]))
            found[name]["first_answer_seconds"].append(seconds)
    return found


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _environment() -> dict[str, str]:
    """With this checkout to import from, for the runtime that is our own."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
