import dataclasses
import json
import math

import ml_collections
import pytest

from distilflax import settings
from distilflax.errors import UserError, choose_from
from distilflax.settings import Experiment, Term, from_config, term, with_overrides


def test_the_defaults_survive_the_way_through_a_config():
    assert from_config(settings.default_config()) == Experiment()
    assert from_config({}) == Experiment()


def test_the_defaults_are_the_papers():
    encoder, optimizer, masking = settings.Encoder(), settings.Optimizer(), settings.Masking()
    assert (encoder.num_layers, encoder.hidden_size, encoder.num_heads) == (12, 768, 12)
    assert (encoder.intermediate_size, encoder.vocab_size) == (3072, 30522)
    assert encoder.layer_norm_eps == 1e-12
    assert (optimizer.learning_rate, optimizer.b1, optimizer.b2) == (5e-4, 0.9, 0.98)
    assert (optimizer.eps, optimizer.weight_decay, optimizer.clip_norm) == (1e-6, 0.0, 5.0)
    assert (masking.rate, masking.mask, masking.keep, masking.random) == (0.15, 0.8, 0.1, 0.1)
    assert (masking.weighting, masking.power) == ("rarity", 0.7)


def test_values_reach_their_places():
    config = settings.default_config()
    config.losses.kl = term(weight=5.0, temperature=2.0, schedule=((0.0, 1.0), (1, 0)))
    config.data.buckets = (64, 128)
    config.training.epochs = 3
    experiment = from_config(config)
    assert experiment.losses == {
        "kl": Term(weight=5.0, temperature=2.0, schedule=((0.0, 1.0), (1.0, 0.0)))
    }
    assert experiment.data.buckets == (64, 128)
    assert experiment.training.epochs == 3.0
    assert isinstance(experiment.training.epochs, float)


def test_a_group_may_be_a_dict_or_a_config_dict():
    as_dict = {"losses": {"kl": {"weight": 1.0}}, "arms": {"off": {"losses": {}}}}
    inside = {
        "losses": {"kl": term(weight=1.0)},
        "arms": {"off": ml_collections.ConfigDict({"losses": {}})},
    }
    assert from_config(as_dict) == from_config(inside)
    assert from_config(as_dict) == from_config(ml_collections.ConfigDict(as_dict))


def test_settings_are_frozen_and_static():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().seed = 1
    # Static arguments of a jitted function must be hashable, and equal where they say the same.
    assert hash(settings.Encoder()) == hash(settings.Encoder())
    assert hash(settings.Compute()) != hash(settings.Compute(remat=True))


UNKNOWN = [
    ({"trainig": {}}, r"config\.trainig is not a setting; .*did you mean 'training'\?"),
    ({"training": {"bach_size": 1}}, r"config\.training\.bach_size is not .* 'batch_size'\?"),
    ({"losses": {"kl": {"weigth": 1}}}, r"config\.losses\.kl\.weigth is not .* 'weight'\?"),
    ({"teacher": {"zzz": 1}}, r"config\.teacher\.zzz .*choose from path, mlm_head, share\.$"),
    ({3: 3}, r"config\.3 is not a setting"),
]
TYPES = [
    ({"seed": "0"}, r"config\.seed must be int, not '0'"),
    ({"seed": True}, r"config\.seed must be int, not True"),
    ({"seed": 1.5}, r"config\.seed must be int, not 1\.5"),
    ({"training": {"tensorboard": 1}}, r"config\.training\.tensorboard must be bool, not 1"),
    ({"teacher": {"path": None}}, r"config\.teacher\.path must be str, not None"),
    ({"optimizer": {"eps": False}}, r"config\.optimizer\.eps must be float, not False"),
    ({"training": 3}, r"config\.training must be a group of settings, not 3"),
    ({"losses": {"kl": 5.0}}, r"config\.losses\.kl must be a group of settings, not 5\.0"),
    ({"losses": ["kl"]}, r"config\.losses must be a group of settings"),
    ({"arms": {"a": 3}}, r"config\.arms\.a must be a group of settings, not 3"),
    ({"arms": {"a": "xy"}}, r"config\.arms\.a must be a group of settings, not 'xy'"),
    ({"data": {"buckets": 64}}, r"config\.data\.buckets must be a tuple, not 64"),
    ({"data": {"buckets": "64"}}, r"config\.data\.buckets must be a tuple, not '64'"),
    ({"data": {"buckets": (64.0,)}}, r"config\.data\.buckets\[0\] must be int, not 64\.0"),
    (
        {"losses": {"relations": {"between": (1.0, 2.0)}}},
        r"between\[0\] must be str, not 1\.0; put it in quotes, as in \"'1\.0'\"\.$",
    ),
    ({"losses": {"relations": {"between": (True,)}}}, r"between\[0\] must be str, not True"),
    ({"losses": {"kl": {"schedule": (0.5,)}}}, r"kl\.schedule\[0\] must be a tuple, not 0\.5"),
    ({"losses": {"kl": {"schedule": ((0.5,),)}}}, r"schedule\[0\] must have 2 entries, not 1"),
]
BOUNDS = [
    ({"losses": {"kl": {"weight": -1.0}}}, r"config\.losses\.kl\.weight is -1\.0; .*at least 0"),
    ({"losses": {"kl": {"temperature": 0}}}, r"temperature is 0\.0; it must be at least 0\.001"),
    ({"training": {"batch_size": 0}}, r"config\.training\.batch_size is 0; .* at least 1"),
    ({"masking": {"rate": 0.95}}, r"config\.masking\.rate is 0\.95; it must be at most 0\.9"),
    ({"student": {"dropout": 1}}, r"config\.student\.dropout is 1\.0; it must be at most 0\.99"),
    ({"optimizer": {"learning_rate": math.nan}}, r"learning_rate is nan; .*a finite number"),
    ({"optimizer": {"learning_rate": math.inf}}, r"learning_rate is inf; .*a finite number"),
    (
        {"losses": {"kl": {"schedule": ((math.nan, 1),)}}},
        r"schedule\[0\]\[0\] is nan; .*a finite number",
    ),
    ({"compute": {"dtype": "float16"}}, r"config\.compute\.dtype is 'float16'; .* 'bfloat16'\?"),
    ({"student": {"init": "techer"}}, r"config\.student\.init .* did you mean 'teacher'\?"),
]
COMBINATIONS = [
    ({"data": {"buckets": (32, 64)}}, r"the largest is 64 but max_length is 128; add a bucket"),
    ({"data": {"buckets": (-1, 128)}}, r"config\.data\.buckets holds -1; .*at least 1"),
    ({"training": {"batch_size": 10, "accumulate": 4}}, r"batch_size 10 .* accumulate=4"),
    ({"teachers": {"teacher": {}}}, r"teachers\.teacher: .* is the name of config\.teacher"),
    ({"teachers": {"average": {}}}, r"teachers\.average: .* the name of the student average"),
    ({"training": {"steps": 0, "epochs": 0}}, r"steps and epochs are both 0; give one"),
    (
        {"training": {"evaluate_every": 9}, "data": {"validation_fraction": 0.0}},
        r"evaluate_every measures on held-out text, and data\.validation_fraction is 0",
    ),
    ({"masking": {"mask": 0.9}}, r"mask \+ keep \+ random is 1\.1; they must add up to 1"),
]


@pytest.mark.parametrize("config, message", [*UNKNOWN, *TYPES, *BOUNDS, *COMBINATIONS])
def test_a_mistake_is_answered_in_one_sentence(config, message):
    with pytest.raises(UserError, match=message) as caught:
        from_config(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1, 0)])
def test_seeds_of_an_ablation_are_different(seeds):
    with pytest.raises(UserError, match=r"ablation\.seeds is .*give different numbers"):
        from_config({"ablation": {"seeds": seeds}})


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"hidden_size 10 does not divide into 4 heads"):
        settings.Encoder(hidden_size=10, num_heads=4)


def test_a_term_says_what_it_does_not_know():
    with pytest.raises(UserError, match=r"term\.wieght is not a setting; .* 'weight'\?"):
        term(wieght=1.0)


# --- arms


def base():
    return from_config(
        {
            "losses": {"kl": {"weight": 5.0, "temperature": 2.0}, "mlm": {"weight": 2.0}},
            "arms": {"no_kl": {"losses": {"kl": {"weight": 0.0}}}, "seed_1": {"seed": 1}},
        }
    )


def test_an_arm_changes_what_it_names_and_nothing_else():
    experiment = base()
    arm = with_overrides(experiment, experiment.arms["no_kl"], "no_kl")
    assert arm.losses["kl"] == Term(weight=0.0, temperature=2.0)
    assert dataclasses.replace(arm, losses=experiment.losses, arms=experiment.arms) == experiment
    assert with_overrides(experiment, experiment.arms["seed_1"], "seed_1").seed == 1
    # The base is as it was, and an arm has no arms of its own.
    assert experiment == base()
    assert arm.arms == {}


def test_an_arm_may_add_a_term():
    arm = with_overrides(base(), {"losses": {"cosine": {"weight": 1.0}}}, "cosine")
    assert set(arm.losses) == {"kl", "mlm", "cosine"}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"losses": {"kl": {"wight": 0}}}, r"config\.arms\.bad\.losses\.kl\.wight is not a sett"),
        ({"seed": -1}, r"config\.arms\.bad\.seed is -1"),
        ({"student": 3}, r"config\.arms\.bad\.student must be a group"),
    ],
)
def test_a_mistake_in_an_arm_names_the_arm(overrides, message):
    with pytest.raises(UserError, match=message):
        with_overrides(base(), overrides, "bad")


# --- the record of a run


def test_json_is_stable_and_complete():
    text = settings.to_json(base())
    assert text == settings.to_json(base())
    reordered = from_config(dict(reversed(dataclasses.asdict(base()).items())))
    assert settings.to_json(reordered) == text
    assert from_config(json.loads(text)) == base()
    other = dataclasses.replace(base(), optimizer=settings.Optimizer(eps=1e-7))
    assert settings.to_json(other) != text


# --- errors


def test_choices_end_with_the_nearest_if_there_is_one():
    assert choose_from("kl_", ["kl", "mlm"]) == "choose from kl, mlm; did you mean 'kl'?"
    assert choose_from("zzz", ["kl", "mlm"]) == "choose from kl, mlm."
    assert choose_from("zzz", []) == "there is nothing to choose from."
    assert issubclass(UserError, ValueError)


def test_words_of_a_command_line_are_several():
    """As ml_collections hands on `--config.losses.relations.between=queries,keys`."""
    given = {"losses": {"relations": {"between": ("queries,keys",)}}}
    assert from_config(given).losses["relations"].between == ("queries", "keys")


@pytest.mark.parametrize("numbers", [(1, 2), (-1, 0), (5,)])
def test_whole_numbers_of_a_command_line_may_be_names(numbers):
    """As ml_collections hands on `--config.options.labels=1,2`."""
    given = {"losses": {"relations": {"between": numbers}}}
    assert from_config(given).losses["relations"].between == tuple(map(str, numbers))
