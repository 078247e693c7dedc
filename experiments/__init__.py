"""The commands. This is run before any of them is, and before anything that they import."""

import os
import sys

from distilflax.allocator import keep_freed, with_large_pages

# So it reads while `python -m experiments.NAME` looks for the command. Who imports a part of it, a
# test or a notebook, has its own memory in hand.
_command = next((part for part in sys.orig_argv if part.startswith("experiments.")), "")
_starting = sys.argv[0] == "-m" and bool(_command)
if _starting and _command == "experiments.ablate":
    keep_freed()
elif _starting and (_changed := with_large_pages(os.environ)) is not None:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], _changed)
