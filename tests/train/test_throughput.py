import jax
import pytest

from distilflax.train import throughput
from distilflax.train.throughput import Peak, Throughput


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def steps(speed, clock, seconds, count, tokens=50, flops=20.0):
    for _ in range(count):
        clock.now += seconds
        speed.done(tokens, flops)


def test_rates_are_those_of_the_window_without_compilation():
    clock = Clock()
    speed = Throughput(4, Peak(100.0, ""), clock)
    steps(speed, clock, 1000.0, 1)  # Compiling.
    assert speed.seconds_per_step is speed.tokens_per_second is speed.mfu is None
    steps(speed, clock, 0.5, 4)
    assert speed.seconds_per_step == pytest.approx(0.5)
    assert speed.tokens_per_second == pytest.approx(100.0)
    assert speed.mfu == pytest.approx(20.0 / (0.5 * 100.0))
    steps(speed, clock, 2.0, 4)  # The window has moved on.
    assert speed.tokens_per_second == pytest.approx(25.0)


def test_steps_of_different_sizes_are_added_up():
    clock = Clock()
    speed = Throughput(10, Peak(1.0, ""), clock)
    steps(speed, clock, 1.0, 1)
    steps(speed, clock, 1.0, 1, tokens=10)
    steps(speed, clock, 3.0, 1, tokens=70)
    assert speed.tokens_per_second == pytest.approx(20.0)


def test_a_pause_does_not_count():
    clock = Clock()
    speed = Throughput(10, Peak(1.0, ""), clock)
    steps(speed, clock, 1.0, 2)
    speed.pause()
    clock.now += 1000.0
    speed.resume()
    speed.resume()  # Once is enough.
    steps(speed, clock, 1.0, 2)
    assert speed.seconds_per_step == pytest.approx(1.0)


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU7x", 1153.5),
    ],
)
def test_known_devices_have_their_data_sheets_peak(kind, tera):
    assert throughput.known_peak(kind) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("kind", ["NVIDIA L400", "NVIDIA A10G", "TPU v99", "cpu", ""])
def test_other_devices_are_not_guessed(kind):
    assert throughput.known_peak(kind) is None


def test_virtual_cpu_devices_share_one_machine(monkeypatch):
    monkeypatch.setattr(throughput, "matmul_peak", lambda: 5.0)
    assert len(jax.devices()) == 8
    assert throughput.peak_flops().flops_per_second == 5.0


def test_the_measured_peak_is_that_of_a_real_product():
    # Any machine that runs this does between 0.1 GFLOP/s and 100 TFLOP/s in float32.
    assert 1e8 < throughput.matmul_peak(256, repeats=2) < 1e14
