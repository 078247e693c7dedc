"""Arms of one program: grouped by what they share, each the same as its own run."""

import contextlib
import copy
import dataclasses
import functools
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from distilflax import settings
from distilflax.errors import UserError
from distilflax.evaluate import ablation
from distilflax.evaluate import grid as grid_of_arms
from distilflax.train import arms, arms_loop, loop, memory, sharding, state
from distilflax.train.setup import new_student, prepare
from distilflax.train.step import keys_of, make_arms_step
from distilflax.train.workdir import open_workdir

OFF = {
    "bare": {
        "losses": {"kl": {"weight": 0.0}, "cosine": {"weight": 0.0}},
        "student": {"init": "random"},
    },
    "faster": {
        "optimizer": {"learning_rate": 2e-3},
        "losses": {"kl": {"temperature": 4.0, "weight": 1.0}},
    },
}


ONE_DEVICE = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Compiling for eight devices takes far longer, and only one test is about them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", ONE_DEVICE)
        yield


@pytest.fixture(scope="module")
def grid(experiment):
    """Three arms of a run with dropout and micro-batches, and what they share."""
    which = experiment(
        student={"num_layers": 1},
        training={"batch_size": 16, "accumulate": 2, "steps": 4, "evaluate_every": 0},
        optimizer={"weight_decay": 0.01},
    )
    found = arms.arms_of(dataclasses.replace(which, arms=OFF))
    return found, prepare(which, found.values(), lambda _: None)


def say(text):
    del text


def of_other_text(materials):
    corpus = dataclasses.replace(materials.corpus, fingerprint="0" * 16)
    return dataclasses.replace(materials, corpus=corpus)


def run(together, seed, folder):
    """As `experiments.ablate` does."""
    with open_workdir(folder, arms_loop.members_of(together.group, seed)) as workdir:
        return together.train(seed, workdir)


@pytest.fixture(scope="module")
def together(grid):
    (group,) = arms.groups_of(grid[0])
    return arms_loop.Together(group, grid[1], say)


@pytest.fixture(scope="module")
def trained(together, tmp_path_factory):
    return run(together, 1, tmp_path_factory.mktemp("together"))


def close(ours, theirs, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), ours, theirs
    )


@pytest.mark.parametrize("name", list(OFF))
def test_an_arm_is_its_own_run(grid, trained, tmp_path, name):
    found, materials = grid
    alone = loop.train(dataclasses.replace(found[name], seed=1), materials, tmp_path)
    close(trained.params[name], alone.params, 1e-6)
    assert (trained.steps, trained.tokens) == (alone.steps, alone.tokens)


def test_arms_differ_and_log_what_they_train_on(trained, together, tmp_path_factory):
    kernels = [p["encoder"]["layers_0"]["ffn"]["up"]["kernel"] for p in trained.params.values()]
    assert min(np.abs(a - b).max() for a in kernels for b in kernels if a is not b) > 1e-5
    assert list(trained.params) == ["full", *OFF]
    assert not trained.diverged


def products(jaxpr):
    """The shape of every matrix product's result, of nested programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_the_teacher_runs_once_for_all_arms(grid, together):
    found, materials = grid
    _, one = new_student(found["full"], materials)
    arms_here, layers = (len(found), together.pair.teacher.num_layers)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct((arms_here, *x.shape), x.dtype), one)
    opt_state = jax.eval_shape(jax.vmap(together.optimizer.init), params)
    current = state.State(jax.ShapeDtypeStruct((), np.int32), params, opt_state)
    ids = jax.ShapeDtypeStruct((16, 16), np.int32)
    step = make_arms_step(together.group.program, together.pair, 4, arms_here, None)
    traced = jax.make_jaxpr(step)(
        current,
        materials.teacher.params,
        materials.table,
        {"input_ids": ids, "attention_mask": ids},
        keys_of(0),
        together.dials,
    )
    shapes = list(products(traced.jaxpr))
    without_arms = [shape for shape in shapes if arms_here not in shape]
    # Query, key, value, scores, their use, output, up and down, in each of the teacher's layers.
    assert 8 * layers <= len(without_arms) < 8 * layers + 6
    # And the students' forward and backward passes have theirs.
    assert len(shapes) - len(without_arms) >= 3 * 8 * together.pair.student.num_layers


def test_a_stopped_group_goes_on_to_the_same_bits(together, trained, tmp_path, monkeypatch):
    begin, calls = arms_loop.Together._program, []

    def stopping(self, *args):
        calls.append(None)
        if len(calls) == 1 + 2:  # Once before the first step.
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, *args)

    monkeypatch.setattr(arms_loop.Together, "_program", stopping)
    stopped = run(together, 1, tmp_path)
    assert (stopped.steps, stopped.exit_code) == (2, 128 + signal.SIGTERM)
    monkeypatch.undo()
    other = copy.copy(together)
    other.materials = of_other_text(together.materials)
    with pytest.raises(UserError, match="was begun with another text under the same name"):
        run(other, 1, tmp_path)
    resumed = run(together, 1, tmp_path)
    assert (resumed.steps, resumed.exit_code) == (4, 0)
    assert resumed.tokens == trained.tokens
    jax.tree.map(np.testing.assert_array_equal, resumed.params, trained.params)


def test_a_group_on_a_mesh_is_the_group_on_one_device(grid, trained, tmp_path, monkeypatch):
    found, materials = grid
    monkeypatch.setattr(sharding, "make_mesh", ONE_DEVICE.func)
    (group,) = arms.groups_of(found)
    one = dataclasses.replace(group.program, mesh=settings.Mesh(2, 2, 2))
    spread = arms_loop.Together(dataclasses.replace(group, program=one), materials, say)
    close(run(spread, 1, tmp_path).params, trained.params, 1e-5)


@pytest.mark.usefixtures("trained")
def test_more_memory_than_there_is_is_said_beforehand(grid, together, tmp_path, monkeypatch):
    anew = arms_loop.Together(together.group, grid[1], say)
    (compiled,) = together.compiled.values()
    whole = memory.needed(compiled) - memory.held(together.teacher)
    monkeypatch.setattr(memory, "available", lambda: int(0.8 * whole))
    refused = r"3 arms in one program take .*arms_at_once=2, which fits, and give another --workdir"
    with pytest.raises(UserError, match=refused):
        run(anew, 0, tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(UserError, match=r"not even one does: lower .*, and give another"):
        memory.check_arms(compiled, 3, {})


def test_the_longest_batch_is_checked_before_anything_is_allocated(grid, tmp_path, monkeypatch):
    (group,) = arms.groups_of(grid[0])
    data = dataclasses.replace(group.program.data, buckets=(8, 12, 16))
    group = dataclasses.replace(group, program=dataclasses.replace(group.program, data=data))
    anew, lengths = arms_loop.Together(group, grid[1], say), []

    class Program:
        def lower(self, state, teacher, table, batch, keys, dials):
            lengths.append(batch["input_ids"].shape[1])
            return self

        def compile(self):
            return self

    def refuse(*given):
        raise UserError("too much")

    monkeypatch.setattr(arms_loop, "make_arms_step", lambda *given: Program())
    monkeypatch.setattr(memory, "check_arms", refuse)
    with contextlib.closing(loop.batches_of(group.taught_as(1), grid[1], anew.mesh)) as batches:
        assert next(batches)["input_ids"].shape[1] < 16
    with pytest.raises(UserError, match="too much"):
        run(anew, 1, tmp_path)
    assert lengths == [16]


def test_memory_is_known_here():
    assert memory.available() > 1e6


# --- which arms share a program


def names(groups):
    return [list(group.arms) for group in groups]


def of(experiment, arms_by_name, **ablation):
    which = dataclasses.replace(
        experiment(), arms=arms_by_name, ablation=settings.Ablation(**ablation)
    )
    return arms.arms_of(which)


def test_numbers_and_starts_share_a_program_and_shapes_do_not(experiment):
    found = of(
        experiment,
        OFF
        | {
            "deeper": {"student": {"num_layers": 3}},
            "real": {"losses": {"kl": {"positions": "masked"}}},
            "longer": {"training": {"steps": 7}},
            "deeper_no_kl": {"student": {"num_layers": 3}, "losses": {"kl": {"weight": 0.0}}},
            "more": {"losses": {"sentence": {"weight": 1.0}}},
        },
    )
    groups = arms.groups_of(found)
    assert names(groups) == [
        ["full", *OFF, "more"],
        ["deeper", "deeper_no_kl"],
        ["real"],
        ["longer"],
    ]
    assert set(groups[0].program.losses) == {"kl", "mlm", "cosine", "sentence"}
    dials = groups[0].dials()
    assert dials.terms["kl"].weight.tolist() == [5.0, 0.0, 1.0, 5.0]
    assert dials.terms["kl"].temperature.tolist() == [2.0, 1.0, 4.0, 2.0]
    assert dials.terms["sentence"].weight.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert names(arms.groups_of(found, 3))[0] == ["full", *OFF]
    assert ["more"] in names(arms.groups_of(found, 3))


def test_a_term_that_an_arm_leaves_out_does_not_keep_it_apart(experiment):
    """Its options, at weight 0, are nobody's."""
    changed = {"losses": {"kl": {"weight": 0.0, "positions": "masked"}}}
    assert len(arms.groups_of(of(experiment, {"no_kl": changed}))) == 1


def test_what_a_group_is_made_of_is_text_teachers_and_the_model_it_is_cut_out_of(experiment, grid):
    found = of(experiment, {"cut": {"student": {"path": "elsewhere"}}})
    own, cut = arms.groups_of(found)
    teacher = grid[1].teacher
    other = dataclasses.replace(teacher, fingerprint="1" * 64)
    materials = dataclasses.replace(grid[1], others={"b": other}, origins={"elsewhere": other})
    made_of = {"text": grid[1].corpus.fingerprint, "teacher": teacher.fingerprint}
    made_of["teacher b"] = other.fingerprint
    assert arms_loop.sources_of(own, materials) == made_of
    assert arms_loop.sources_of(cut, materials) == made_of | {"student.path": other.fingerprint}


def test_a_grid_is_every_combination(experiment):
    values = {"optimizer": {"learning_rate": (1e-4, 1e-3)}, "losses": {"kl": {"weight": (1, 2)}}}
    found = of(experiment, {}, grid=values)
    assert list(found) == [
        "full",
        *(
            f"optimizer.learning_rate={rate},losses.kl.weight={weight}"
            for rate in (1e-4, 1e-3)
            for weight in (1, 2)
        ),
    ]
    assert found["optimizer.learning_rate=0.001,losses.kl.weight=1"].losses["kl"].weight == 1.0
    with pytest.raises(UserError, match=r"ablation\.grid\.seed is 3; give a tuple"):
        of(experiment, {}, grid={"seed": 3})


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"data": {"max_length": 8}}, "changes data, which is prepared once"),
        ({"seed": 4}, "changes seed; the seeds of"),
        ({"masking": {"power": 0.0}}, r"changes masking\.power, which"),
        ({"losses": {"kl": {"wight": 1}}}, "wight is not a setting"),
    ],
)
def test_what_cannot_be_an_arm_is_refused(experiment, overrides, message):
    with pytest.raises(UserError, match=message):
        of(experiment, {"bad": overrides})


def test_an_arm_may_change_what_is_not_prepared_once(experiment):
    full = experiment()
    fits = dataclasses.replace(full, masking=settings.Masking(sequences=0.5), seed=3)
    arms.check_common(fits, full, "fits")
    other = dataclasses.replace(full, data=dataclasses.replace(full.data, max_length=8))
    with pytest.raises(UserError, match=r"arms\.other changes data, which is prepared once"):
        arms.check_common(other, full, "other")


# --- a whole grid: what is kept of it, and not done twice


class Ruler(ablation.Yardstick):
    """One whose figure is the student's own, without any model or text to measure with."""

    def __init__(self, data="one"):
        self.measured, self.outside = (
            [],
            SimpleNamespace(fingerprints={"config.ablation.sts": data}),
        )

    def measure(self, students):
        self.measured += [student.name for student in students]
        sums = [np.sum(student.params["encoder"]["embeddings"]["word"]) for student in students]
        return [{"mrr@10": float(value)} for value in sums]


def test_what_is_done_is_not_done_again(small, tmp_path, monkeypatch):
    which = small(training={"steps": 2, "evaluate_every": 0}, optimizer={"clip_norm": 0.0})
    which = dataclasses.replace(
        which,
        arms={"wild": {"optimizer": {"learning_rate": 1e30}}},
        ablation=settings.Ablation(seeds=(0, 1), save_students=True),
    )
    found = arms.arms_of(which)
    (group,) = arms.groups_of(found)
    materials = prepare(which, found.values(), say)

    def call(yardstick):
        return grid_of_arms.run(which, [group], materials, yardstick, tmp_path, say)

    # Stopped during the second seed: the first one's figures are there already.
    program, calls = arms_loop.Together._program, []

    def stopping(self, *args):
        calls.append(None)
        if len(calls) == 3 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return program(self, *args)

    monkeypatch.setattr(arms_loop.Together, "_program", stopping)
    stopped = call(first := Ruler())
    assert stopped.exit_code == 128 + signal.SIGTERM and first.measured == ["full"]
    monkeypatch.undo()
    ran = call(second := Ruler())
    assert ran.exit_code == 0 and second.measured == ["full"]
    # What diverged has no figures, and no checkpoint is left of what has been measured.
    assert ran.figures["wild"] == {0: None, 1: None}
    assert ran.figures["full"][0] != ran.figures["full"][1]
    assert not list(tmp_path.glob("group0/*/checkpoints"))
    kept = ran.student("full", 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))
    with pytest.raises(UserError, match="no student of wild under seed 0"):
        ran.student("wild", 0)
    # And now nothing is trained at all.
    monkeypatch.setattr(arms_loop.Together, "__init__", None)
    assert call(third := Ruler()) == ran and not third.measured
    # Nor are figures taken that came of other text.
    with pytest.raises(UserError, match=r"seed0 was begun with another text under the same"):
        grid_of_arms.run(which, [group], of_other_text(materials), Ruler(), tmp_path, say)
    with pytest.raises(UserError, match=r"begun with another config\.ablation\.sts under"):
        call(Ruler("other"))
    fewer = dataclasses.replace(which.evaluation, retrieval_entries=3)
    other = dataclasses.replace(which, evaluation=fewer)
    with pytest.raises(UserError, match=r"another config\.evaluation\.retrieval_entries under"):
        grid_of_arms.run(other, [group], materials, Ruler(), tmp_path, say)
    # A student that is asked for too late is missed aloud.
    shutil.rmtree(ran.folders["full"][0] / "model")
    said = []
    grid_of_arms.run(which, [group], materials, Ruler(), tmp_path, said.append)
    assert [line for line in said if "not kept" in line] == [said[-1]] and "full under" in said[-1]
    more_seeds = dataclasses.replace(
        which, ablation=settings.Ablation(seeds=(0, 1, 2), save_students=True)
    )
    place = grid_of_arms.folder_of(tmp_path, which)
    assert place == grid_of_arms.folder_of(tmp_path, more_seeds)
    assert place != grid_of_arms.folder_of(tmp_path, found["wild"])
    assert grid_of_arms.changes(found["wild"], found["full"]) == "optimizer.learning_rate=1e+30"
