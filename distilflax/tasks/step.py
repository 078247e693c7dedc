"""The fine-tuning step: the task's loss, and the teacher's where there is one."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from distilflax import models
from distilflax.losses import Sum
from distilflax.models import TaskHead
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.task import Task
from distilflax.train import programs
from distilflax.train.state import State


def make_step(
    run: FineTuning,
    task: Task,
    encoder: Encoder,
    head: TaskHead,
    optimizer: optax.GradientTransformation,
    where: State | None = None,
) -> Callable[[State, dict, PRNGKeyArray], tuple[State, dict]]:
    """The jitted step: (state, batch, root key of dropout) to (state, metrics).

        loss = (1 - weight) * labels + weight * teacher        (`config.distillation.weight`)

    where `labels` is the task's loss and `teacher` its distance from the logits of a fine-tuned
    teacher at `config.distillation.temperature`: DistilBERT's second step of distillation (Sanh et
    al. 2019, "DistilBERT (D)" of table 2; Hinton et al. 2015). Without a teacher's logits it is
    `labels` alone; what has no label counts in `teacher` alone.

    The state is donated, and leaves as it came where its shardings are given as `where`
    (`state.shardings_in`), so that one program serves all steps. The key is an argument so that all
    seeds run one and the same program.

    Metrics are those of `train.step.make_step`. Each of both terms is divided by its own count over
    the whole batch: a batch where few rows have labels does not learn less from those.
    """
    share, temperature = run.distillation.weight, run.distillation.temperature
    logits_of = partial(_logits_of, encoder, run.compute, head)

    def loss(params: dict, batch: dict, key) -> tuple[jax.Array, dict[str, Sum]]:
        logits = logits_of(params, batch, key)
        terms = {"labels": task.loss(logits, batch)}
        if "teacher" not in batch:
            return _mean(terms["labels"]), terms
        terms["teacher"] = task.distil(logits, batch["teacher"], batch, temperature)
        return (1 - share) * _mean(terms["labels"]) + share * _mean(terms["teacher"]), terms

    def step(state: State, batch: dict, dropout_key: PRNGKeyArray) -> tuple[State, dict]:
        key = jax.random.fold_in(dropout_key, state.step)
        return updated(state, optimizer, lambda params: loss(params, batch, key), batch)

    return programs.jitted(step, where)


def _logits_of(
    encoder: Encoder, compute: Compute, head: TaskHead, params: dict, batch: dict, key: PRNGKeyArray
) -> jax.Array:
    """[B, ...], or [B, G, N] of groups whose first rows stand apart (`batches.collate_groups`)."""

    def forward(key: PRNGKeyArray, prefix: str = "") -> jax.Array:
        names = ("input_ids", "attention_mask", "token_type_ids", "real_places")
        rows = {name: batch[prefix + name] for name in names if prefix + name in batch}

        def some(rows: dict, key) -> jax.Array:
            ids, mask = rows["input_ids"], rows["attention_mask"]
            options = {name: rows.get(name) for name in names[2:]} | {"dropout_key": key}
            return models.task_logits(encoder, compute, head, params, ids, mask, **options)

        out = in_turn(some, rows, key, tokens_kept(encoder))
        order = batch.get(prefix + "order")
        return out if order is None else out[order]

    if "first_input_ids" not in batch:
        return forward(key)
    keys = jax.random.split(key)
    first = forward(keys[0], "first_")
    rest = forward(keys[1]).reshape(len(first), -1, first.shape[-1])
    return jnp.concatenate([first[:, None], rest], axis=1)


# Padded tokens of a batch from which on a CPU takes its rows in turn, where what is kept of them
# for the backward pass is over 3 GB: some 150 bytes for each hidden unit of each layer of a token.
_MANY, _KEPT = 8192, 20_000_000


def tokens_kept(encoder: Encoder) -> int:
    """Below so many tokens a CPU keeps what the backward pass wants, and computes nothing again."""
    return max(_MANY, _KEPT // (encoder.num_layers * encoder.hidden_size))


def in_turn(
    forward: Callable[[dict, PRNGKeyArray], jax.Array], rows: dict, key, many: int | None = None
) -> jax.Array:
    """`forward(rows, key)`, [B, ...] for arrays of [B, L]; on a CPU a few rows after the other,
    where they are long and of at least `many` tokens (8,192), each few computed again in the
    backward pass. Where there are `real_places`, [parts, T], they say in how many parts, and
    `forward` is given those of its rows, [1, T].

    So what is kept for it are the rows' outputs alone (Gao et al. 2021, arXiv:2101.06983, whose
    loss, as ours, is of all of them), and what is at work stays in the caches. A gradient of 96 x
    256 tokens (3 layers of 384, two cores of an AMD EPYC) took 4.2 GB and 3.9 s whole, and 0.4 GB
    and 3.6 s in parts of 8 rows, although a third more is computed; all of `configs/cranfield.py`
    with 6 layers, process and compiling included, 11 GB and now 4.6. A slower processor feels what
    is computed again: 40 x 256 tokens took 18.2 s in turn and 15.7 s whole on a core of 2 GHz
    without AVX-512. Hence `tokens_kept`, of which a step makes use. `Compute.remat` would do
    neither: XLA's CPU backend sees that a layer is computed twice, and does it once. An accelerator
    is faster with all rows, and has `remat`.
    """
    count, length = rows["input_ids"].shape
    if "real_places" in rows:
        parts = len(rows["real_places"])
    else:
        parts = batches.turns(count, length, count * length, _MANY if many is None else many)
    if parts == 1:
        return forward(rows, key)
    split = {name: array.reshape(parts, -1, *array.shape[1:]) for name, array in rows.items()}
    few = jax.checkpoint(lambda part: forward(*part))
    out = jax.lax.map(few, (split, jax.random.split(key, parts)))
    return out.reshape(count, *out.shape[2:])


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
