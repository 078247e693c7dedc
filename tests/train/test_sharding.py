import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from distilflax import losses, models, settings
from distilflax.errors import UserError
from distilflax.train import sharding

BERT = settings.Encoder(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=32, max_positions=24
)
DISTILBERT = settings.Encoder(**{**vars(BERT), "type_vocab_size": 0, "pooler": False})
MESHES = [settings.Mesh(8, 1, 1), settings.Mesh(2, 2, 2)]


def shapes_of(encoder):
    """Of everything that a student may train, one of the terms' projections among it."""
    terms = {"hidden_mse": settings.Term(1.0, projection="shared")}
    projections = jax.eval_shape(
        lambda: losses.init_projections(terms, encoder, BERT, jax.random.key(0))
    )
    return models.shapes(encoder, mlm_head=True) | {losses.PROJECTIONS: projections}


def by_name(tree):
    return {
        sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("encoder", [BERT, DISTILBERT], ids=["bert", "distilbert"])
@pytest.mark.parametrize("mesh", MESHES, ids=["8x1x1", "2x2x2"])
def test_every_parameter_is_split_on_purpose(encoder, mesh):
    mesh = sharding.make_mesh(mesh)
    shapes = shapes_of(encoder)
    specs = by_name(sharding.param_shardings(mesh, shapes))
    for name, shape in by_name(shapes).items():
        is_matrix = not name.endswith(("/bias", "/scale"))
        assert is_matrix == (len(shape.shape) == 2), name
        # Every matrix is split by fsdp; every vector is whole everywhere.
        assert ("fsdp" in specs[name].spec) == is_matrix, name
        if not is_matrix:
            assert specs[name].is_fully_replicated


def test_every_rule_is_met_by_some_parameter():
    elsewhere = {"mlm_head/decoder", "task_head/classifier/kernel"}
    names = set(by_name(shapes_of(BERT))) | set(by_name(shapes_of(DISTILBERT))) | elsewhere
    for pattern, _ in sharding.RULES:
        assert any(re.fullmatch(pattern, name) for name in names), f"{pattern} matches nothing"


def test_a_column_split_kernel_is_followed_by_a_row_split_one():
    specs = by_name(sharding.param_shardings(sharding.make_mesh(MESHES[1]), shapes_of(BERT)))
    layer = "encoder/layers_1/"
    for first in ("attention/query", "attention/key", "attention/value", "ffn/up"):
        assert specs[f"{layer}{first}/kernel"].spec == P("fsdp", "tensor")
    for second in ("attention/output", "ffn/down"):
        assert specs[f"{layer}{second}/kernel"].spec == P("tensor", "fsdp")


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = sharding.make_mesh(settings.Mesh(1, 2, 4))
    shapes = {"encoder": {"embeddings": {"word": jax.ShapeDtypeStruct((30522, 16), jnp.float32)}}}
    spec = sharding.param_shardings(mesh, shapes)["encoder"]["embeddings"]["word"].spec
    assert spec == P(None, "fsdp")


def test_a_parameter_without_a_rule_is_an_error():
    mesh = sharding.make_mesh(settings.Mesh())
    shapes = {"encoder": {"adapter": {"weights": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}}
    with pytest.raises(UserError, match=r"'encoder/adapter/weights'.*RULES"):
        sharding.param_shardings(mesh, shapes)


@pytest.mark.parametrize("mesh", MESHES, ids=["8x1x1", "2x2x2"])
def test_moments_lie_with_their_parameters(mesh):
    mesh = sharding.make_mesh(mesh)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.constant_schedule(1e-3),
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
    shapes = shapes_of(BERT)
    params = sharding.param_shardings(mesh, shapes)
    state_shapes = jax.eval_shape(optimizer.init, shapes)
    state = sharding.optimizer_shardings(optimizer, state_shapes, params, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(state_shapes)
    adam = state[1][0]
    assert adam.mu == params and adam.nu == params
    assert adam.count.is_fully_replicated


def test_placing_splits_the_arrays_and_keeps_their_values():
    mesh = sharding.make_mesh(settings.Mesh(2, 2, 2))
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes_of(BERT))
    placed = sharding.place(params, sharding.param_shardings(mesh, params))
    word = placed["encoder"]["embeddings"]["word"]
    assert {shard.data.shape for shard in word.addressable_shards} == {(32, 8)}
    jax.tree.map(np.testing.assert_array_equal, placed, params)


def test_donating_what_was_placed_leaves_the_source_alive():
    mesh = sharding.make_mesh(settings.Mesh())
    whole = sharding.replicated(mesh)
    step = jax.jit(lambda array: array * 0, donate_argnums=0)
    on_one_device = jnp.ones((64, 64))
    everywhere = jax.device_put(on_one_device, whole)
    # 64-byte aligned, which is what lets the CPU backend share numpy's memory.
    room = np.zeros(64 * 64 * 4 + 64, np.uint8)
    start = -room.ctypes.data % 64
    numpy_array = room[start : start + 64 * 64 * 4].view(np.float32).reshape(64, 64)
    numpy_array[:] = 1
    for source in (on_one_device, everywhere, numpy_array):
        step(sharding.place(source, whole)).block_until_ready()
        assert float(np.sum(source)) == 64 * 64


def test_the_mesh_takes_what_is_left_and_is_automatic():
    mesh = sharding.make_mesh(settings.Mesh(-1, 2, 2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    few = sharding.make_mesh(settings.Mesh(), devices=jax.devices()[:3])
    assert dict(few.shape) == {"data": 3, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    "mesh", [settings.Mesh(3, 1, 1), settings.Mesh(-1, 3, 1), settings.Mesh(-1, 4, 4)]
)
def test_axes_that_do_not_make_up_the_devices_are_refused(mesh):
    with pytest.raises(UserError, match=r"config.mesh: .* 8 devices .* data=-1"):
        sharding.make_mesh(mesh)


def test_a_batch_that_does_not_divide_is_refused():
    sharding.make_mesh(settings.Mesh(-1, 2, 2), batch_size=12)
    with pytest.raises(UserError, match=r"config.training: .*10 sequences.* multiple of 4"):
        sharding.make_mesh(settings.Mesh(-1, 2, 2), batch_size=10)
