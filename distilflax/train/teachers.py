"""Who teaches: one teacher, several of them, or an average of the student itself.

`config.teacher` is the first, from which student, tokenizer and text come; `config.teachers` are
more, by name; and with `config.teaching.average_decay` the exponential moving average of the
student's own parameters is another (Tarvainen and Valpola 2017, mean teacher, arXiv:1703.01780).
Every one has a share, and one of share 0 does not teach.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from distilflax import losses
from distilflax.settings import AVERAGE, FIRST_TEACHER, Encoder, Experiment
from distilflax.train import sharding
from distilflax.train.frozen import merged
from distilflax.train.optimizer import average_of
from distilflax.train.setup import Materials
from distilflax.train.state import State


class Pair(NamedTuple):
    """The architectures of a step: the student's, its teacher's, and those of `config.teachers`.

    `pooling` is how the teacher makes sentence vectors, and the student that stands in for it;
    `others_pooling` how the others do. Hashable, so that it may be a static argument.
    """

    student: Encoder
    teacher: Encoder
    others: tuple[Encoder, ...] = ()
    pooling: str = "mean"
    others_pooling: tuple[str, ...] = ()


class Lesson(NamedTuple):
    """One teacher in a step."""

    share: float
    encoder: Encoder
    params: dict
    pooling: str = "mean"


def roster(experiment: Experiment) -> dict[str, float]:
    """The teachers that teach, by name, with their shares of 1."""
    shares = {FIRST_TEACHER: experiment.teacher.share}
    shares |= {name: teacher.share for name, teacher in experiment.teachers.items()}
    if experiment.teaching.average_decay:
        shares[AVERAGE] = experiment.teaching.average_share
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items() if share}


def encoders(experiment: Experiment, pair: Pair) -> dict[str, Encoder]:
    """The architecture of each teacher that teaches."""
    known = {FIRST_TEACHER: pair.teacher, AVERAGE: pair.student}
    known |= dict(zip(experiment.teachers, pair.others, strict=True))
    return {name: known[name] for name in roster(experiment)}


def lessons(experiment: Experiment, pair: Pair, teacher_params: dict) -> list[Lesson]:
    """The teachers whose parameters `teacher_params` holds; none where no term compares with one.

    `teacher_params` are those of the first teacher where it is the only one, otherwise a dict of
    parameters by name. The student's average may be missing: a training step has it elsewhere.
    """
    if not losses.needs_teacher(experiment.losses):
        return []
    shares, of = roster(experiment), encoders(experiment, pair)
    if tuple(shares) == (FIRST_TEACHER,):
        return [Lesson(1.0, of[FIRST_TEACHER], teacher_params, pair.pooling)]
    pooling = dict(zip(experiment.teachers, pair.others_pooling, strict=False))
    return [
        Lesson(shares[name], of[name], teacher_params[name], pooling.get(name, pair.pooling))
        for name in shares
        if name in teacher_params
    ]


def drawn(
    experiment: Experiment, lessons: list[Lesson], key: PRNGKeyArray
) -> Int[Array, ""] | None:
    """Which lesson a step takes, drawn by the shares; None where it takes all."""
    if experiment.teaching.several != "draw" or len(lessons) < 2:
        return None
    shares = jnp.asarray([lesson.share for lesson in lessons])
    return jax.random.categorical(key, jnp.log(shares))


def pair_of(experiment: Experiment, materials: Materials, student: Encoder) -> Pair:
    """The architectures of a run."""
    teacher, others = materials.teacher, [materials.others[name] for name in experiment.teachers]
    return Pair(
        student,
        teacher.encoder,
        tuple(other.encoder for other in others),
        teacher.vectors.pooling,
        tuple(other.vectors.pooling for other in others),
    )


def placed(experiment: Experiment, materials: Materials, mesh: Mesh) -> dict:
    """The parameters of the teachers that teach, on the mesh, as `lessons` takes them."""
    if not losses.needs_teacher(experiment.losses):
        return {}
    known = {FIRST_TEACHER: materials.teacher} | materials.others
    params = {name: known[name].params for name in roster(experiment) if name in known}
    lying = {
        name: sharding.place(own, sharding.param_shardings(mesh, own))
        for name, own in params.items()
    }
    return lying[FIRST_TEACHER] if tuple(roster(experiment)) == (FIRST_TEACHER,) else lying


def with_average(experiment: Experiment, teacher_params: dict, current: State) -> dict[str, Any]:
    """`teacher_params` with the student's average of this moment, if that is a teacher."""
    if AVERAGE not in roster(experiment):
        return teacher_params
    average = merged(current.params, average_of(current.opt_state))
    return teacher_params | {AVERAGE: average}
