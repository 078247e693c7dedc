"""Memory that a process frees and soon wants again: kept, where glibc would give it back."""

import ctypes
import importlib.util
import platform

# Of mallopt, by glibc's malloc.h: their numbers are part of its binary interface.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_freed() -> bool:
    """Makes this process keep the memory that it frees, for its own next arrays.

    XLA's CPU backend asks for the room of a step at every step, and glibc hands such large blocks
    back to the system at once, which then clears every page of them again: in the demo's step on
    two cores of an AMD EPYC that was a fifth of the processor's time (30 steps of teacher and
    student at 4 x 128 tokens: 5.1 s of user and 1.6 s of system time before, 5.3 and 0.1 after).

    What is kept is one heap, in which blocks of many sizes leave holes: for a process of one large
    program, over and over. Fine-tuning `configs/cranfield.py`, of ten lengths and up to 11 GB, went
    beyond 20 GB with it.

    To be called before any thread is started, which importing numpy does: a thread that has got an
    arena of its own (or inherits one of those that there are) maps what does not fit into that, and
    unmaps it when it is freed, whatever was asked for here. Returns whether it was done: on Linux
    with glibc, where no accelerator's plugin of jax is installed. There arrays live elsewhere, and
    many cores that prepare text would wait for the one arena.
    """
    elsewhere = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    if elsewhere or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
    return all([mallopt(option, value) for option, value in options.items()])
