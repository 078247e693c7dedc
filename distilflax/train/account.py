"""Gradient accounting of students at hand: what a run would have logged of them."""

import contextlib
import itertools
from collections.abc import Mapping

import jax
import numpy as np

from distilflax import losses
from distilflax.batches.placement import to_global
from distilflax.errors import UserError
from distilflax.settings import Experiment
from distilflax.train import sharding, teachers
from distilflax.train.gradients import make_accounting
from distilflax.train.loop import batches_of, steps_of
from distilflax.train.setup import Materials, new_student


def account(
    experiment: Experiment, materials: Materials, trained: Mapping[int, dict], batches: int = 4
) -> list[dict[str, int | float]]:
    """The terms' gradients of a student before its first step, and of those in `trained`.

    Args:
      trained: parameters of students of `experiment`, by the number of steps behind them.
      batches: each record has the means over so many batches, the first of the run.

    Returns:
      For each student what `Accounts.record` says, and its `step`: as `gradient_plot.figure` wants.

    Raises:
      UserError: terms with a learned projection, or a teacher that is the student's average:
        neither is in a student's parameters.
    """
    if experiment.teaching.average_decay or any(
        term.projection != "none" for term in losses.active(experiment.losses).values()
    ):
        raise UserError(
            "The gradients of a saved student cannot be weighed where a term has a projection or "
            "teaching.average_decay is set: it comes without them; set training.gradients_every."
        )
    training = experiment.training
    mesh = sharding.make_mesh(experiment.mesh, training.batch_size // training.accumulate)
    encoder, first = new_student(experiment, materials)
    pair, steps = teachers.pair_of(experiment, materials, encoder), steps_of(experiment, materials)
    accounts = make_accounting(experiment, pair, steps)
    with jax.set_mesh(mesh):
        teacher = teachers.placed(experiment, materials, mesh)
        table = jax.device_put(materials.table, sharding.replicated(mesh))
        with contextlib.closing(batches_of(experiment, materials, mesh)) as read:
            seen = [to_global(batch, mesh) for batch in itertools.islice(read, batches)]
        found = []
        for step, params in {0: first, **trained}.items():
            placed = sharding.place(params, sharding.param_shardings(mesh, params))
            # Masks and schedules as they are at the student's next step, or at its last one.
            number = min(step, steps - 1)
            records = [accounts(placed, teacher, table, batch, number).record() for batch in seen]
            means = {name: float(np.mean([r[name] for r in records])) for name in records[0]}
            found.append({"step": step, **means})
    return found
