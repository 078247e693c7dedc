"""How fast, and how fast that is: tokens per second, and model FLOPs utilisation.

MFU is the arithmetic that the model needs (`step.flops_per_step`, counted) over the arithmetic
that the hardware could have done in the same time (Chowdhery et al. 2022, arXiv:2204.02311,
appendix B). Recomputation does not count as work done.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Peak FLOP/s of one JAX device in dense bfloat16, by `device.device_kind`. TPU: docs.cloud.google.
# com/tpu/docs/system-architecture-tpu-vm, chip figures divided where JAX shows a chip as two
# devices (v2, v3, 7x).
TPU_PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
}

# NVIDIA's data sheets, tensor cores without sparsity (the headline figures are with, twice these).
# Keys are the beginnings of kinds: "NVIDIA A100-SXM4-80GB" and "NVIDIA A100 80GB PCIe" are one.
# The longest key that fits counts.
GPU_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Peak:
    """What all devices together could do, in FLOP/s, and how that is known."""

    flops_per_second: float
    source: str


def peak_flops() -> Peak:
    """The peak of all devices of the run from the tables, or else measured.

    A CPU is always measured: what its cores reach depends on the machine around them. Its devices
    share those cores, so there they count once for each process.
    """
    devices = jax.devices()
    kind, platform = devices[0].device_kind, devices[0].platform
    if platform == "cpu":
        processes = len({device.process_index for device in devices})
        return Peak(matmul_peak() * processes, "measured: a 2048 x 2048 float32 matrix product")
    known = known_peak(kind)
    if known is not None:
        return Peak(known * len(devices), f"{kind}: {known / 1e12:g} TFLOP/s dense bfloat16")
    measured = matmul_peak(8192, jnp.bfloat16)
    return Peak(
        measured * len(devices), f"measured on {kind}: an 8192 x 8192 bfloat16 matrix product"
    )


def known_peak(kind: str) -> float | None:
    """The data sheet's FLOP/s of one device whose `device_kind` is `kind`; None if not listed."""
    if kind in TPU_PEAKS:
        return TPU_PEAKS[kind]
    fitting = [key for key in GPU_PEAKS if kind == key or kind.startswith((f"{key} ", f"{key}-"))]
    return GPU_PEAKS[max(fitting, key=len)] if fitting else None


def matmul_peak(size: int = 2048, dtype: DTypeLike = jnp.float32, repeats: int = 5) -> float:
    """FLOP/s of one local device in the product of two `size` x `size` matrices: best of some.

    Best and not mean: the question is what the hardware can do, not who else is using it. Stops
    repeating after a second.
    """
    device = jax.local_devices()[0]
    a = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best, start = float("inf"), time.perf_counter()
    for _ in range(repeats):
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        end = time.perf_counter()
        best = min(best, end - begin)
        if end - start > 1:
            break
    return 2 * size**3 / best


class Throughput:
    """Tokens per second and MFU over the last `window` steps, pauses left out.

    The first `done` only starts the clock: the step before it was spent compiling.
    """

    def __init__(self, window: int, peak: Peak, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._peak = peak
        self._steps: deque[tuple[float, int, int | float]] = deque(maxlen=window + 1)
        self._skipped = 0.0
        self._paused_at: float | None = None

    def done(self, tokens: int, flops: int | float) -> None:
        """A step over `tokens` tokens that needs `flops` operations has ended just now."""
        self._steps.append((self._clock() - self._skipped, tokens, flops))

    def pause(self) -> None:
        """Stop the clock: evaluation and saving are not training."""
        self._paused_at = self._clock()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._skipped += self._clock() - self._paused_at
            self._paused_at = None

    @property
    def seconds_per_step(self) -> float | None:
        """None until two steps have ended."""
        if len(self._steps) < 2:
            return None
        return max(1e-9, self._steps[-1][0] - self._steps[0][0]) / (len(self._steps) - 1)

    @property
    def tokens_per_second(self) -> float | None:
        return self._per_second(1)

    @property
    def mfu(self) -> float | None:
        """Between 0 and 1 where the peak is a data sheet's; a measured peak can be beaten."""
        flops = self._per_second(2)
        return None if flops is None else flops / self._peak.flops_per_second

    def _per_second(self, column: int) -> float | None:
        seconds = self.seconds_per_step
        if seconds is None:
            return None
        steps = list(self._steps)[1:]
        return sum(step[column] for step in steps) / (seconds * len(steps))
