"""The program of a step, as all loops compile it."""

import os
from collections.abc import Callable

import jax

from distilflax.train.state import State

_LEVEL = "xla_backend_optimization_level"


def jitted(step: Callable[..., tuple[State, dict]], where: State | None) -> Callable:
    """The jitted step, (state, ...) to (state, metrics): the state is donated, and leaves with the
    shardings `where`, or those that XLA chooses.

    On a CPU LLVM takes its first level of optimisations: a step's time is in products that are
    compiled already. configs/sst2.py, 3 layers, one core of an AMD EPYC of 2 GHz: 15 to 28 seconds
    for a program by XLA's own choice, by its length, and 10 for each now; the steps themselves took
    the same (2.62 and 2.64 s with 6 layers; distilling by configs/demo.py, but with every row
    masked, 2.44 and 2.46). Who names a level in XLA_FLAGS (3 is XLA's own) gets that one.
    """
    chosen = jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", "")
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(where, None),
        compiler_options=None if chosen else {_LEVEL: 1},
    )
