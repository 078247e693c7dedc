"""Memory of the arrays on a CPU, as glibc hands it out: in large pages, or kept when it is freed.

XLA's CPU backend asks for the room of a step at every step, and glibc gives such large blocks back
to the system at once, which then clears their pages again, one of 4 KB after the other. There are
two ways out of that, of which a process takes one. Both are for Linux with glibc where no plugin of
jax for an accelerator is installed: there arrays live elsewhere.
"""

import ctypes
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path

_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES, _LARGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
# Of mallopt, by glibc's malloc.h: their numbers are part of its binary interface.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1


def with_large_pages(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment of a process whose `malloc` asks for pages of 2 MB, which are cleared faster;
    None where there is nothing to change.

    Measured on two cores of an AMD EPYC, both kinds of process taking turns: fine-tuning
    (configs/wnut17.py, 3 layers) went from 4.7 to 4.8 thousand tokens a second to 5.5 to 5.7, its
    time in the system from 18% to 12%; the demo's step took 110 ms before and 95 to 104 after.

    glibc reads the variable as a program starts (since 2.35, "Memory Allocation Tunables" of its
    manual), so that whoever wants it has to start anew. None as well where the variable says
    anything of these pages already, and where Linux gives them unasked or never.
    """
    given = environment.get(_TUNABLES, "")
    # What costs least comes first: whoever has started anew asks a second time.
    if _LARGE in given or not _PAGES.is_file() or "[madvise]" not in _PAGES.read_text():
        return None
    if not _arrays_of_glibc():
        return None
    return {**environment, _TUNABLES: ":".join(filter(None, [given, f"{_LARGE}=1"]))}


def keep_freed() -> bool:
    """Makes this process keep the memory that it frees, for its own next arrays.

    What is kept is one heap, in which blocks of many sizes leave holes: for a process of one large
    program, over and over. Eight arms of configs/ablation_table4.py train on 4.3 thousand tokens a
    second so, in 7.5 GB, and on 3.65 thousand with large pages, in 4.3 GB; one alone, and
    fine-tuning, are as fast with large pages, and configs/cranfield.py, of ten lengths and then up
    to 11 GB, went beyond 20 GB with this.

    To be called before any thread is started, which importing numpy does: a thread that has got an
    arena of its own (or inherits one of those that there are) maps what does not fit into that, and
    unmaps it when it is freed, whatever was asked for here. Returns whether it was done.
    """
    if not _arrays_of_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
    return all([mallopt(option, value) for option, value in options.items()])


def _arrays_of_glibc() -> bool:
    elsewhere = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return platform.libc_ver()[0] == "glibc" and not elsewhere
