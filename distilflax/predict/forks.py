"""Forks of a process that has loaded a model: JAX's threads are not in them, and what waits for
those would wait for ever. Loading once more does not help, as what waits is JAX's, not the model's.
"""

import os

from distilflax.errors import UserError

_loaded_in: int | None = None


def loaded() -> None:
    """Remembers that this process has loaded a model."""
    global _loaded_in
    _loaded_in = os.getpid()


def check() -> None:
    """Raises a UserError in a fork of a process that had loaded a model before."""
    if _loaded_in not in (None, os.getpid()):
        raise UserError(
            f"This process is a fork of {_loaded_in}, which had loaded a model before, and JAX "
            "does not work in forks; load models after the fork alone, or start processes with "
            "multiprocessing's 'spawn'."
        )
