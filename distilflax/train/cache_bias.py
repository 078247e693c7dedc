"""What keeping less than everything of a teacher does to the gradient: rounding, and few words.

For one batch g is the gradient with everything that the teacher says, and d_1 ... d_M are the
differences from it of gradients with what was kept, each with words drawn anew. The bias is E d:

    bias^2 = mean of <d_i, d_j> over i != j = (|sum d|^2 - sum |d|^2) / (M (M - 1))
    noise^2 = mean of |d_i|^2 - bias^2

The pairs leave out each draw's own noise, which |mean of d|^2 holds and which would pass for a bias
of noise / sqrt(M). Hence bias^2 is right on average, and below 0 half of the time where there is no
bias. Where nothing is drawn there is one d, all of it bias.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from distilflax import losses
from distilflax.batches.masking import MaskTable
from distilflax.errors import UserError
from distilflax.losses import Dial
from distilflax.settings import Encoder, Experiment
from distilflax.train.cache_fill import chosen_words, rows_of_words
from distilflax.train.cached import Kept
from distilflax.train.frozen import merged, trained
from distilflax.train.state import MASKING, WORDS, purpose_key
from distilflax.train.teachers import Lesson, Pair
from distilflax.train.views import Batch, loss_of, masked_at, taught_views, view_of


class Graded(NamedTuple):
    """A loss and its gradient."""

    loss: Float[Array, ""]
    gradient: Any


class Gap(NamedTuple):
    """What was kept against everything, on one batch: both squares over |g|^2, and how much larger
    the loss is, of 1."""

    bias_squared: float
    noise_squared: float
    loss: float


def gap(dense: Graded, draws: Iterable[Graded]) -> Gap:
    """The gap between gradients with what was kept, one for each draw, and the dense one.

    Raises:
      UserError: the dense one is zero.
    """
    size = float(_square(dense.gradient))
    if not size:
        raise UserError(
            "the terms that compare with a teacher have no gradient at the run's first step; "
            "compare those whose schedule does not begin at 0."
        )
    total, squares, values = None, [], []
    for value, gradient in draws:
        difference = _minus(gradient, dense.gradient)
        squares.append(float(_square(difference)))
        values.append(float(value))
        total = difference if total is None else _plus(total, difference)
    number = len(values)
    bias, noise = float(_square(total)), 0.0
    if number > 1:
        bias = (bias - sum(squares)) / (number * (number - 1))
        noise = sum(squares) / number - bias
    return Gap(bias / size, noise / size, sum(values) / number / float(dense.loss) - 1.0)


def make_gradient(
    experiment: Experiment, pair: Pair
) -> Callable[[dict[str, Dial], dict, dict, MaskTable, Array, Batch], Graded]:
    """The jitted (dials, params, teacher params, mask table, step, batch) to `Graded`: the gradient
    of the trained parameters at the schedules' beginning, without dropout.

    A batch that carries its teacher's outputs (`cached.py`) is taught by those, and any other by
    the teacher. The masks are those that the run draws at `step`.
    """
    key = purpose_key(experiment.seed, MASKING)

    def run(dials, params, teacher_params, table, step, batch):
        masked = masked_at(experiment, table, batch, key, step)
        lesson = Lesson(1.0, pair.teacher, teacher_params, pair.pooling)
        taught = taught_views(experiment, [lesson], batch, masked)

        def loss(own):
            return loss_of(
                experiment,
                experiment.losses,
                pair,
                merged(params, own),
                batch,
                masked,
                taught,
                progress=jnp.zeros(()),
                dials=dials,
            )[0]

        return Graded(*jax.value_and_grad(loss)(trained(experiment.student, params)))

    return jax.jit(run)


def dials_of(experiment: Experiment, names: Collection[str]) -> dict[str, Dial]:
    """The active terms as `make_gradient` takes them, those not among `names` at weight 0."""
    return {
        name: Dial(jnp.float32(term.weight * (name in names)), jnp.float32(term.temperature))
        for name, term in losses.active(experiment.losses).items()
    }


def make_covered(
    experiment: Experiment, names: Collection[str]
) -> Callable[[MaskTable, Array, Batch], Array]:
    """The jitted (mask table, step, batch) to whether each of these terms covers anything there."""
    key = purpose_key(experiment.seed, MASKING)

    def run(table, step, batch):
        masked = masked_at(experiment, table, batch, key, step)
        found = losses.counts(
            experiment.losses, batch["attention_mask"], masked, batch.get("segment_ids")
        )
        return jnp.all(jnp.stack([found[name] for name in names]) > 0)

    return jax.jit(run)


def make_draws(
    experiment: Experiment, encoder: Encoder, kept: Kept, number: int
) -> Callable[[dict, MaskTable, Array, Batch], dict[str, Array]]:
    """The jitted (teacher params, mask table, step, batch) to the words of `number` draws.

    {"ids": [number, B, P, n], ...}, as a batch of that step may carry them; none of these draws is
    the one that a cache keeps.
    """
    masking_key, words_key = (purpose_key(experiment.seed, p) for p in (MASKING, WORDS))

    def run(params, table, step, batch):
        masked = masked_at(experiment, table, batch, masking_key, step)
        view = view_of(experiment, encoder, params, batch, masked, None)
        hidden = rows_of_words(experiment, view, masked)
        own = jax.random.fold_in(words_key, step)

        def draw(i):
            numbers = jnp.arange(len(hidden))
            return chosen_words(view, hidden, kept, jax.random.fold_in(own, i), numbers)

        return jax.lax.map(draw, jnp.arange(number))

    return jax.jit(run)


# One program each: leaf by leaf, a tree's operations would be compiled by the dozen.
_square = jax.jit(lambda tree: optax.tree.norm(tree, squared=True))
_minus = jax.jit(lambda a, b: jax.tree.map(jnp.subtract, a, b))
_plus = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
