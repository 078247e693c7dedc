"""Which arms of a grid one program can train, and what they differ in there.

Arms may differ in numbers that a compiled program can be given (weights of the terms, temperatures
over words, the peak learning rate) and in the parameters that they start from (`student.init`,
`layer_map`). All else is part of the program or of the batch: arms that differ in it are other
groups, each with its own program.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from distilflax import losses
from distilflax.errors import UserError
from distilflax.losses import TERMS, Dial
from distilflax.settings import Ablation, Experiment, Term, with_overrides
from distilflax.train.step import Dials

# The experiment as its config has it: what the other arms are held against.
FULL = "full"

# What all arms have in common, because teacher, text and masks' weights are prepared once.
_COMMON = ("teacher", "teachers", "data", "head_fit", "evaluation", "mesh")


@dataclass(frozen=True, eq=False)
class Group:
    """Arms that one program trains.

    `program` is what the program is compiled for: it has every term that an arm has, at weight 1.
    """

    program: Experiment
    arms: dict[str, Experiment]

    def dials(self) -> Dials:
        """The arms' own numbers, stacked; a term that an arm leaves out has weight 0."""

        def stacked(numbers):
            return jnp.asarray(list(numbers), jnp.float32)

        arms = self.arms.values()
        return Dials(
            stacked(arm.optimizer.learning_rate for arm in arms),
            {
                name: Dial(
                    stacked(arm.losses.get(name, Term()).weight for arm in arms),
                    stacked(_temperature(arm, name) for arm in arms),
                )
                for name in self.program.losses
            },
        )

    def begins_as(self, name: str, seed: int) -> Experiment:
        """The arm `name` under `seed`, with all the terms of the group: its first parameters are
        those of every arm's shapes."""
        arm = self.arms[name]
        return replace(arm, seed=seed, losses=self.program.losses)

    def taught_as(self, seed: int) -> Experiment:
        """The program under `seed` at the arms' temperatures, where each term has but one: what a
        cache of the teacher is made for.

        Raises:
          UserError: words would have to be kept for several temperatures.
        """
        cache, terms = self.program.teacher_cache, {}
        for name, term in self.program.losses.items():
            with_it = [arm for arm in self.arms.values() if name in losses.active(arm.losses)]
            found = {_temperature(arm, name) for arm in with_it}
            if _tempered(name) and len(found) > 1 and cache.enabled and cache.words != "states":
                raise UserError(
                    f"config.teacher_cache.words is {cache.words!r}, which are kept for one "
                    f"temperature, but arms differ in that of {name}; set "
                    "teacher_cache.words='states'."
                )
            terms[name] = replace(term, temperature=min(found)) if _tempered(name) else term
        return replace(self.program, seed=seed, losses=terms)


def arms_of(experiment: Experiment) -> dict[str, Experiment]:
    """Every arm by name, checked: `full`, then `config.arms`, then the grid's combinations.

    Raises:
      UserError: naming the arm, if it is not a valid experiment or would need another teacher,
        other text, or other masks.
    """
    arms = {FULL: replace(experiment, arms={}, ablation=Ablation())}
    named = itertools.chain(experiment.arms.items(), combinations(experiment.ablation.grid))
    for name, overrides in named:
        if name in arms or "/" in name:
            raise UserError(f"config.arms.{name}: the name is taken or has a '/'; choose another.")
        arm = replace(with_overrides(experiment, overrides, name), ablation=Ablation())
        check_common(arm, arms[FULL], name)
        if arm.seed != experiment.seed:
            raise UserError(
                f"config.arms.{name} changes seed; the seeds of an ablation are those of "
                "config.ablation.seeds."
            )
        arms[name] = arm
    for arm in arms.values():
        run = arm.training
        losses.check(arm.losses, arm.data.layout, run.accumulate, run.batch_size)
    return arms


def check_common(arm: Experiment, full: Experiment, name: str) -> None:
    """What is prepared once, an arm must not change: it would be trained on something else.

    Raises:
      UserError: naming the arm and the setting.
    """
    changed = [group for group in _COMMON if getattr(arm, group) != getattr(full, group)]
    for setting in ("weighting", "power"):
        if getattr(arm.masking, setting) != getattr(full.masking, setting):
            changed.append(f"masking.{setting}")
    if changed:
        raise UserError(
            f"config.arms.{name} changes {changed[0]}, which is prepared once for all arms; leave "
            "it out, or make that a run of its own."
        )


def combinations(grid: Mapping[str, Any]) -> Iterator[tuple[str, dict]]:
    """(name, overrides) of every combination of the values at the leaves of `grid`.

    {"optimizer": {"learning_rate": (0.1, 0.2)}} gives `optimizer.learning_rate=0.1` and `...=0.2`.

    Raises:
      UserError: a leaf that is not a tuple of values.
    """
    axes = list(_leaves(grid, ()))
    for values in itertools.product(*(values for _, values in axes)) if axes else ():
        overrides: dict = {}
        for (path, _), value in zip(axes, values, strict=True):
            place = overrides
            for key in path[:-1]:
                place = place.setdefault(key, {})
            place[path[-1]] = value
        names = (f"{'.'.join(path)}={value}" for (path, _), value in zip(axes, values, strict=True))
        yield ",".join(names), overrides


def groups_of(arms: Mapping[str, Experiment], at_once: int = 0) -> list[Group]:
    """The arms, in as few groups as their programs allow, of at most `at_once` arms (0: any)."""
    groups: list[Group] = []
    for name, arm in arms.items():
        for i, group in enumerate(groups):
            room = not at_once or len(group.arms) < at_once
            if room and (program := _joined(group.program, arm)) is not None:
                groups[i] = Group(program, group.arms | {name: arm})
                break
        else:
            groups.append(Group(_program(arm), {name: arm}))
    return groups


def _program(arm: Experiment) -> Experiment:
    """The arm without the values that its program is given from outside."""
    student = replace(
        arm.student, init="teacher", layer_map="every_other", regression_tokens=1, copy_head=True
    )
    return replace(
        arm,
        seed=0,
        student=student,
        optimizer=replace(arm.optimizer, learning_rate=0.0),
        losses={name: _kind(name, term) for name, term in losses.active(arm.losses).items()},
    )


def _joined(program: Experiment, arm: Experiment) -> Experiment | None:
    """The program for its arms and this one too; None if there is no such program."""
    other = _program(arm)
    if replace(program, losses={}) != replace(other, losses={}):
        return None
    for name in program.losses.keys() & other.losses.keys():
        if program.losses[name] != other.losses[name]:
            return None
    return replace(program, losses=program.losses | other.losses)


def _kind(name: str, term: Term) -> Term:
    """The term at weight 1 and, if that is a number to the program, at temperature 1."""
    return replace(term, weight=1.0, temperature=1.0 if _tempered(name) else term.temperature)


def _tempered(name: str) -> bool:
    """Whether the program is given the term's temperature: over words, `losses/rows.py`."""
    return TERMS[name].over == "logits" and "temperature" in TERMS[name].options


def _temperature(arm: Experiment, name: str) -> float:
    term = arm.losses.get(name, Term())
    return term.temperature if term.weight and _tempered(name) else 1.0


def _leaves(grid: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple, tuple]]:
    for key, value in grid.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        elif isinstance(value, (tuple, list)) and value:
            yield (*path, key), tuple(value)
        else:
            place = ".".join(("config.ablation.grid", *path, key))
            raise UserError(f"{place} is {value!r}; give a tuple of the values to try.")
