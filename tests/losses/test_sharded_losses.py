"""The losses over eight (virtual) devices: the same numbers, and no reduction inside the loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distilflax import losses, settings
from distilflax.batches.placement import row_sharding
from distilflax.settings import Term
from distilflax.train.sharding import make_mesh

LOSSES = {
    "kl": Term(weight=5.0, temperature=2.0),
    "mlm": Term(weight=2.0),
    "cosine": Term(weight=1.0),
    "sentence": Term(weight=0.5),
}
MASKED_ONLY = {"kl": Term(weight=5.0, positions="masked"), "mlm": Term(weight=2.0)}
# Rows over both of their axes; and these with the words over the third.
MESHES = {"2x4x1": settings.Mesh(2, 4, 1), "2x2x2": settings.Mesh(2, 2, 2)}


def step(chosen, make_view):
    def loss(student, teacher, batch):
        return losses.total_loss(
            chosen,
            make_view(student),
            make_view(teacher),
            *batch,
            progress=jnp.zeros(()),
            chunk_rows=3,
        )

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def placed(mesh, case):
    """The case with its rows over (data, fsdp) and its decoder as the sharding table has it.

    The decoder's words are filled up to an even number, so that they split over `tensor`.
    """

    def model(arrays):
        specs = {
            "hidden": PartitionSpec(("data", "fsdp")),
            "kernel": PartitionSpec(),
            "matrix": PartitionSpec("tensor"),
            "bias": PartitionSpec(),
        }
        return {
            name: jax.device_put(array, NamedSharding(mesh, specs[name]))
            for name, array in arrays.items()
        }

    batch = jax.tree.map(lambda x: jax.device_put(x, row_sharding(mesh)), tuple(case[2:]))
    return model(case.student), model(case.teacher), batch


@pytest.fixture(scope="module")
def even(case):
    """The case with 12 words: eleven do not split over two devices."""

    def model(arrays):
        more = {"matrix": ((0, 1), (0, 0)), "bias": ((0, 1),)}
        return arrays | {
            name: jnp.asarray(np.pad(np.asarray(arrays[name]), pad)) for name, pad in more.items()
        }

    return case._replace(student=model(case.student), teacher=model(case.teacher))


@pytest.fixture(scope="module", params=MESHES)
def spread(request, even, make_view):
    """(mesh, compiled step of all losses, its arguments on the mesh)."""
    mesh = make_mesh(MESHES[request.param])
    with jax.set_mesh(mesh):
        arguments = placed(mesh, even)
        return mesh, step(LOSSES, make_view).lower(*arguments).compile(), arguments


def assert_same(ours, expected):
    def equal(a, b):
        # 1e-6 of the largest number of its kind: sums of other orders cancel differently.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(b).max()))

    jax.tree.map(equal, ours, expected)


@pytest.fixture(scope="module")
def on_one_device(even, make_view):
    return step(LOSSES, make_view)(even.student, even.teacher, tuple(even[2:]))


def test_sharding_changes_nothing(on_one_device, spread):
    mesh, compiled, arguments = spread
    with jax.set_mesh(mesh):
        assert_same(compiled(*arguments), on_one_device)


def test_sharding_the_masked_rows_alone_changes_nothing(even, make_view):
    expected = step(MASKED_ONLY, make_view)(even.student, even.teacher, tuple(even[2:]))
    mesh = make_mesh(MESHES["2x2x2"])
    with jax.set_mesh(mesh):
        assert_same(step(MASKED_ONLY, make_view)(*placed(mesh, even)), expected)


def _loop_bodies(hlo):
    """The text of every computation that a `while` reaches, by name."""
    computations = {
        match[1]: match[0]
        for match in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n.*?^\}", hlo, re.M | re.S)
    }
    reached, todo = {}, re.findall(r"body=%?([\w.\-]+)", hlo)
    while todo:
        name = todo.pop()
        if name not in reached and name in computations:
            reached[name] = computations[name]
            todo += re.findall(r"%([\w.\-]+)", computations[name].split("\n", 1)[1])
    return reached


COLLECTIVES = r"(all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)"


def test_no_device_waits_for_another_inside_the_loop(even, spread):
    mesh, compiled, _ = spread
    program = compiled.as_text()
    bodies = _loop_bodies(program)
    assert any(" dot(" in body or "dot" in body for body in bodies.values()), "no loop was found"
    found = [line for body in bodies.values() for line in body.splitlines()]
    found = [line for line in found if re.search(rf"= \S+ {COLLECTIVES}", line)]
    if mesh.shape["tensor"] == 1:
        assert not found
    # Over `tensor` each device has some of the words, so rows are reduced over it: never a matrix
    # of the decoder's size, and never across rows of the batch.
    for line in found:
        sizes = [
            np.prod([int(n) for n in shape.split(",") if n])
            for shape in re.findall(r"f32\[([\d,]*)\]", line.split("=", 1)[1].split("(")[0])
        ]
        assert max(sizes, default=0) < even.student["matrix"].size, line
    # The gradients do meet, after the loop.
    assert re.search(r"all-reduce", program)
