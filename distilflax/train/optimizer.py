"""AdamW as the paper ran it: warm-up, decay to zero, clipping, and weight decay by kind."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from distilflax import settings
from distilflax.errors import UserError

# What weight decay pulls towards zero, by the last step of its path: the kernels of dense layers
# and the tables of embeddings. Deciding by a substring instead ("norm" not in name) is how
# LayerNorm parameters come to be decayed in one code base and kernels spared in the next.
DECAYED = ("kernel", "word", "position", "token_type", "decoder")


def make_optimizer(
    optimizer: settings.Optimizer,
    total_steps: int,
    peak: Float[Array, ""] | None = None,
    average_decay: float = 0.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) after clipping by the global norm.

    The update is `p -= lr * (m / (sqrt(v) + eps) + weight_decay * p)`, as in PyTorch, where a
    parameter that the loss does not reach is not decayed either. `clip_norm` 0 leaves gradients
    alone. `peak` is a traced learning rate to take the settings' place.
    `average_decay` keeps a moving average of the parameters beside the moments (`average_of`).

    Returns:
      The transformation, and the schedule from the number of updates done so far to the learning
      rate of the next one (the transformation holds the same schedule; this one is for logging).

    Raises:
      UserError: a run without steps.
    """
    schedule = make_schedule(optimizer, total_steps, peak)
    adam = optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)
    if optimizer.clip_norm:
        adam = optax.chain(clip_by_norm(optimizer.clip_norm), adam)
    parts = [decayed(adam, optimizer.weight_decay), optax.scale_by_learning_rate(schedule)]
    if average_decay:
        parts.append(parameter_average(average_decay))
    return optax.chain(*parts), schedule


def optimizer_of(
    experiment: settings.Experiment, total_steps: int, peak: Float[Array, ""] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """`make_optimizer` of a distillation: with the average that may be one of its teachers."""
    average_decay = experiment.teaching.average_decay
    return make_optimizer(experiment.optimizer, total_steps, peak, average_decay)


def make_schedule(
    optimizer: settings.Optimizer, total_steps: int, peak: Float[Array, ""] | None = None
) -> optax.Schedule:
    """Learning rate of the update that follows `i` others, for a run of T with W of warm-up.

        i < W    peak * (i + 1) / W
        i >= W   peak * (T - i) / (T - W)                            linear
                 peak * (1 + cos(pi * (i - W) / (T - W))) / 2        cosine
                 peak                                                constant

    so `linear` and `cosine` would reach zero at i = T, the first update that is *not* made. Many
    trainers start the warm-up at i / W and so spend their first batch on a learning rate of
    exactly zero; this one does not.
    """
    if total_steps < 1:
        raise UserError(
            f"config.training: the run has {total_steps} steps; give steps, or epochs over a "
            "corpus that fills at least one batch."
        )
    peak = optimizer.learning_rate if peak is None else peak
    warmup = round(optimizer.warmup_fraction * total_steps)
    rest = max(1, total_steps - warmup)  # A run that only warms up still needs a formula here.
    decay = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[optimizer.schedule]
    if warmup < 2:  # A single step of warm-up is taken at the peak.
        warm = optax.constant_schedule(peak)
    else:
        warm = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([warm, decay], [warmup])


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Gradients times min(1, most / their global norm) (Pascanu et al. 2013, arXiv:1211.5063).

    One number for every leaf, so that XLA multiplies where the moments read the gradient.
    `optax.clip_by_global_norm` selects and divides leaf by leaf, which XLA on a CPU writes out and
    reads again: nearly as much memory traffic as AdamW's own.
    """

    def update(updates, state, params=None):
        del params
        scale = jnp.minimum(1.0, most / optax.tree.norm(updates))
        return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decayed(adam: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    """`adam`, and `rate` times the parameter for what `decay_mask` names and the gradient reaches.

    Layers that wait for their turn (MobileBERT), or whose output no term compares (the last
    feed-forward of MiniLM), would otherwise fade before anything has taught them.
    """

    def update(grads, state, params=None):
        steps, state = adam.update(grads, state, params)

        def pulled(step, grad, param, named):
            if not named:
                return step
            # The sum that the gradient's norm adds up, which XLA computes once for both.
            reached = jnp.sum(jnp.square(grad)) > 0
            return step + jnp.where(reached, rate, 0.0).astype(param.dtype) * param

        return jax.tree.map(pulled, steps, grads, params, decay_mask(params)), state

    return optax.GradientTransformation(adam.init, update)


class Average(NamedTuple):
    """The state of `parameter_average`: a tree like the parameters."""

    average: Any


def parameter_average(decay: float) -> optax.GradientTransformation:
    """Changes no update, and keeps a = decay * a + (1 - decay) * p of the updated parameters p.

    It begins with the first parameters, so nothing has to be corrected for a start at zero. In the
    optimizer's state it is sharded, saved and restored as the moments are. It must be the last of
    a chain: what comes after it would change the updates that it has seen.
    """

    def init(params):
        # A copy: the step donates its state, and a buffer can be given away once only.
        return Average(jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params))

    def update(updates, state, params=None):
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda old, leaf: decay * old + (1.0 - decay) * leaf, state.average, new
        )
        return updates, Average(average)

    return optax.GradientTransformation(init, update)


def average_of(opt_state: Any) -> Any:
    """The moving average in the state of an optimizer that was made with `average_decay`."""
    return opt_state[-1].average


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: kernels and embedding tables, nothing else."""

    def decayed(path: tuple, _: Any) -> bool:
        return path[-1].key in DECAYED

    return jax.tree_util.tree_map_with_path(decayed, params)
