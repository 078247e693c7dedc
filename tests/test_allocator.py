"""What training frees it keeps, in whichever thread: clearing pages anew costs as much as work."""

import platform
import subprocess
import sys

import pytest

from distilflax import allocator

# Pages of 64 MB that are filled and freed, again and again, by a thread that came after numpy's.
FILLED = """
import sys
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", {command!r}]
import experiments
assert "numpy" not in sys.modules
import resource, threading
import numpy
def fill():
    for _ in range(4):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        b"x" * (64 << 20)
faults = []
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(faults[-1] - faults[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_training_clears_its_pages_once_and_what_has_many_shapes_is_left_alone():
    def faults(command):
        code = FILLED.format(command=command)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert faults("experiments.finetune") > 20_000  # 2 x 16,384 pages
    assert faults("experiments.distill") < 1_000


def test_where_arrays_live_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert not allocator.keep_freed()
