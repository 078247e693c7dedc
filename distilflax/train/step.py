"""The step: one program, two models.

The teacher's parameters come in as an argument and only as an argument: outside what is
differentiated, without dropout, never donated, never in the optimizer or a checkpoint.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from distilflax import losses, models
from distilflax.batches.masking import Masked, MaskTable
from distilflax.losses import Dial, Sum
from distilflax.settings import Experiment
from distilflax.train import micro_batches, programs, teachers
from distilflax.train.frozen import merged, trained
from distilflax.train.optimizer import optimizer_of
from distilflax.train.state import (
    DROPOUT,
    HELD_OUT_MASKING,
    MASKING,
    TEACHER,
    State,
    purpose_key,
)
from distilflax.train.teachers import Pair
from distilflax.train.views import Batch, loss_of, masked_at, taught_views


class Keys(NamedTuple):
    """What a seed draws: masks, dropout, one of several teachers. The step is folded into each."""

    masking: PRNGKeyArray
    dropout: PRNGKeyArray
    teacher: PRNGKeyArray


class Dials(NamedTuple):
    """What students of one program may differ in beside their parameters.

    learning_rate: the peak of the schedule; terms: of every active term its weight and temperature.
    """

    learning_rate: Float[Array, "..."]
    terms: dict[str, Dial]


def keys_of(seed: int) -> Keys:
    """The keys of a run with this seed."""
    return Keys(*(purpose_key(seed, purpose) for purpose in (MASKING, DROPOUT, TEACHER)))


def make_step(
    experiment: Experiment,
    pair: Pair,
    optimizer: optax.GradientTransformation,
    total_steps: int,
    where: State | None = None,
) -> Callable[[State, dict, MaskTable, Batch], tuple[State, dict]]:
    """The jitted training step: (state, teacher params, mask table, batch) to (state, metrics).

    The state is donated. `where` are its shardings (`state.shardings_of`): it leaves the step as it
    came, so that the program compiled for the first step serves all of them; None leaves them to
    XLA, which may split what the rules leave whole. Metrics, all device scalars: `terms` {name:
    `Sum`}, `loss` (the weighted total), `grad_norm` (before clipping) and `tokens` (real tokens in
    the batch).

    The batch is masked whole, then split into `accumulate` micro-batches whose losses divide by
    the counts of the whole, so that splitting changes nothing but the memory.

    Raises:
      UserError: terms that do not fit the two models, or that need the batch whole.
    """
    train = _step_of(experiment, pair, total_steps, lambda _: optimizer, lambda one: one)
    keys = keys_of(experiment.seed)

    def step(state: State, teacher_params: dict, table: MaskTable, batch: Batch):
        return train(state, teacher_params, table, batch, keys, None)

    return programs.jitted(step, where)


def make_arms_step(
    experiment: Experiment, pair: Pair, total_steps: int, arms: int, where: State | None
) -> Callable[[State, dict, MaskTable, Batch, Keys, Dials], tuple[State, dict]]:
    """The same for `arms` students at once: the step of `make_step`, vectorised over them.

    Parameters, optimizer state, dials, and the metrics that come out have a leading axis of arms;
    batch, masks, teacher and the step's number are common, and so the teacher runs once. Terms of
    `experiment` are those of all arms together; one that an arm leaves out has weight 0 there.
    `where` are the state's shardings (`state.shardings_of_arms`), as there.

    Raises:
      UserError: as `make_step`.
    """

    def at_its_rate(dials):
        return optimizer_of(experiment, total_steps, dials.learning_rate)[0]

    if jax.default_backend() == "gpu":
        # cuDNN's kernel, vectorised over arms, is given a mask without them.
        compute = replace(experiment.compute, attention="plain")
        experiment = replace(experiment, compute=compute)
    # The logits of a chunk exist once for each arm: so many fewer rows keep the memory of one.
    rows = max(_LEAST_CHUNK_ROWS, losses.CHUNK_ROWS // arms)
    train = _step_of(experiment, pair, total_steps, at_its_rate, jax.vmap, rows)
    return programs.jitted(train, where)


# Below, a product with 30,522 words is bound by reading the words and not by arithmetic.
_LEAST_CHUNK_ROWS = 128


def _step_of(experiment, pair, total_steps, optimizer_for, each, chunk_rows=losses.CHUNK_ROWS):
    """The step before it is compiled. `each` makes a function of one student one of all of them,
    and `optimizer_for` is the optimizer for a student's dials."""
    terms = losses.active(experiment.losses)
    accumulate = experiment.training.accumulate
    for encoder in teachers.encoders(experiment, pair).values():
        losses.check_models(terms, pair.student, encoder)
    losses.check_accumulation(terms, accumulate)
    average_share = teachers.roster(experiment).get(teachers.AVERAGE)
    if not losses.needs_teacher(terms):
        average_share = None
    uses_dropout = pair.student.dropout > 0 or pair.student.attention_dropout > 0

    def rows_at_once(masked: Masked) -> int:
        """Where few sequences are masked, a chunk with the slots of all would be mostly empty."""
        if not losses.only_masked(terms):
            return chunk_rows
        sequences, slots = masked.labels.shape
        expected = slots * math.ceil(sequences * experiment.masking.sequences)
        return min(chunk_rows, max(1, expected))

    def step(
        state: State,
        teacher_params: dict,
        table: MaskTable,
        batch: Batch,
        keys: Keys,
        dials: Dials | None,
    ):
        masked = masked_at(experiment, table, batch, keys.masking, state.step)
        normalizers = losses.counts(
            terms, batch["attention_mask"], masked, batch.get("segment_ids")
        )
        step_dropout = jax.random.fold_in(keys.dropout, state.step)
        progress = state.step / total_steps

        lessons = teachers.lessons(experiment, pair, teacher_params)
        average = None
        if average_share:
            average = merged(state.params, teachers.average_of(state.opt_state))
        drawn = teachers.drawn(experiment, lessons, jax.random.fold_in(keys.teacher, state.step))

        def gradient(micro_batch, micro_masked, number):
            def from_these(lessons):
                return taught(lessons, micro_batch, micro_masked, number)

            if drawn is None:
                return from_these(lessons)
            alone = [partial(from_these, [one._replace(share=1.0)]) for one in lessons]
            return jax.lax.switch(drawn, alone)

        def taught(lessons, micro_batch, micro_masked, number):
            # Outside of `each`: whatever the students differ in, their teachers run once.
            fixed = taught_views(experiment, lessons, micro_batch, micro_masked)
            micro_dropout = jax.random.fold_in(step_dropout, number) if uses_dropout else None

            def of_one(whole, average, dials):
                views = fixed
                if average is not None:
                    itself = teachers.Lesson(average_share, pair.student, average, pair.pooling)
                    views += taught_views(experiment, [itself], micro_batch, micro_masked)

                def loss(own):
                    student = merged(whole, own)
                    return loss_of(
                        experiment,
                        terms,
                        pair,
                        student,
                        micro_batch,
                        micro_masked,
                        views,
                        dropout_key=micro_dropout,
                        progress=progress,
                        normalizers=normalizers,
                        chunk_rows=rows_at_once(micro_masked),
                        dials=None if dials is None else dials.terms,
                    )

                return jax.value_and_grad(loss, has_aux=True)(trained(experiment.student, whole))

            return each(of_one)(state.params, average, dials)

        def update(params, opt_state, grads, dials):
            own = trained(experiment.student, params)
            updates, opt_state = optimizer_for(dials).update(grads, opt_state, own)
            params = merged(params, optax.apply_updates(own, updates))
            return params, opt_state, optax.tree.norm(grads)

        (loss, sums), grads = micro_batches.summed(gradient, (dict(batch), masked), accumulate)
        params, opt_state, norm = each(update)(state.params, state.opt_state, grads, dials)
        metrics = {
            "loss": loss,
            "terms": sums,
            "grad_norm": norm,
            "tokens": jnp.sum(batch["attention_mask"]),
        }
        return State(state.step + 1, params, opt_state), metrics

    return step


def make_held_out_step(
    experiment: Experiment, pair: Pair
) -> Callable[[dict, dict, MaskTable, Batch, Array], dict[str, Sum]]:
    """The jitted evaluation step: (student params, teacher params, table, batch, number) to sums.

    Dropout is off, and batch `number` is masked the same way each time, so that two evaluations
    differ by the student alone. Layers that take turns in training are all measured.
    """
    active = losses.active(experiment.losses)
    terms = {name: replace(term, turns=0.0) for name, term in active.items()}
    masking_key = purpose_key(experiment.seed, HELD_OUT_MASKING)

    def held_out(params: dict, teacher_params: dict, table: MaskTable, batch: Batch, number: Array):
        masked = masked_at(experiment, table, batch, masking_key, number)
        lessons = teachers.lessons(experiment, pair, teacher_params)
        taught = taught_views(experiment, lessons, batch, masked)
        at_the_end = jnp.ones(())
        return loss_of(experiment, terms, pair, params, batch, masked, taught, progress=at_the_end)[
            1
        ]

    return jax.jit(held_out)


def flops_per_step(experiment: Experiment, pair: Pair, batch_size: int, length: int) -> int:
    """Operations of the matrix products in one step on [batch_size, length], padding included.

    Student: forward and twice that for backward. Teacher: forward, where a term needs it and it is
    not cached.
    Rematerialisation is not counted: it is work done twice, not more work to do.
    """
    terms = losses.active(experiment.losses)
    tokens = batch_size * length
    student_head, teacher_head = losses.needs_head(terms)
    masking = experiment.masking
    masked = round(tokens * masking.rate * masking.sequences)
    positions = masked if losses.only_masked(terms) else tokens
    total = 3 * models.encoder_flops(pair.student, tokens, length)
    if student_head:
        total += 3 * models.vocabulary_flops(pair.student, positions)
    shares = teachers.roster(experiment)
    for name, encoder in teachers.encoders(experiment, pair).items():
        part = shares[name] if experiment.teaching.several == "draw" else 1.0
        cache = experiment.teacher_cache
        if losses.needs_teacher(terms) and not cache.enabled:
            total += round(part * models.encoder_flops(encoder, tokens, length))
        if teacher_head and (not cache.enabled or cache.words == "states"):
            total += round(part * models.vocabulary_flops(encoder, positions))
    return total
