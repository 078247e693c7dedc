"""The commands. This is run before any of them is, and before anything that they import."""

import sys

from distilflax.allocator import keep_freed

# Those that ask for the same room at every step. Fine-tuning and others run programs of many
# lengths: whatever small lies in the room of the last one, the next one is put behind it, so that
# they are left to give their memory back.
_OF_ONE_PROGRAM = ("distill", "ablate", "profile_step", "teacher_cache", "time_step")

# So it reads while `python -m experiments.NAME` looks for the command. Who imports a part of it, a
# test or a notebook, has its own memory in hand.
if sys.argv[0] == "-m" and any(f"experiments.{name}" in sys.orig_argv for name in _OF_ONE_PROGRAM):
    keep_freed()
