"""The commands. This is run before any of them is, and before anything that they import."""

import sys

from distilflax.allocator import keep_freed

# So it reads while `python -m experiments.NAME` looks for the command. Who imports a part of it, a
# test or a notebook, has its own memory in hand.
if sys.argv[0] == "-m":
    keep_freed()
