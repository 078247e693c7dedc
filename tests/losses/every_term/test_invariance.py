"""What must change nothing, for every term at once: padding, the order of the batch, the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distilflax import losses, settings
from distilflax.batches.placement import ROW_AXES
from distilflax.train.sharding import make_mesh

both = pytest.mark.parametrize("choice", ["defaults", "options"])


def close(ours, expected):
    def equal(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * max(1.0, np.abs(b).max()))

    jax.tree.map(equal, ours, expected)


def each_token(function, model):
    """`model` with `function(array, axis)` for every axis that counts tokens."""
    changed = dict(model)
    for name in ("hidden_states", "queries", "keys", "values"):
        changed[name] = tuple(function(x, 1) for x in model[name])
    changed["attention_scores"] = tuple(
        function(function(x, 2), 3) for x in model["attention_scores"]
    )
    return changed


@both
def test_what_lies_at_padding_changes_nothing(every, choice):
    here = every.case(choice)

    def spoilt(x, axis):
        shape = [1] * x.ndim
        shape[0], shape[axis] = here.mask.shape
        return np.where(here.mask.reshape(shape) > 0, x, np.float32(np.nan))

    garbage = here._replace(
        student=each_token(spoilt, here.student),
        teacher=each_token(spoilt, here.teacher),
        ids=np.where(here.mask > 0, here.ids, 9),
    )
    expected, ours = every.run(choice, here), every.run(choice, garbage)
    close(ours, expected)
    # Among it: nothing at padding has a gradient.
    assert not ours[1]["hidden_states"][-1][here.mask == 0].any()


@both
def test_the_order_of_the_batch_changes_nothing(every, choice):
    here = every.case(choice)
    order = np.random.default_rng(2).permutation(len(here.ids))
    shared = ("kernel", "matrix", "bias", "projections")

    def moved(model):
        return {
            name: part if name in shared else tuple(x[order] for x in part)
            for name, part in model.items()
        }

    batch = jax.tree.map(lambda x: x[order], here[2:])
    (loss, sums), gradient = every.run(choice, here)
    close(
        every.run(choice, type(here)(moved(here.student), moved(here.teacher), *batch)),
        ((loss, sums), moved(gradient)),
    )


@both
def test_the_mesh_changes_nothing(every, choice):
    here, mesh = every.case(choice), make_mesh(settings.Mesh(2, 2, 2))
    expected = every.run(choice, here)

    def placed(x, *axes):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    def model(arrays):
        spread = dict(arrays)
        for name, part in arrays.items():
            axes = {"matrix": ("tensor",)}.get(name, ())
            axes = (ROW_AXES,) if isinstance(part, tuple) else axes
            spread[name] = jax.tree.map(lambda x, axes=axes: placed(x, *axes), part)
        return spread

    with jax.set_mesh(mesh):
        batch = jax.tree.map(lambda x: placed(x, ROW_AXES), here[2:])
        spread = type(here)(model(here.student), model(here.teacher), *batch)
        counts = losses.counts(every.choices[choice][0], spread.mask, spread.masked)
        close(every.step(choice)(spread, counts), expected)


@pytest.mark.parametrize("rows", [0, 1, 4])
@both
def test_bfloat16_with_rows_of_padding_stays_finite(every, choice, rows):
    here = every.case(choice)
    keep = (np.arange(len(here.ids)) < rows).astype(np.int32)[:, None]

    def half(path, x):
        exact = path[0].key in ("attention_scores", "kernel", "matrix", "bias", "projections")
        return x if exact else jnp.asarray(x, jnp.bfloat16)

    masked = here.masked._replace(
        positions=here.masked.positions * keep, weights=here.masked.weights * np.float32(keep)
    )
    halved = here._replace(
        student=jax.tree_util.tree_map_with_path(half, here.student),
        teacher=jax.tree_util.tree_map_with_path(half, here.teacher),
        mask=here.mask * keep,
        masked=masked,
    )
    (total, sums), gradient = every.run(choice, halved)
    assert total.dtype == np.float32
    assert np.isfinite(total)
    assert all(s.sum.dtype == np.float32 and np.isfinite(s.sum) for s in sums.values())
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
        assert rows or not np.asarray(leaf, np.float32).any()
