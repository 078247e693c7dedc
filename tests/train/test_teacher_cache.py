"""A teacher that is run once: the same losses, refused where it is another's, resumed where it
was left."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from distilflax import settings
from distilflax.batches.pipeline import batch_at
from distilflax.errors import UserError
from distilflax.train import arms, cache_bias, cache_fill, cache_store, cached, loop, sharding
from distilflax.train import teachers as taught_by
from distilflax.train.setup import new_student, prepare

STEPS = 4
NO_EVALUATION = {"batch_size": 8, "steps": STEPS, "evaluate_every": 0, "checkpoint_every": 9}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        make, first = sharding.make_mesh, jax.devices()[:1]
        patch.setattr(sharding, "make_mesh", lambda *a, **k: make(*a, **k | {"devices": first}))
        yield


@pytest.fixture(scope="module")
def plain(experiment):
    """The run with its teacher in every step."""
    return experiment(student={"num_layers": 1}, training=NO_EVALUATION)


@pytest.fixture(scope="module")
def materials(plain):
    return prepare(plain, [plain], lambda _: None)


def with_cache(which, folder, **changes):
    cache = settings.TeacherCache(enabled=True, folder=str(folder), **changes)
    return dataclasses.replace(which, teacher_cache=cache)


def lines_of(which, materials, folder):
    """The metrics of every step of a run."""
    loop.train(which, materials, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def opened(which, materials, steps=STEPS):
    mesh = sharding.make_mesh(which.mesh, 8)
    pair = pair_of(which, materials)
    with jax.set_mesh(mesh):
        teacher = taught_by.placed(which, materials, mesh)
        return cache_fill.ready(which, materials, pair, mesh, teacher, steps)


def pair_of(which, materials):
    return taught_by.pair_of(which, materials, new_student(which, materials)[0])


def records(cache):
    """Everything that a cache holds."""
    return [
        (column, step, jax.tree.map(np.asarray, tuple(stored.at(step))))
        for column, stored in cache.stored.items()
        for step in range(cache.steps)
    ]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one[:2] == other[:2]
        jax.tree.map(np.testing.assert_array_equal, one[2], other[2])


def test_a_cached_run_is_the_live_run_without_its_teacher(plain, materials, tmp_path, monkeypatch):
    """To float32's rounding: the cached states are the very ones, compiled into another program."""
    live = lines_of(plain, materials, tmp_path / "live")
    which = with_cache(plain, tmp_path / "cache", words="states", dtype="float32")
    opened(which, materials)
    monkeypatch.setattr(cache_fill, "make_teacher", None)  # Whoever calls it fails.
    ours = lines_of(which, materials, tmp_path / "run")
    assert len(ours) == len(live) == STEPS
    for mine, theirs in zip(ours, live, strict=True):
        assert {"loss/kl", "loss/cosine", "loss/mlm"} <= mine.keys()
        for name in ("loss", "grad_norm", *(key for key in mine if key.startswith("loss/"))):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
    # A run that has ended is not one that lacks its cache.
    shutil.rmtree(tmp_path / "cache")
    assert loop.train(which, materials, tmp_path / "run").steps == STEPS
    assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def filled(plain, materials, tmp_path_factory):
    """(experiment, cache) with drawn words and half precision, filled without a break."""
    which = with_cache(plain, tmp_path_factory.mktemp("filled") / "cache")
    return which, opened(which, materials)


def test_micro_batches_fill_the_same_cache(filled, plain, materials, tmp_path):
    in_parts = dataclasses.replace(plain.training, accumulate=2)
    which = with_cache(dataclasses.replace(plain, training=in_parts), tmp_path / "cache")
    for one, other in zip(records(opened(which, materials)), records(filled[1]), strict=True):
        assert one[:2] == other[:2]
        # Half precision: another program rounds the last digit differently.
        compare = partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-3)
        jax.tree.map(compare, one[2], other[2])


def test_words_take_at_most_64_bytes(filled):
    _, cache = filled
    sizes = {column.place: stored.unit_bytes for column, stored in cache.stored.items()}
    assert sizes == {"last_hidden_state": 2 * 16, "words": 64}
    for words in ("sampled", "top_k"):
        for vocab_size in (30_522, 120_000):
            which = settings.from_config({"teacher_cache": {"enabled": True, "words": words}})
            number = cached.kept(which, vocab_size).number
            each = cached.id_dtype(vocab_size)().itemsize + (2 if words == "top_k" else 0)
            assert number >= 10 and number * each + 4 <= 64


@pytest.fixture
def each_step_a_shard(monkeypatch):
    monkeypatch.setattr(cache_store, "SHARD_BYTES", 1)


@pytest.mark.usefixtures("each_step_a_shard")
def test_an_interrupted_filling_goes_on_behind_what_is_whole(
    filled, plain, materials, tmp_path, monkeypatch
):
    which = with_cache(plain, tmp_path / "cache")
    place, seen = cache_fill.to_global, []

    def interrupted(batch, mesh):
        seen.append(batch)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return place(batch, mesh)

    monkeypatch.setattr(cache_fill, "to_global", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(which, materials)
    shards = sorted(p.name for p in (tmp_path / "cache" / "last_hidden_state-float16").iterdir())
    assert shards == ["00000000-00000001", "00000001-00000002"]
    # What a process leaves that is killed while it writes.
    (tmp_path / "cache" / "last_hidden_state-float16" / "00000002-00000003.part").mkdir()

    again = opened(which, materials)
    assert len(seen) == 3 + 2, "steps that were there were computed again"
    assert_same(records(again), records(filled[1]))
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.usefixtures("each_step_a_shard")
def test_a_damaged_shard_is_as_good_as_none(filled, plain, materials, tmp_path):
    shutil.copytree(filled[1].folder, tmp_path / "cache")
    (shard,) = (tmp_path / "cache" / "last_hidden_state-float16").iterdir()
    values = shard / "states.npy"
    values.write_bytes(values.read_bytes()[:-7])
    which = with_cache(plain, tmp_path / "cache")
    assert cache_fill.Cache(tmp_path / "cache", filled[1].stored, 0.15).steps == 0
    assert_same(records(opened(which, materials)), records(filled[1]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes().replace(b"}", b" ")),
        lambda path: np.save(path, np.float16(0)),
    ],
    ids=["missing", "header", "no dimensions"],
)
@pytest.mark.parametrize("array", ["states", "ids", "counts"])
def test_a_shard_whose_arrays_are_no_more_is_damaged(filled, tmp_path, damage, array):
    shutil.copytree(filled[1].folder, tmp_path / "cache")
    for path in (tmp_path / "cache").rglob(f"{array}.npy"):
        damage(path)
    assert cache_fill.Cache(tmp_path / "cache", filled[1].stored, 0.15).steps == 0


def test_what_is_no_shard_is_left_alone(filled, plain, materials, tmp_path):
    shutil.copytree(filled[1].folder, tmp_path / "cache")
    for column in filled[1].stored:
        place = tmp_path / "cache" / column.folder
        (place / ".DS_Store").write_bytes(b"\0")
        (place / "notes.txt").write_text("mine")
        (place / "notes.part").write_text("mine")
        (place / "tmp").mkdir()
    grown = opened(with_cache(plain, tmp_path / "cache"), materials, STEPS + 1)
    assert grown.steps == STEPS + 1
    assert (place / "notes.part").is_file() and (place / "tmp").is_dir()


def test_what_lies_longer_serves_a_shorter_run_and_grows_for_a_longer_one(
    filled, plain, materials, tmp_path
):
    shutil.copytree(filled[1].folder, tmp_path / "cache")
    which = with_cache(plain, tmp_path / "cache")
    assert opened(which, materials, STEPS - 1).steps == STEPS
    grown = opened(which, materials, STEPS + 2)
    assert grown.steps == STEPS + 2
    beyond = batch_at(materials.corpus.train, batch_size=8, seed=0, data=which.data)(STEPS + 9)
    carried = grown.beside(STEPS + 9, beyond)
    assert all(not array.any() for array in carried.values())


def test_a_cache_of_anything_else_is_refused(filled, materials):
    which, cache = filled
    lost = jax.tree.map(lambda x: x + 1, materials.teacher.params)
    other = dataclasses.replace(materials.teacher, params=lost)
    masking = dataclasses.replace(which.masking, rate=0.2)
    training = dataclasses.replace(which.training, batch_size=4)
    cases = [
        (which, dataclasses.replace(materials, teacher=other), "another teacher"),
        (dataclasses.replace(which, seed=1), materials, r"config.seed, .*masks.* \(0 there, 1 her"),
        (
            dataclasses.replace(which, masking=masking),
            materials,
            r'masking \(\{"rate": 0.15\} there, \{"rate": 0.2\}',
        ),
        (dataclasses.replace(which, training=training), materials, "training.batch_size"),
    ]
    for run, its_materials, message in cases:
        with pytest.raises(UserError, match=message):
            opened(run, its_materials)
    # Where no folder is named, each has one of its own.
    keys = {json.dumps(cache_fill.key_of(run, m)) for run, m, _ in cases}
    assert len(keys) == len(cases)
    batch = batch_at(materials.corpus.train, batch_size=8, seed=0, data=which.data)(1)
    with pytest.raises(UserError, match="other text at step 0"):
        cache.beside(0, batch)


def test_a_key_that_was_damaged_is_said(filled, plain, materials, tmp_path):
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(UserError, match=r"key\.json cannot be read any more"):
        opened(with_cache(plain, tmp_path), materials)


def test_what_does_not_fit_is_said_before_it_is_written(plain, materials, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_fill.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UserError, match=r"4 steps take .* GB and .* left"):
        opened(with_cache(plain, tmp_path / "cache"), materials)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_states_beyond_half_precision_are_refused():
    batch = {"input_ids": np.zeros((1, 2), np.int32)}
    with pytest.raises(UserError, match="dtype='float32'"):
        cache_fill._record(
            cached.Column("last_hidden_state", "x"),
            {"states": np.array([[[1.0], [np.inf]]], np.float16)},
            np.ones((1, 2), bool),
            batch,
        )


def test_layers_and_relations_come_back_as_they_were(plain, materials, tmp_path):
    terms = {
        "hidden_mse": settings.Term(weight=1.0, layers="0:1,final"),
        "relations": settings.Term(weight=1.0, layers="final:2", between=("keys",)),
        "sentence": settings.Term(weight=1.0),
        "kl": settings.Term(weight=1.0, positions="real"),
    }
    kept = {"dtype": "float32", "words": "top_k"}
    which = with_cache(dataclasses.replace(plain, losses=terms), tmp_path / "cache", **kept)
    cache = opened(which, materials, 1)
    places = [column.place for column in cache.stored]
    assert places == ["hidden_states/2", "keys/2", "last_hidden_state", "words"]
    batch = batch_at(materials.corpus.train, batch_size=8, seed=0, data=which.data)(0)
    carried = cache.beside(0, batch)
    encoder = materials.teacher.encoder
    back = cached.outputs(which.compute, encoder, jax.tree.map(jax.numpy.asarray, carried))
    real = batch["attention_mask"] > 0
    for column, stored in list(cache.stored.items())[:-1]:
        found = np.asarray(column.of(back))
        np.testing.assert_array_equal(found[real], stored.at(0).values["states"])
        assert not found[~real].any()
    assert len(back["hidden_states"]) == encoder.num_layers + 1
    assert back["hidden_states"][-1] is back["last_hidden_state"]
    words = cached.words(jax.tree.map(jax.numpy.asarray, carried))
    np.testing.assert_allclose((words.weights.sum(-1) + words.rest)[real], 1.0, atol=1e-5)
    assert list(cache.stored.values())[-1].unit_bytes == 64


KL, OTHER = {"kl": {"weight": 1.0, "temperature": 2.0}}, {"soft_cross_entropy": {"weight": 1.0}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"reverse_kl": {"weight": 1.0}}}, "reverse_kl is not linear in the teacher's"),
        ({"losses": KL | OTHER}, r"one temperature, but the terms have 2 \(kl\) and 1"),
        (
            {"losses": {"kl": {"weight": 1.0, "temperature_schedule": ((0.0, 2.0), (1.0, 1.0))}}},
            "that of config.losses.kl changes",
        ),
        ({"losses": {"attention_kl": {"weight": 1.0}}}, "compares attention scores"),
        ({"teachers": {"large": {"path": "x"}}, "losses": KL}, "others teach too"),
        ({"teaching": {"average_decay": 0.9}, "losses": KL}, "others teach too"),
    ],
)
def test_what_a_cache_cannot_hold_is_refused(changes, message):
    which = settings.from_config(changes | {"teacher_cache": {"enabled": True}})
    with pytest.raises(UserError, match=message):
        cached.check(which)


def test_exact_words_serve_any_term():
    terms = {"reverse_kl": {"weight": 1.0}, "jensen_shannon": {"weight": 1.0, "temperature": 3.0}}
    cached.check(
        settings.from_config(
            {"losses": terms, "teacher_cache": {"enabled": True, "words": "states"}}
        )
    )


def test_arms_of_a_program_share_a_cache_if_they_agree_on_the_temperature(plain, tmp_path):
    which = dataclasses.replace(
        with_cache(plain, tmp_path),
        arms={
            "no_cosine": {"losses": {"cosine": {"weight": 0.0}}},
            "warmer": {"losses": {"kl": {"temperature": 4.0}}},
        },
    )
    (group,) = arms.groups_of(arms.arms_of(which))
    with pytest.raises(UserError, match="arms differ in that of kl"):
        group.taught_as(3)
    alike = {name: arm for name, arm in group.arms.items() if name != "warmer"}
    program = arms.Group(group.program, alike).taught_as(3)
    assert program.seed == 3
    assert program.losses["kl"].temperature == 2.0


def test_bias_is_told_from_noise():
    """On draws whose bias is known: the mean over many batches is right, as that of |mean of d|^2
    would not be, by a fifth of the noise."""
    rng = np.random.default_rng(0)
    gradient, bias = ({"a": rng.normal(size=6), "b": rng.normal(size=(2, 4))} for _ in range(2))
    bias = jax.tree.map(lambda x: 0.2 * x, bias)
    dense = cache_bias.Graded(np.float32(2.0), gradient)

    def drawn():
        off = jax.tree.map(lambda g, b: g + b + 0.5 * rng.normal(size=g.shape), gradient, bias)
        return cache_bias.Graded(np.float32(3.0), off)

    def square(tree):
        return sum(float(np.sum(x**2)) for x in tree.values())

    found = [cache_bias.gap(dense, (drawn() for _ in range(5))) for _ in range(300)]
    mean = {name: np.mean([getattr(one, name) for one in found]) for name in found[0]._fields}
    true, noise = square(bias) / square(gradient), 0.25 * 14 / square(gradient)
    error = np.std([one.bias_squared for one in found]) / len(found) ** 0.5
    assert abs(mean["bias_squared"] - true) < 3 * error < noise / 5
    assert mean["noise_squared"] == pytest.approx(noise, rel=0.1)
    assert mean["loss"] == 0.5
    alone = cache_bias.gap(dense, [drawn()])
    assert alone.bias_squared > 0 and alone.noise_squared == 0
    nothing = cache_bias.Graded(dense.loss, jax.tree.map(np.zeros_like, gradient))
    with pytest.raises(UserError, match="have no gradient"):
        cache_bias.gap(nothing, [drawn()])
