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
MESHES = {"8x1x1": settings.Mesh(8, 1, 1), "2x4x1": settings.Mesh(2, 4, 1)} | {
    "2x2x2": settings.Mesh(2, 2, 2)
}


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


@pytest.mark.parametrize("chosen", [LOSSES, MASKED_ONLY], ids=["all", "masked only"])
@pytest.mark.parametrize("mesh", MESHES)
def test_sharding_changes_nothing(even, make_view, mesh, chosen):
    expected = step(chosen, make_view)(even.student, even.teacher, tuple(even[2:]))
    mesh = make_mesh(MESHES[mesh])
    with jax.set_mesh(mesh):
        ours = step(chosen, make_view)(*placed(mesh, even))

    def equal(a, b):
        # 1e-6 of the largest number of its kind: sums of other orders cancel differently.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(b).max()))

    jax.tree.map(equal, ours, expected)


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


@pytest.mark.parametrize("mesh", MESHES)
def test_no_device_waits_for_another_inside_the_loop(even, make_view, mesh):
    mesh = make_mesh(MESHES[mesh])
    with jax.set_mesh(mesh):
        program = step(LOSSES, make_view).lower(*placed(mesh, even)).compile().as_text()
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
