import itertools
import json
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilflax import settings
from distilflax.errors import UserError
from distilflax.train import sharding
from distilflax.train.checkpoint import Best, Checkpoints
from distilflax.train.seal import write_seal


def state_of(step, mesh=None, width=16):
    """A small training state with every kind of leaf: matrices, vectors, moments, counters."""
    mesh = mesh or sharding.make_mesh(settings.Mesh(2, 2, 2))
    kernel = jax.random.normal(jax.random.key(step), (64, width))
    params = {"encoder": {"ffn": {"up": {"kernel": kernel, "bias": jnp.full(width, step * 1.0)}}}}
    params = {
        "params": params,
        "optimizer": optax.adamw(1e-3).init(params),
        "step": jnp.int32(step),
    }

    def lie(path, leaf):
        spec = sharding.P("fsdp", "tensor") if leaf.ndim == 2 else sharding.P()
        return jax.device_put(leaf, sharding.NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(lie, params)


def save(checkpoints, step, **metrics):
    checkpoints.save(
        step,
        state_of(step),
        record={"seconds": 1.5 * step},
        iterator={"position": step},
        metrics=metrics,
    )


def assert_same(restored, step):
    assert restored.step == step
    jax.tree.map(np.testing.assert_array_equal, restored.arrays, state_of(step))


@pytest.fixture
def said():
    return []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    said, folder = [], tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=3, say=said.append) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
    assert not said
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3: a copy, which takes less than saving anew."""
    return shutil.copytree(saved, tmp_path / "run")


def test_what_is_saved_comes_back_whole(folder):
    with Checkpoints(folder, keep=3) as checkpoints:
        restored = checkpoints.restore(state_of(0))
    assert_same(restored, 3)
    assert restored.record == {"seconds": 4.5}
    assert restored.iterator == {"position": 3}
    assert isinstance(restored.arrays["optimizer"][0], optax.ScaleByAdamState)


def test_nothing_to_restore_is_none(tmp_path):
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        assert checkpoints.restore(state_of(0)) is None
        assert checkpoints.steps == () and checkpoints.best_step is None


@pytest.mark.parametrize(
    "mesh, devices",
    [(settings.Mesh(8, 1, 1), 8), (settings.Mesh(1, 1, 2), 2), (settings.Mesh(), 1)],
)
def test_another_mesh_restores_the_same_numbers(folder, mesh, devices):
    mesh = sharding.make_mesh(mesh, devices=jax.devices()[:devices])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        state_of(0, mesh),
    )
    with Checkpoints(folder, keep=3) as checkpoints:
        restored = checkpoints.restore(like)
    assert_same(restored, 3)
    same = jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, restored.arrays, like)
    assert all(jax.tree.leaves(same))


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    arrays = {"kernel": jnp.arange(1 << 20, dtype=jnp.float32)}
    expected = np.array(arrays["kernel"])
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        checkpoints.save(1, arrays, record={}, iterator={})
        for _ in range(5):
            arrays = overwrite(arrays)
        checkpoints.wait()
        restored = checkpoints.restore(arrays)
    np.testing.assert_array_equal(restored.arrays["kernel"], expected)


@pytest.mark.parametrize("lower, best", [(True, 2), (False, 1)])
def test_the_newest_and_the_first_of_the_best_are_kept(tmp_path, lower, best):
    keep = Best("validation/loss", lower_is_better=lower)
    values = {1: 9.0, 2: 1.0, 3: 1.0, 4: 9.0, 5: 7.0}
    with Checkpoints(tmp_path / "run", keep=2, best=keep) as checkpoints:
        for step, value in values.items():
            save(checkpoints, step, **{"validation/loss": value})
        save(checkpoints, 6)  # Not evaluated: no metric.
    with Checkpoints(tmp_path / "run", keep=2, best=keep) as checkpoints:
        assert checkpoints.steps == (best, 5, 6)
        assert checkpoints.best_step == best
        assert_same(checkpoints.restore(state_of(0), step=best), best)


def test_saving_a_step_twice_is_saving_it_once(folder):
    with Checkpoints(folder, keep=3) as checkpoints:
        save(checkpoints, 3)
        assert checkpoints.steps == (1, 2, 3)


def test_a_record_that_is_not_json_fails_at_once(tmp_path):
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, state_of(1), record={"x": object()}, iterator={})
        assert checkpoints.steps == ()


def newest_files(folder):
    """The files of checkpoint 3 that hold something to restore, the largest first."""
    seal = json.loads((folder / "3" / "seal.json").read_text())
    return sorted(seal["files"], key=lambda name: -seal["files"][name][0])


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path):
    path.unlink()


DAMAGE = [truncate, empty, zero, flip_a_bit, delete]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder, said, damage):
    # The largest file holds the arrays' numbers, where a flipped bit is invisible to the storage.
    damage(folder / "3" / newest_files(folder)[0])
    with Checkpoints(folder, keep=3, say=said.append) as checkpoints:
        assert_same(checkpoints.restore(state_of(0)), 2)
        assert len(said) == 1
        assert said[0].startswith(f"checkpoint {folder / '3'} is damaged: ")
        assert "damaged-3" in said[0] and (folder / "damaged-3").is_dir()
        # And the run can pass the same step again.
        save(checkpoints, 3)
        assert_same(checkpoints.restore(state_of(0)), 3)


def test_damage_to_any_file_is_found(folder, said):
    names = [*newest_files(folder), "seal.json"]
    assert len(names) > 8
    for name, damage in zip(
        names, itertools.cycle(DAMAGE), strict=False
    ):  # All of both: test_seal.py.
        path = folder / "3" / name
        content = path.read_bytes()
        damage(path)
        with Checkpoints(folder, keep=3, say=said.append) as checkpoints:
            assert checkpoints.restore(state_of(0)).step == 2, (name, damage)
        (folder / "damaged-3").rename(folder / "3")
        path.write_bytes(content)
    with Checkpoints(folder, keep=3) as checkpoints:
        assert_same(checkpoints.restore(state_of(0)), 3)


@pytest.mark.parametrize("text", ["[]", '{"files": 3}', '{"files": {"a": [1, 2, 3]}}', "\xff"])
def test_a_damaged_seal_is_damage(folder, said, text):
    (folder / "3" / "seal.json").write_text(text, "latin-1")
    with Checkpoints(folder, keep=3, say=said.append) as checkpoints:
        assert checkpoints.restore(state_of(0)).step == 2
    assert "seal.json cannot be read" in said[0]


def test_a_whole_folder_deleted_or_emptied(folder, said):
    for path in sorted((folder / "3").glob("**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with Checkpoints(folder, keep=3, say=said.append) as checkpoints:
        assert checkpoints.restore(state_of(0)).step == 2


def test_all_damaged_is_a_new_start_with_everything_kept(folder, said):
    for step in (1, 2, 3):
        delete(folder / str(step) / "seal.json")
    with Checkpoints(folder, keep=3, say=said.append) as checkpoints:
        assert checkpoints.restore(state_of(0)) is None
    assert len(said) == 3
    assert sorted(path.name for path in folder.glob("damaged-*/record")) == ["record"] * 3


def test_a_run_killed_while_saving_leaves_no_half_checkpoint(folder):
    half = folder / "4.orbax-checkpoint-tmp"
    (half / "arrays").mkdir(parents=True)
    (half / "arrays" / "d").write_bytes(b"half")
    with Checkpoints(folder, keep=3) as checkpoints:
        assert_same(checkpoints.restore(state_of(0)), 3)
        save(checkpoints, 4)
        assert_same(checkpoints.restore(state_of(0)), 4)
    assert not half.exists()


@pytest.fixture
def no_large_files():
    """Every write past 4 kB fails: what a full disk does, for one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_saving_is_one_sentence(folder, no_large_files, capfd):
    checkpoints = Checkpoints(folder, keep=3)
    # Noise, because ones would be compressed until they fit.
    big = {"kernel": jax.device_put(np.random.default_rng(0).normal(size=(256, 256)))}
    checkpoints.save(4, big, record={}, iterator={})
    with pytest.raises(UserError, match=r"could not be written to .*run \(file too large\).* is 3"):
        checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]
    assert capfd.readouterr() == ("", "")


def test_the_first_error_wins_over_the_disks(folder, no_large_files, said):
    big = {"kernel": jax.device_put(np.random.default_rng(0).normal(size=(256, 256)))}
    with pytest.raises(KeyError), Checkpoints(folder, keep=3, say=said.append) as checkpoints:
        checkpoints.save(4, big, record={}, iterator={})
        raise KeyError
    assert "file too large" in said[0]


def test_a_disk_too_small_is_seen_before_anything_is_written(folder, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with Checkpoints(folder, keep=3) as checkpoints:
        with pytest.raises(UserError, match=r"checkpoint 4 needs .* MB left.* checkpoint is 3"):
            save(checkpoints, 4)
        assert_same(checkpoints.restore(state_of(0)), 3)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoint folder .*file/run cannot be made"):
        Checkpoints(tmp_path / "file" / "run", keep=1)


def rename_bias(state):
    up = state["params"]["encoder"]["ffn"]["up"]
    up["shift"] = up.pop("bias")
    return state


def with_extra(state):
    state["params"]["mlm_head"] = state["params"]["encoder"]
    return state


def without_step(state):
    del state["step"]
    return state


def halved(state):
    state["step"] = state["step"].astype(jnp.float32)
    return state


@pytest.mark.parametrize(
    "change, message",
    [
        (rename_bias, r"has no 'params/encoder/ffn/up/shift'"),
        (with_extra, r"has no 'params/mlm_head/ffn/up/bias'"),
        (without_step, r"has 'step', which this run has not"),
        (halved, r"'step' is int32\[\] there and float32\[\] here"),
        (lambda _: state_of(0, width=32), r"is float32\[16\] there and float32\[32\] here"),
    ],
)
def test_other_arrays_are_refused_by_name(folder, said, change, message):
    refused = pytest.raises(UserError, match=message + r".*another --workdir")
    with Checkpoints(folder, keep=3, say=said.append) as checkpoints, refused:
        checkpoints.restore(change(state_of(0)))
    assert not said and (folder / "3").is_dir()


def test_a_step_that_is_not_there_or_damaged(folder):
    with Checkpoints(folder, keep=3) as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint of step 7 .*there are 1, 2, 3"):
            checkpoints.restore(state_of(0), step=7)
        flip_a_bit(folder / "2" / "record" / "metadata")
        with pytest.raises(UserError, match=r"run/2 is damaged: the contents of record/metadata"):
            checkpoints.restore(state_of(0), step=2)


@pytest.mark.parametrize("content", ["5", '{"metrics": 5}', "[" * 100_000])
def test_what_orbax_keeps_for_itself_is_damaged(folder, content):
    for step in (1, 2, 3):
        (folder / f"{step}" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(UserError, match=r"a _CHECKPOINT_METADATA in .*run is damaged .*; delete"):
        Checkpoints(folder, keep=3)
    for path in folder.glob("*/_CHECKPOINT_METADATA"):
        path.unlink()
    with Checkpoints(folder, keep=3) as checkpoints:
        assert_same(checkpoints.restore(state_of(0)), 3)


def test_other_process_counts_share_only_equal_iterators(folder):
    record = folder / "3" / "record" / "metadata"
    content = json.loads(record.read_text())
    for iterators, fits in (([{"at": 1}] * 2, True), ([{"at": 1}, {"at": 2}], False)):
        record.write_text(json.dumps({**content, "iterators": iterators}))
        write_seal(folder / "3")
        with Checkpoints(folder, keep=3) as checkpoints:
            if fits:
                assert checkpoints.restore(state_of(0)).iterator == {"at": 1}
            else:
                with pytest.raises(UserError, match=r"saved by 2 processes"):
                    checkpoints.restore(state_of(0))


def test_orbax_does_not_talk(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    with Checkpoints(tmp_path / "run", keep=1, best=Best("loss")) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2, loss=1.0)
        checkpoints.restore(state_of(0))
    assert capfd.readouterr() == ("", "")
    assert [line for line in caplog.records if "/orbax/" in line.pathname] == []
