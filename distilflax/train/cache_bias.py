"""What keeping less than everything of a teacher does to the gradient: rounding, and few words.

For one batch, masked as the first step masks it, g is the gradient with everything that the teacher
says. With words drawn anew M times there are g_1 ... g_M, whose mean differs from g by the bias and
by what is left of the noise:

    E |mean - g|^2 = bias^2 + noise^2 / M,   noise^2 = E |g_m - E g_m|^2
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from distilflax import losses
from distilflax.batches.masking import MaskTable, at_positions
from distilflax.losses import TERMS
from distilflax.settings import Experiment
from distilflax.train.cache_fill import chosen_words
from distilflax.train.cached import PREFIX, WORDS, Kept
from distilflax.train.frozen import merged, trained
from distilflax.train.state import MASKING, purpose_key
from distilflax.train.state import WORDS as WORDS_PURPOSE
from distilflax.train.teachers import Lesson, Pair
from distilflax.train.views import Batch, masked_at, taught_views, view_of


class Bias(NamedTuple):
    """Relative to |g|: `noise` of one draw, `distance` of the mean of all draws from g, and
    `chance`, the distance that an unbiased way would show after as many. `loss` is the mean value
    over the value with everything, minus 1."""

    noise: float
    distance: float
    chance: float
    loss: float

    @property
    def bias(self) -> float:
        """What chance does not explain."""
        return max(self.distance**2 - self.chance**2, 0.0) ** 0.5


class Subject(NamedTuple):
    """A run before its first step; `arrays` are the student's parameters (with projections), the
    teacher's, the table of masks and a batch."""

    experiment: Experiment
    pair: Pair
    arrays: tuple[dict, dict, MaskTable, Batch]


def of_rounding(subject: Subject, precisions: Sequence[str]) -> dict[str, Bias]:
    """The bias of keeping the teacher's hidden states in each precision, over all active terms.

    The batch carries them in float32, with `teacher_cache.words='states'`.
    """
    *models_and_table, batch = subject.arrays
    gradient = jax.jit(_gradient_of(subject))
    value, g = gradient(*models_and_table, batch)
    found = {}
    for dtype in precisions:
        rounded = {
            name: x.astype(dtype).astype(x.dtype) if name.startswith(PREFIX) else x
            for name, x in batch.items()
        }
        own_value, own = gradient(*models_and_table, rounded)
        distance = float(_distance(own, g) / _size(g))
        found[dtype] = Bias(0.0, distance, 0.0, float(own_value / value - 1.0))
    return found


def of_words(subject: Subject, ways: dict[str, Kept], draws: int) -> dict[str, Bias]:
    """The bias of each way of keeping words, over `draws` draws, of the terms that take them.

    One draw is enough of `top_k`, which has no noise.
    """
    terms = {
        name: term
        for name, term in losses.active(subject.experiment.losses).items()
        if TERMS[name].on_words is not None
    }
    subject = subject._replace(experiment=replace(subject.experiment, losses=terms))
    dense = jax.jit(_gradient_of(subject))(*subject.arrays)
    return {
        name: _over_draws(subject, how, 1 if how.choice == "top_k" else draws, *dense)
        for name, how in ways.items()
    }


def _over_draws(subject, how, draws, value, g) -> Bias:
    experiment, encoder = subject.experiment, subject.pair.teacher
    key = purpose_key(experiment.seed, WORDS_PURPOSE)
    gradient = _gradient_of(subject)

    @jax.jit
    def run(arrays, g):
        params, teacher_params, table, batch = arrays
        masked = _masked(experiment, table, batch)
        view = view_of(experiment, encoder, teacher_params, batch, masked, None)
        hidden = view.outputs["last_hidden_state"]
        if losses.only_masked(experiment.losses):
            hidden = at_positions(hidden, masked.positions)

        def add(i, sums):
            words = chosen_words(view, hidden, how, jax.random.fold_in(key, i))
            carried = {f"{PREFIX}{WORDS}/{name}": array for name, array in words.items()}
            own_value, own = gradient(params, teacher_params, table, {**batch, **carried})
            gap = jax.tree.map(jnp.subtract, own, g)
            gaps, squares, values = sums
            gaps = jax.tree.map(jnp.add, gaps, gap)
            return gaps, squares + optax.tree.norm(gap, squared=True), values + own_value

        nothing = jax.tree.map(jnp.zeros_like, g), jnp.zeros(()), jnp.zeros(())
        gaps, squares, values = jax.lax.fori_loop(0, draws, add, nothing)
        return optax.tree.norm(gaps) / draws, squares / draws, values / draws

    distance, square, mean = map(float, run(subject.arrays, g))
    size = float(_size(g))
    variance = 0.0
    if draws > 1:
        variance = max(square - distance**2, 0.0) * draws / (draws - 1)
    chance = (variance / draws) ** 0.5
    return Bias(variance**0.5 / size, distance / size, chance / size, mean / float(value) - 1.0)


def _gradient_of(subject: Subject):
    """(params, teacher params, table, batch) to the loss and its gradient; dropout is off."""
    experiment, pair, _ = subject

    def gradient(params, teacher_params, table, batch):
        masked = _masked(experiment, table, batch)
        lesson = Lesson(1.0, pair.teacher, teacher_params)
        taught = taught_views(experiment, [lesson], batch, masked)

        def loss(own):
            together = merged(params, own)
            return losses.taught_loss(
                experiment.losses,
                view_of(experiment, pair.student, together, batch, masked, None),
                taught,
                batch["input_ids"],
                batch["attention_mask"],
                masked,
                progress=jnp.zeros(()),
                segment_ids=batch.get("segment_ids"),
            )[0]

        return jax.value_and_grad(loss)(trained(experiment.student, params))

    return gradient


# One program each: leaf by leaf, a tree's operations would be compiled by the dozen.
_size = jax.jit(optax.tree.norm)
_distance = jax.jit(lambda a, b: optax.tree.norm(jax.tree.map(jnp.subtract, a, b)))


def _masked(experiment, table, batch):
    return masked_at(experiment, table, batch, purpose_key(experiment.seed, MASKING), 0)
