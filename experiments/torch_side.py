"""How torch is used beside us: where it computes, how exactly, and when it has finished."""

from typing import Any

import jax


def device() -> str:
    """On the GPU if jax is there."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def multiply_as_xla(torch: Any) -> None:
    """XLA multiplies float32 in TF32 on a GPU, torch only if it is told to."""
    if device() == "cuda":
        torch.set_float32_matmul_precision("high")


def finish(torch: Any) -> None:
    """So that what is timed is work, not the order for it."""
    if device() == "cuda":
        torch.cuda.synchronize()
