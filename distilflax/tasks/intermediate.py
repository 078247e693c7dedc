"""Distillation's intermediate stage: layers learn from a task teacher's before the labels are seen.

TinyBERT's first task stage (Jiao et al. 2019, arXiv:1909.10351, section 3.2; the authors'
task_distill.py without --pred_distill): attention scores, embeddings and hidden states, on the
texts of the task, from a teacher that was fine-tuned on it. Terms are those of `losses/`, but for
those over words: there is no masked-LM head here. The teacher runs beside the student at every
step; its layers on all rows would fill a disk.

The head, and the pooler below it, have no part in this, and are left as they were.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from distilflax import losses, models
from distilflax.batches.masking import Masked
from distilflax.batches.placement import to_global
from distilflax.errors import UserError
from distilflax.losses import PROJECTIONS, TERMS, View
from distilflax.models import TaskHead
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches, texts
from distilflax.tasks.data import Materials
from distilflax.tasks.runner import distinct
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.stage import Stage, train
from distilflax.tasks.step import updated
from distilflax.tasks.task import NOTHING, Features
from distilflax.text import tokenizer as text_tokenizer
from distilflax.text.tokenizer import Tokenizer
from distilflax.train import programs, sharding, state
from distilflax.train.checkpoint import Checkpoints
from distilflax.train.optimizer import make_optimizer
from distilflax.train.state import INIT, LAYERS, State, purpose_key
from distilflax.train.throughput import Peak
from distilflax.train.workdir import Workdir
from distilflax.weights import Checkpoint

FOLDER = "intermediate"
_PLACE = "config.intermediate.losses"


class Model(NamedTuple):
    """A model that is being fine-tuned: {"encoder": ..., "task_head": ...} and what they are."""

    encoder: Encoder
    head: TaskHead
    params: dict


def check_teacher(
    run: FineTuning, materials: Materials, teacher: Checkpoint, words: Tokenizer
) -> None:
    """Whether the student's layers can learn from its own; `words` is its tokenizer.

    Raises:
      UserError: it reads other tokens or types than the student, or lacks what a term compares.
    """
    terms, path = losses.active(run.intermediate.losses), run.distillation.teacher
    if words.fingerprint != materials.words.fingerprint:
        raise UserError(
            f"{path} has another tokenizer than the student, so that their layers cannot be "
            "compared token by token; give a teacher with the same vocabulary, or no "
            "config.intermediate.losses."
        )
    both = (materials.checkpoint.encoder, teacher.encoder)
    if words.typed != materials.words.typed and all(one.type_vocab_size > 1 for one in both):
        raise UserError(
            f"Of {path} and the student one is given token types and the other is not, by the "
            "model_input_names or tokenizer_class of their tokenizer_config.json, so that they do "
            "not read the same rows; make these the same, or give no config.intermediate.losses."
        )
    losses.check(run.intermediate.losses, "lines", where=_PLACE)
    for name, term in terms.items():
        if TERMS[name].over == "logits" or term.positions == "masked":
            raise UserError(
                f"{_PLACE}.{name} is about words that were masked, and texts of "
                "a task are whole; use it in experiments.distill."
            )
    losses.check_models(terms, materials.checkpoint.encoder, teacher.encoder, _PLACE)


def learn(
    run: FineTuning,
    materials: Materials,
    teacher: Checkpoint,
    model: Model,
    rows: Int[np.ndarray, "rows"],
    folder: Workdir,
    mesh: Mesh,
    peak: Peak,
) -> tuple[Model, dict, int]:
    """The model after the stage, the stage's record, and the exit code (`stage.train`)."""
    folder.folder.mkdir(exist_ok=True)
    stage = _stage(run, materials, teacher, model, rows, mesh)
    with Checkpoints(folder.checkpoints, keep=1) as checkpoints:
        current, record, exit_code = train(stage, folder, checkpoints, peak)
    learned = sharding.on_host(mesh, current.params)["encoder"]
    params = model.params | {"encoder": model.params["encoder"] | learned}
    return model._replace(params=params), record | {"steps": stage.total_steps}, exit_code


def _stage(
    run: FineTuning,
    materials: Materials,
    teacher: Checkpoint,
    model: Model,
    rows: Int[np.ndarray, "rows"],
    mesh: Mesh,
) -> Stage:
    features, training = materials.train.features, run.training
    if "text" in features.targets:
        # Where a query has fewer negatives than others, it has no text; and a text stands in as
        # many groups as it is judged for.
        rows = rows[features.targets["text"][rows] != NOTHING]
        ids, types = ([kind[row] for row in rows] for kind in (features.ids, features.types))
        rows = rows[distinct(Features(ids, types, features.owner[rows]), with_types=False)[0]]
    batch_at, epoch_steps = batches.training(
        features.lengths[rows],
        batch_size=training.batch_size,
        seed=run.seed,
        buckets=batches.buckets(run.data.max_length, run.data.buckets),
    )
    total_steps = max(1, round(run.intermediate.epochs * epoch_steps))
    optimizer, schedule = make_optimizer(run.intermediate.optimizer, total_steps)
    student, taught = (replace(one, pooler=False) for one in (model.encoder, teacher.encoder))
    pooling = (model.head.pooling, teacher.vectors.pooling)
    projections = losses.init_projections(
        run.intermediate.losses, student, taught, purpose_key(run.seed, INIT)
    )
    params = {"encoder": _without_pooler(model.params["encoder"])}
    params |= {PROJECTIONS: projections} if projections else {}
    of_teacher = {"encoder": _without_pooler(teacher.params["encoder"])}
    key = jax.device_put(purpose_key(run.seed, LAYERS), sharding.replicated(mesh))
    of_both = ((materials.words, student), (text_tokenizer.load(teacher.folder), taught))
    with_types = any(texts.with_types(*one) for one in of_both)

    def collate(part):
        host = batches.collate(
            features, rows[part.indices], training.batch_size, part.length, with_types=with_types
        )
        # Targets are of the labels' stage.
        return to_global({name: host[name] for name in _READ if name in host}, mesh)

    def flops(tokens: int, length: int) -> int:
        of_student, own = (models.encoder_flops(e, tokens, length) for e in (student, taught))
        return 3 * of_student + own

    fresh = state.create(mesh, params, optimizer)
    where = state.shardings_in(fresh)
    return Stage(
        run=run,
        fresh=fresh,
        step=make_step(run, student, taught, pooling, optimizer, total_steps, where),
        constants=(sharding.place(of_teacher, sharding.param_shardings(mesh, of_teacher)), key),
        batch_at=batch_at,
        collate=collate,
        flops=flops,
        total_steps=total_steps,
        every=epoch_steps,
        schedule=schedule,
    )


_READ = ("input_ids", "attention_mask", "token_type_ids")


def _without_pooler(encoder: dict) -> dict:
    return {name: part for name, part in encoder.items() if name != "pooler"}


def make_step(
    run: FineTuning,
    student: Encoder,
    teacher: Encoder,
    pooling: tuple[str, str],
    optimizer: optax.GradientTransformation,
    total_steps: int,
    where: State | None = None,
) -> Callable[[State, dict, dict, PRNGKeyArray], tuple[State, dict]]:
    """The jitted step: (state, batch, teacher's parameters, root key of dropout) to (state,
    metrics). `pooling` is how either makes sentence vectors. The state is donated; `where` and
    metrics are those of `tasks.step.make_step`."""
    terms = losses.active(run.intermediate.losses)

    def step(state: State, batch: dict, teacher_params: dict, dropout_key: PRNGKeyArray):
        frozen = jax.lax.stop_gradient(teacher_params)
        taught = _view(teacher, run.compute, terms, frozen, batch, None, pooling[1])
        key = jax.random.fold_in(dropout_key, state.step)

        def loss(params: dict):
            own = _view(student, run.compute, terms, params, batch, key, pooling[0])
            ids, mask = batch["input_ids"], batch["attention_mask"]
            progress = state.step / total_steps
            return losses.total_loss(terms, own, taught, ids, mask, _whole(ids), progress=progress)

        return updated(state, optimizer, loss, batch)

    return programs.jitted(step, where)


def _view(
    encoder: Encoder,
    compute: Compute,
    terms: dict,
    params: dict,
    batch: dict,
    dropout_key: PRNGKeyArray | None,
    pooling: str,
) -> View:
    outputs = models.encode(
        encoder,
        compute,
        params["encoder"],
        batch["input_ids"],
        batch["attention_mask"],
        token_type_ids=batch.get("token_type_ids") if encoder.type_vocab_size > 1 else None,
        outputs=losses.outputs(terms),
        dropout_key=dropout_key,
    )
    return View(outputs, projections=params.get(PROJECTIONS, {}), pooling=pooling)


def _whole(input_ids: Int[Array, "B L"]) -> Masked:
    """Texts of which nothing is masked."""
    none = jnp.zeros((len(input_ids), 0), jnp.int32)
    return Masked(input_ids, none, none, none.astype(jnp.float32))
