"""Large arrays are not cleared page by page at every step: large pages, or memory that is kept."""

import json
import os
import platform
import subprocess
import sys

import pytest

from distilflax import allocator

MADVISE = "always [madvise] never\n"
# A command as Python sees it while it looks for it, and what it would start.
LOOKING = """
import json, os, sys
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", "experiments.predict", "--help"]
from distilflax import allocator
allocator.with_large_pages = lambda environment: {"GLIBC_TUNABLES": "new"}
os.execve = lambda *given: print(json.dumps(given))
import experiments
assert "numpy" not in sys.modules
"""
# The mappings of a process that Linux was advised to give large pages, once it holds 64 MB.
FILLED = """
held = b"x" * (64 << 20)
print(sum("VmFlags" in line and " hg" in line for line in open("/proc/self/smaps")))
"""


# 64 MB that are filled and freed, again and again, by a thread that came after numpy's.
REFILLED = """
import sys
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", "experiments.ablate"]
if {started}:
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


def printed(code, environment=None):
    """What a process of its own prints, which is JSON."""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """A machine on which large pages are to be had for the asking."""
    file = tmp_path / "enabled"
    file.write_text(MADVISE)
    monkeypatch.setattr(allocator, "_PAGES", file)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: None)
    return file


def test_large_pages_are_asked_for_once_and_what_is_set_stays(pages):
    once = allocator.with_large_pages({"HOME": "/h", "GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert once == {
        "HOME": "/h",
        "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1",
    }
    assert allocator.with_large_pages(once) is None
    assert allocator.with_large_pages({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) is None


@pytest.mark.parametrize("enabled", ["[always] madvise never\n", "always madvise [never]\n"])
def test_where_they_come_unasked_or_never_nothing_is_changed(pages, enabled):
    pages.write_text(enabled)
    assert allocator.with_large_pages({}) is None


def test_without_such_pages_or_with_arrays_elsewhere_nothing_is_changed(pages, monkeypatch):
    monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert allocator.with_large_pages({}) is None
    pages.unlink()
    assert allocator.with_large_pages({}) is None


def test_a_command_starts_itself_anew_with_all_that_it_was_given():
    program, arguments, environment = printed(LOOKING)
    assert program == arguments[0] == sys.executable
    assert arguments[1:] == ["-m", "experiments.predict", "--help"]
    assert environment == {"GLIBC_TUNABLES": "new"}


def test_the_c_library_hears_it():
    changed = allocator.with_large_pages(os.environ)
    if changed is None:
        pytest.skip("this machine has no such pages, or gives them already")
    assert printed(FILLED, os.environ) == 0
    assert printed(FILLED, changed) > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_arms_clear_their_pages_once():
    plain = {**os.environ, "GLIBC_TUNABLES": ""}
    assert printed(REFILLED.format(started=False), plain) > 20_000  # 2 x 16,384 pages
    assert printed(REFILLED.format(started=True), plain) < 1_000


def test_where_arrays_live_elsewhere_freed_memory_is_given_back(monkeypatch):
    monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert not allocator.keep_freed()
