import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from distilflax import settings
from distilflax.errors import UserError
from distilflax.tasks.settings import Augmentation, FineTuning
from distilflax.train import machine
from distilflax.train import workdir as workdirs

EXPERIMENT = settings.Experiment(
    losses={"kl": settings.Term(weight=5.0), "mlm": settings.Term(weight=2.0)}
)


def changed(**values):
    """The experiment with dotted settings changed: changed(**{"training.steps": 7})."""
    nested = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return settings.with_overrides(EXPERIMENT, nested, "test")


def enter(path, experiment=EXPERIMENT):
    with workdirs.open_workdir(path, experiment) as workdir:
        return workdir


def test_a_new_folder_is_made_and_belongs_to_the_config(tmp_path):
    workdir = enter(tmp_path / "a" / "b")
    assert json.loads(workdir.config.read_text()) == json.loads(settings.to_json(EXPERIMENT))
    assert settings.from_config(json.loads(workdir.config.read_text())) == EXPERIMENT
    enter(workdir.folder)  # And again.
    assert len(workdir.environment.read_text().splitlines()) == 2


def test_another_config_is_refused_with_both_values(tmp_path):
    enter(tmp_path)
    other = changed(**{"training.steps": 7, "losses.kl.weight": 4.0, "seed": 3})
    with pytest.raises(UserError) as refused:
        enter(tmp_path, other)
    message = str(refused.value)
    assert "losses.kl.weight is 5.0 there and 4.0 here" in message
    assert "training.steps is 0 there and 7 here" in message
    assert "seed is 0 there and 3 here" in message
    assert str(tmp_path) in message and "delete it" in message


def test_many_differences_are_counted(tmp_path):
    enter(tmp_path)
    other = changed(**{f"data.{key}": 64 for key in ("max_length", "min_tokens", "max_documents")})
    other = dataclasses.replace(other, seed=1)
    with pytest.raises(UserError, match=r"; and 1 more;"):
        enter(tmp_path, other)


def test_a_term_that_came_or_went_is_named(tmp_path):
    enter(tmp_path)
    fewer = dataclasses.replace(EXPERIMENT, losses={"kl": EXPERIMENT.losses["kl"]})
    with pytest.raises(UserError, match=r"losses.mlm.\w+ is .* there and absent here"):
        enter(tmp_path, fewer)


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, tuple):
        return (*value, 99)
    return {"mean": "cls", "auto": "plain"}.get(value, f"{value}-other")


def leaves(values, place=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


@pytest.mark.parametrize("pattern", workdirs.FREE_TO_CHANGE)
def test_every_free_setting_exists_and_is_free(tmp_path, pattern):
    """A name in the table that no setting has would be a rule that guards nothing."""
    enter(tmp_path)
    if pattern == "arms.*":
        arms = {"no_kl": {"losses": {"kl": {"weight": 0.0}}}}
        enter(tmp_path, dataclasses.replace(EXPERIMENT, arms=arms))
        return
    if pattern in ("augmentation.cache", "reported"):  # of fine-tuning runs
        run = FineTuning(augmentation=Augmentation(cache="here"), reported=("accuracy",))
        other = {"augmentation": Augmentation()} if "." in pattern else {"reported": ()}
        enter(tmp_path / "tuned", run)
        enter(tmp_path / "tuned", dataclasses.replace(run, **other))
        return
    every = dict(leaves(dataclasses.asdict(EXPERIMENT)))
    matching = [key for key in every if key == pattern or key.startswith(pattern.rstrip("*"))]
    assert matching
    for key in matching:
        enter(tmp_path, changed(**{key: other_value(every[key])}))


def test_runs_that_share_a_folder_are_held_to_the_same(tmp_path):
    enter(tmp_path, workdirs.Members({"a.b": EXPERIMENT, "c": EXPERIMENT}))
    free = changed(**{"training.log_every": 3})
    enter(tmp_path, workdirs.Members({"a.b": free, "c": EXPERIMENT}))
    other = changed(**{"losses.kl.weight": 4.0})
    with pytest.raises(
        UserError, match=r"members\.a\.b\.losses\.kl\.weight is 5\.0 there and 4\.0"
    ):
        enter(tmp_path, workdirs.Members({"a.b": other, "c": EXPERIMENT}))


@pytest.mark.parametrize(
    "key, value",
    [
        # The metric that counts is chosen before anything has run.
        ("ablation.metric", "ndcg@10"),
        # Arms would be in other groups than those that the folder holds.
        ("ablation.arms_at_once", 2),
        ("training.steps", 100),
        ("training.epochs", 2.0),
        ("training.batch_size", 64),
        ("optimizer.learning_rate", 1e-3),
        ("compute.dtype", "bfloat16"),
        ("data.max_length", 64),
        ("teacher.path", "elsewhere"),
    ],
)
def test_what_changes_the_result_is_not_free(tmp_path, key, value):
    enter(tmp_path)
    with pytest.raises(UserError, match=rf"another config: {key} is"):
        enter(tmp_path, changed(**{key: value}))


def test_two_runs_cannot_be_in_one_workdir(tmp_path):
    refused = pytest.raises(UserError, match=rf"in use by process {os.getpid()}; wait")
    with workdirs.open_workdir(tmp_path, EXPERIMENT), refused:
        enter(tmp_path)
    enter(tmp_path)


def test_the_lock_goes_with_an_exception_and_with_a_killed_process(tmp_path):
    with pytest.raises(KeyError), workdirs.open_workdir(tmp_path, EXPERIMENT):
        raise KeyError
    hold = (
        "import fcntl,sys; f=open(sys.argv[1],'a+'); fcntl.flock(f,2); print(1); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        # Unbuffered: what it prints has to arrive while it still holds the lock.
        [sys.executable, "-u", "-c", hold, tmp_path / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match="in use"):
            enter(tmp_path)
        holder.kill()
    enter(tmp_path)


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"--workdir .* cannot be used .*choose another"):
            enter(path)


def test_checkpoints_of_unknown_origin_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"no config.json to say whose"):
        enter(tmp_path)


@pytest.mark.parametrize("text", ['{"seed": ', "[]", "[" * 100_000])
def test_a_broken_config_is_refused(tmp_path, text):
    enter(tmp_path).config.write_text(text)
    with pytest.raises(UserError, match=r"config.json is not JSON any more"):
        enter(tmp_path)


def test_the_environment_is_recorded_without_the_machine(tmp_path):
    line = enter(tmp_path).environment.read_text()
    record = json.loads(line)
    assert record["versions"]["jax"] == jax.__version__
    assert record["devices"] == 8 and record["versions"]["python"]
    assert socket.gethostname() not in line and str(Path.home()) not in line


@pytest.fixture
def no_cache_yet():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_beside_the_workdir(tmp_path, no_cache_yet):
    jax.jit(lambda x: x + 1)(1.0)  # An earlier compilation must not settle that there is none.
    folder = workdirs.enable_compilation_cache(tmp_path / "runs" / "one")
    assert folder.parent == tmp_path / "runs" / ".jax-cache"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: jnp.sin(x) * 3)(1.0).block_until_ready()
    assert list(folder.glob("*-cache"))
    assert workdirs.enable_compilation_cache(tmp_path / "elsewhere" / "two") == folder


def test_the_cache_key_follows_the_processor(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", told)
    keys = []
    for flags in ("sse2", "sse2 avx2"):
        for clock in (1000, 3000):  # What changes from minute to minute must not count.
            told.write_text(f"model name\t: A\ncpu MHz\t: {clock}\nflags\t: {flags}\n")
            keys.append(machine.processor_key())
    assert keys[0] == keys[1] != keys[2] == keys[3]
