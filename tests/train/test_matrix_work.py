import jax
import jax.numpy as jnp
import pytest

from distilflax.errors import UserError
from distilflax.train import matrix_work


def several_products(a, b):
    """Two products of one pair of shapes in a loop of five turns, and one of another pair."""

    def turn(_, total):
        return jnp.tanh(total @ b.T) @ b

    looped = jax.lax.fori_loop(0, 5, turn, a)
    return looped.T @ a


@pytest.fixture(scope="module")
def program():
    a, b = jnp.ones((48, 32)), jnp.ones((64, 32))
    return jax.jit(several_products).lower(a, b).compile(), (a, b)


def test_every_product_is_counted_with_its_shapes(program):
    found = matrix_work.products(program[0].as_text())
    flops = sorted(product.flops for product in found.values())
    assert flops == sorted([2 * 48 * 32 * 64, 2 * 48 * 64 * 32, 2 * 32 * 48 * 32])
    assert any("-> 48x64" in product.shapes for product in found.values())


def test_a_trace_says_how_often_each_ran_and_for_how_long(program, tmp_path):
    compiled, arguments = program
    hlo = compiled.as_text()
    jax.block_until_ready(compiled(*arguments))
    jax.profiler.start_trace(str(tmp_path))
    for _ in range(3):
        jax.block_until_ready(compiled(*arguments))
    jax.profiler.stop_trace()
    known, module = matrix_work.products(hlo), matrix_work.module_of(hlo)
    rows, busy = matrix_work.executed(tmp_path, known, module)
    assert sorted(row.times for row in rows) == [3, 15, 15]
    assert sum(row.flops for row in rows) == 3 * (10 * 2 * 48 * 64 * 32 + 2 * 32 * 48 * 32)
    assert 0 < busy <= sum(row.seconds for row in rows) * (1 + 1e-9)
    merged = matrix_work.by_shapes(rows)
    assert sum(row.times for row in merged) == 33
    with pytest.raises(UserError, match="shows no matrix product of another"):
        matrix_work.executed(tmp_path, known, "another")


def test_what_runs_at_the_same_time_counts_once():
    spans = [(0.0, 2.0), (5.0, 6.0), (1.0, 3.0), (1.5, 1.75), (6.0, 6.5)]
    assert matrix_work.covered(spans) == pytest.approx(4.5)
    assert matrix_work.covered([]) == 0.0
