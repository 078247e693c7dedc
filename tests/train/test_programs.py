import jax
import jax.numpy as jnp
import pytest

from distilflax.train import programs


@pytest.mark.parametrize(
    ("device", "flags", "level"),
    [
        ("cpu", "", 1),
        ("cpu", "--xla_backend_optimization_level=3", None),
        ("gpu", "", None),
    ],
)
def test_a_cpu_compiles_quickly_unless_told_otherwise(monkeypatch, device, flags, level):
    given, jit = {}, jax.jit
    state = jnp.ones(3)  # Before the flags change: the first array is made by what they say.

    def recorded(step, **options):
        given.update(options)
        return jit(step, **options)

    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    monkeypatch.setattr(jax, "jit", recorded)
    step = programs.jitted(lambda state, by: (state * by, {}), None)
    assert step(state, 2.0)[0].tolist() == [2.0] * 3
    assert state.is_deleted()
    assert (given["compiler_options"] or {}).get("xla_backend_optimization_level") == level
