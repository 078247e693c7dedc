"""The fine-tuning step: the task's loss, and the teacher's where there is one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from distilflax import models
from distilflax.losses import Sum
from distilflax.models import TaskHead
from distilflax.settings import Encoder
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.task import Task
from distilflax.train.state import State


def make_step(
    run: FineTuning,
    task: Task,
    encoder: Encoder,
    head: TaskHead,
    optimizer: optax.GradientTransformation,
) -> Callable[[State, dict, PRNGKeyArray], tuple[State, dict]]:
    """The jitted step: (state, batch, root key of dropout) to (state, metrics).

    The state is donated. The key is an argument so that all seeds run one and the same program.

    Metrics are those of `train.step.make_step`; the terms are `labels` and, where the batch has a
    teacher's logits, `teacher`. Each is divided by its own count over the whole batch: a batch
    where few rows have labels does not learn less from those.
    """
    share, temperature = run.distillation.weight, run.distillation.temperature

    def forward(params: dict, batch: dict, key, prefix: str = "") -> jax.Array:
        return models.task_logits(
            encoder,
            run.compute,
            head,
            params,
            batch[f"{prefix}input_ids"],
            batch[f"{prefix}attention_mask"],
            token_type_ids=batch.get(f"{prefix}token_type_ids"),
            dropout_key=key,
        )

    def together(params: dict, batch: dict, key) -> jax.Array:
        """[B, G, N] of groups whose first rows stand apart: `batches.collate_groups`."""
        keys = jax.random.split(key)
        first = forward(params, batch, keys[0], "first_")
        rest = forward(params, batch, keys[1]).reshape(len(first), -1, first.shape[-1])
        return jnp.concatenate([first[:, None], rest], axis=1)

    def loss(params: dict, batch: dict, key) -> tuple[jax.Array, dict[str, Sum]]:
        logits = (together if "first_input_ids" in batch else forward)(params, batch, key)
        terms = {"labels": task.loss(logits, batch)}
        if "teacher" not in batch:
            return _mean(terms["labels"]), terms
        terms["teacher"] = task.distil(logits, batch["teacher"], batch, temperature)
        return (1 - share) * _mean(terms["labels"]) + share * _mean(terms["teacher"]), terms

    def step(state: State, batch: dict, dropout_key: PRNGKeyArray) -> tuple[State, dict]:
        key = jax.random.fold_in(dropout_key, state.step)
        return updated(state, optimizer, lambda params: loss(params, batch, key), batch)

    return jax.jit(step, donate_argnums=0)


def updated(
    state: State,
    optimizer: optax.GradientTransformation,
    loss: Callable[[dict], tuple[jax.Array, dict[str, Sum]]],
    batch: dict,
) -> tuple[State, dict]:
    """(the state after one update by `loss`, a function of the parameters; the step's metrics)."""
    (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": value,
        "terms": terms,
        "grad_norm": optax.tree.norm(grads),
        "tokens": sum(
            jnp.sum(values) for name, values in batch.items() if name.endswith("attention_mask")
        ),
    }
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, opt_state), metrics


def _mean(part: Sum) -> jax.Array:
    # Nothing to count (a batch without labels) adds nothing: 0 / 0 would be NaN. Class weights
    # below one make counts below one, so the least is no 1.
    return part.sum / jnp.where(part.count > 0, part.count, 1.0)
