"""The other side of `beside_transformers`: a task that is learned by torch.

Heads of transformers under the loop of its example scripts; vectors of sentence-transformers under
its losses, `CoSENTLoss` for pairs with scores and `MultipleNegativesRankingLoss` with batches in
which no text stands twice, as its documentation advises, for queries with their documents.
"""

import copy
import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from distilflax import losses
from distilflax.errors import UserError
from distilflax.tasks import batches, data
from distilflax.tasks.finetune import figures
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.stage import is_due, is_over
from distilflax.tasks.task import NOTHING, Features
from experiments import torch_side

# Our names, and theirs.
_INPUTS = {name: name for name in ("input_ids", "attention_mask", "token_type_ids")}
_TARGETS = {
    "label": "labels",
    "tag": "labels",
    "start": "start_positions",
    "end": "end_positions",
}
PROBLEMS = {"single": "single_label_classification", "regression": "regression"}
LOSSES = ("contrastive", "cosent")
_HEADS = ("classifier.weight", "qa_outputs.weight")
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def check_config(run: FineTuning) -> None:
    """
    Raises:
      UserError: the other side has no such task, or would do something of the config otherwise.
    """
    # By task: the option that says of which kind it is, and the kinds that both sides have.
    kinds = {"classification": ("problem", PROBLEMS), "retrieval": ("loss_name", LOSSES)}
    option, known = kinds.get(run.task, ("", ()))
    if run.task not in ("tagging", "answering") and run.options.get(option) not in known:
        raise UserError(
            "The other side has one label or number a text, tagging, answering, and vectors by "
            f"{' or '.join(LOSSES)} loss; give a config of those."
        )
    if run.training.seeds != 1:
        raise UserError(
            f"config.training.seeds is {run.training.seeds}, and is not looked at here; leave it "
            "out (beside_transformers has --seeds)."
        )
    given: dict[str, object] = {"distillation.teacher": run.distillation.teacher}
    given["intermediate.losses"] = losses.active(run.intermediate.losses)
    given["training.mode=probe"] = run.training.mode == "probe"
    given["model.keep_head"] = run.model.keep_head
    given["model.int8_range"] = run.model.int8_range != "none"
    given |= {f"options.{n}": run.options.get(n) for n in ("balanced", "class_weights", "dims")}
    given["options.pooling"] = run.options.get("pooling", "own") != "own"
    given["options.normalize"] = not run.options.get("normalize", True)
    name = next((name for name, value in given.items() if value), None)
    if name is not None:
        raise UserError(f"The other side has nothing like config.{name}; leave it out.")


def check(run: FineTuning, materials: data.Materials) -> None:
    """
    Raises:
      UserError: the model has a head, from which the other side would begin, or queries have fewer
        negatives than they are to have.
    """
    heads = [name for name in materials.checkpoint.ignored if name.endswith(_HEADS)]
    if heads:
        raise UserError(
            f"{run.model.path} has a head already ({heads[0]}), from which the other side would "
            "begin; give the encoder that it was made of."
        )
    groups = _groups(run, materials)
    named = materials.train.features.targets.get("text")
    if named is not None and (named[groups] == NOTHING).any():
        raise UserError(
            "Some queries have fewer negatives than others, which the other side cannot leave out; "
            f"config.options.negatives is {run.options['negatives']}, set it to 0."
        )


def _groups(run: FineTuning, materials: data.Materials) -> Int[np.ndarray, "n G"]:
    rows = data.training_rows(materials, run.data.fraction, run.seed)
    return data.compared_rows(materials, rows, taught=False).reshape(-1, materials.task.together)


class Learner:
    """A model and its training, a step at a time."""

    def __init__(self, run: FineTuning, materials: data.Materials):
        """
        Raises:
          UserError: a library is missing.
        """
        self.torch, self.side = _side(run, materials)
        optimizer, size = run.optimizer, run.training.batch_size
        self.model, self.clip_norm = self.side.model.to(torch_side.device()), optimizer.clip_norm
        self.groups = _groups(run, materials)
        self.epoch_steps = batches.epoch_steps(len(self.groups), size)
        self.total, self.every = run.training.steps(self.epoch_steps)
        self.adamw = self.torch.optim.AdamW(
            _decayed(self.torch, self.model, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
        )
        warmup = round(optimizer.warmup_fraction * self.total)
        self.schedule = self.side.transformers.get_scheduler(
            _SCHEDULES[optimizer.schedule], self.adamw, warmup, self.total
        )
        self.drawn = self.side.drawn(self.groups, size, run.seed)

    def step(self) -> int:
        """An update by the next batch; how many rows that has."""
        at = next(self.drawn)
        self.model.train()
        self.side.loss(at).backward()
        if self.clip_norm:
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.adamw.step()
        self.schedule.step()
        self.adamw.zero_grad()
        torch_side.finish(self.torch)
        return at.size


def tune(run: FineTuning, materials: data.Materials) -> dict[str, Any]:
    """One fine-tuning: figures, seconds of steps, and of the whole with its evaluations.

    Raises:
      UserError: a library is missing.
    """
    begin = time.perf_counter()
    learner = Learner(run, materials)
    side, model, task, total = learner.side, learner.model, materials.task, learner.total
    best, seconds, seen, scores = None, 0.0, 0, []
    for step in range(1, total + 1):
        start = time.perf_counter()
        rows = learner.step()
        seconds, seen = seconds + time.perf_counter() - start, seen + rows
        if step == total or is_due(step, learner.every):
            outputs = side.outputs(materials.dev, run.training.batch_size)
            tuned, found = figures(task, outputs, materials.dev, tuned=True)
            if best is None or found[task.metric] > best[1][task.metric]:
                best = tuned, found, step, copy.deepcopy(model.state_dict())
            scores.append(found[task.metric])
            if is_over(scores, run.training.patience):
                break
    tuned, dev, best_step, state = best
    model.load_state_dict(state)
    outputs = side.outputs(materials.test, run.training.batch_size)
    return {
        "seed": run.seed,
        "metric": task.metric,
        "best_step": best_step,
        "steps": step,
        "dev": dev,
        "test": figures(tuned, outputs, materials.test, tuned=False)[1],
        "seconds": seconds,
        "rows_per_second": seen / seconds,
        "training_rows": learner.groups.size,
        "whole_seconds": time.perf_counter() - begin,
    }


class _Heads:
    """A head of transformers on its encoder."""

    def __init__(self, torch: Any, transformers: Any, materials: data.Materials):
        self.torch, self.transformers, self.materials = torch, transformers, materials
        task, folder = materials.task, materials.checkpoint.folder
        given: dict[str, Any] = {"dtype": "float32"}  # whatever the file has: it is trained
        kind = {"answer": "QuestionAnswering", "token": "TokenClassification"}
        auto = f"AutoModelFor{kind.get(task.kind, 'SequenceClassification')}"
        if task.kind != "answer":
            given["num_labels"] = len(task.labels)
        if task.kind not in kind:
            given["problem_type"] = PROBLEMS[task.problem]
        self.model = getattr(transformers, auto).from_pretrained(folder, **given)

    def drawn(self, groups: Int[np.ndarray, "n 1"], size: int, seed: int) -> Iterator[np.ndarray]:
        """Batches without end, in an order of their own each epoch."""
        order = np.random.default_rng(seed)
        while True:
            permuted = order.permutation(groups)
            for start in range(0, max(len(groups) - size, 0) + 1, size):
                yield permuted[start : start + size]

    def loss(self, groups: Int[np.ndarray, "B 1"]) -> Any:
        names = _INPUTS | _TARGETS
        given = self._batch(self.materials.train.features, groups[:, 0], names)
        if self.materials.task.kind != "answer":
            return self.model(**given).loss
        # Heads for answers take -100 for the first token, and leave out what is beyond the last.
        length = given["input_ids"].shape[1]
        for name in ("start_positions", "end_positions"):
            given[name][given[name] < 0] = length
        out = self.model(**given)
        # The mean over no row at all is NaN.
        some = bool((given["start_positions"] < length).any())
        return out.loss if some else 0 * out.start_logits.sum()

    def outputs(self, part: data.Part, size: int) -> list[np.ndarray]:
        """Of every row, in the order of the rows; rows of like length are run together."""
        self.model.eval()
        lengths = part.features.lengths
        order, found = np.argsort(lengths, kind="stable"), [None] * len(lengths)
        with self.torch.inference_mode():
            for start in range(0, len(order), size):
                at = order[start : start + size]
                rows = self._rows(self._batch(part.features, at)).cpu().numpy()
                for index, row in zip(at, rows, strict=True):
                    found[index] = row if row.ndim == 1 else row[: lengths[index]]
        return found

    def _rows(self, inputs: dict) -> Any:
        out = self.model(**inputs)
        if self.materials.task.kind == "answer":
            return self.torch.stack([out.start_logits, out.end_logits], -1)
        return out.logits

    def _batch(self, features: Features, at: np.ndarray, names: dict = _INPUTS) -> dict[str, Any]:
        """Rows padded to the longest of them, as DataCollatorWithPadding does; what has no target
        has -100 on both sides (but see `loss`)."""
        length = int(features.lengths[at].max())
        typed = self.materials.words.typed
        host = batches.collate(features, at, len(at), length, with_types=typed)
        return {names[name]: self._tensor(host[name]) for name in host if name in names}

    def _tensor(self, array: np.ndarray) -> Any:
        kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
        return self.torch.from_numpy(array.astype(kind)).to(torch_side.device())


class _Vectors(_Heads):
    """A model of sentence-transformers, by its own files, under the loss of the config."""

    def __init__(self, torch: Any, transformers: Any, materials: data.Materials, run: FineTuning):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses as theirs

        self.torch, self.transformers, self.materials = torch, transformers, materials
        folder = str(materials.checkpoint.folder)
        self.model = SentenceTransformer(folder, device=torch_side.device())
        self.model.float()
        scale = 1 / run.options["temperature"]
        self.pairs = run.options["loss_name"] == "cosent"
        loss = theirs.CoSENTLoss if self.pairs else theirs.MultipleNegativesRankingLoss
        self.criterion = loss(self.model, scale=scale)

    def drawn(self, groups: Int[np.ndarray, "n G"], size: int, seed: int) -> Iterator[np.ndarray]:
        if self.pairs or len(groups) <= size:
            return super().drawn(groups, size, seed)
        text = self.materials.train.features.targets["text"][groups]
        return self._apart(groups, text, size, seed)

    def _apart(
        self, groups: Int[np.ndarray, "n G"], text: Int[np.ndarray, "n G"], size: int, seed: int
    ) -> Iterator[np.ndarray]:
        """Batches without end in which no text stands twice."""
        from datasets import Dataset
        from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

        columns = {str(i): column.tolist() for i, column in enumerate(text.T)}
        generator = self.torch.Generator()
        sampler = NoDuplicatesBatchSampler(
            Dataset.from_dict(columns), size, drop_last=True, generator=generator, seed=seed
        )
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            at = None
            for at in sampler:
                yield groups[at]
            if at is None:
                raise UserError(
                    f"No {size} queries are without a text in common, which the other side learns "
                    "from; lower config.training.batch_size."
                )

    def loss(self, groups: Int[np.ndarray, "B G"]) -> Any:
        features = self.materials.train.features
        vectors = [self._rows(self._batch(features, at)) for at in groups.T]
        scores = self._tensor(features.targets["score"][groups[:, 1]])
        return self.criterion.compute_loss_from_embeddings(vectors, scores)

    def _rows(self, inputs: dict) -> Float[Any, "B D"]:
        vectors = self.model(inputs)["sentence_embedding"]
        return self.torch.nn.functional.normalize(vectors, dim=-1)


def _side(run: FineTuning, materials: data.Materials) -> tuple[Any, _Heads]:
    """torch, and the model with what it learns by, its new arrays drawn by the run's seed."""
    try:
        import torch
        import transformers

        torch.manual_seed(run.seed)
        if materials.task.kind == "vector":
            return torch, _Vectors(torch, transformers, materials, run)
        return torch, _Heads(torch, transformers, materials)
    except ImportError as error:
        raise UserError(
            f"The other side needs {error.name}: pip install 'distilflax[parity]'."
        ) from None


def _decayed(torch: Any, model: Any, weight_decay: float) -> list[dict]:
    """As transformers' Trainer has them: no decay of biases and LayerNorms."""
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
        for p in module.parameters()
    }
    named = [(n.endswith("bias") or id(p) in norms, p) for n, p in model.named_parameters()]
    return [
        {"params": [p for spared, p in named if not spared], "weight_decay": weight_decay},
        {"params": [p for spared, p in named if spared], "weight_decay": 0.0},
    ]
