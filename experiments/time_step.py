"""The distillation step beside one in torch that does the same work: tokens a second, MFU, ratio.

    python -m experiments.time_step --output=runs/step.json
    python -m experiments.time_step --layers=6 --width=384 --batch=4 --rounds=15

Teacher and student have BERT's shape (--layers and half of them) and random weights, the same in
both libraries. The step is DistilBERT's (Sanh et al. 2019): the teacher without gradients, KL of
all words at temperature 2 and the cosine of hidden states at every token, cross-entropy at the
masked ones, gradients clipped, AdamW. Ours is `train/step.py` and draws its masks; torch's is what
its users write, on transformers' models, with the fused AdamW, and is given the masks.

On a machine with a GPU both use it, --dtype=bfloat16 as `config.compute.dtype` and autocast; MFU is
then of the data sheet's bfloat16. No such run has come to its end yet (on an H200 110 seconds did
not do for what is compiled first):

    python -m experiments.time_step --dtype=bfloat16 --batch=128 --threads=16 --compiled

First both have to find the same value for each term, dropout off. Then they take turns in one
process, each round beginning with the other. The ratio is torch's time over ours in the same round:
median and middle 80%.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from absl import flags
from rich.console import Console

from distilflax import models, settings, weights
from distilflax.batches.masking import MaskTable, mask_table
from distilflax.errors import UserError
from distilflax.evaluate import speed, tables
from distilflax.settings import Compute, Encoder, Experiment
from distilflax.train import machine, records, sharding, state
from distilflax.train.optimizer import optimizer_of
from distilflax.train.step import flops_per_step, keys_of, make_held_out_step, make_step
from distilflax.train.teachers import Pair
from distilflax.train.throughput import Peak, peak_flops
from distilflax.train.views import masked_at
from experiments import command, random_model, torch_side
from experiments.contenders import PACKAGES

_LAYERS = flags.DEFINE_integer("layers", 12, "Of the teacher; the student has half.", 2)
_WIDTH = flags.DEFINE_integer("width", 768, "Hidden size; heads of 64, neurons 4 times it.", 64)
_WORDS = flags.DEFINE_integer("words", 30522, "Size of the vocabulary.", 1000)
_BATCH = flags.DEFINE_integer("batch", 8, "Sequences a step.", 1)
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of each.", 8)
_DROPOUT = flags.DEFINE_float("dropout", 0.1, "Of the student.", 0.0, 0.9)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the products.")
_ATTENTION = flags.DEFINE_enum("attention", "auto", ["auto", "plain", "fused"], "Of ours.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of both, and cores.", 1)
_COMPILED = flags.DEFINE_bool("compiled", False, "torch.compile the two models, too.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", 3)
_CLOCK = flags.DEFINE_enum(
    "clock", "wall", list(speed.CLOCKS), "Whose seconds: passed, or of the processor."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for everything that was measured.")

_SPECIAL = 5  # the first ids: never masked
_TEMPERATURE = 2.0
_LOSSES = {
    "kl": {"weight": 5.0, "temperature": _TEMPERATURE},
    "mlm": {"weight": 2.0},
    "cosine": {"weight": 1.0},
}
_WARM_UP = 2


def run() -> None:
    try:
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install -e '.[parity]'.") from None
    command.keep_to_cores(_THREADS.value)
    torch.set_num_threads(_THREADS.value)
    output = command.file_of(_OUTPUT)
    peak = peak_flops()
    with tempfile.TemporaryDirectory() as work:
        both = _Step(Path(work))
        differences = both.differences()
        steps = {"distilflax": both.ours(), "torch": both.torchs(False)}
        if _COMPILED.value:
            steps["torch compiled"] = both.torchs(True)
        for step in list(steps.values()) * _WARM_UP:
            step()
        clock = speed.CLOCKS[_CLOCK.value]
        seconds = speed.take_turns(list(steps.values()), _ROUNDS.value, clock=clock, pause=0.01)
    table = _table(list(steps), seconds, both.flops, peak)
    Console().print(tables.terminal(table))
    if output:
        record = {
            "command": command.typed("time_step"),
            "seconds": dict(zip(steps, seconds.T.tolist(), strict=True)),
            "ratios": {
                name: speed.ratio(seconds[:, i], seconds[:, 0]) for i, name in enumerate(steps)
            },
            "clock": _CLOCK.value,
            "tokens": _BATCH.value * _LENGTH.value,
            "flops": both.flops,
            "peak": vars(peak),
            "differences": differences,
            "load_average": os.getloadavg(),
            **machine.record(),
            "versions": machine.versions(PACKAGES),
        }
        records.write_json(output, record)


class _Step:
    """One experiment, one batch and one pair of models, for both libraries."""

    def __init__(self, work: Path):
        self.work = work
        self.experiment = _experiment()
        encoder = Encoder(
            vocab_size=_WORDS.value,
            hidden_size=_WIDTH.value,
            num_layers=_LAYERS.value,
            num_heads=_WIDTH.value // 64,
            intermediate_size=4 * _WIDTH.value,
            type_vocab_size=2,
            pooler=False,
        )
        teacher = jax.device_get(models.init(encoder, jax.random.key(0), mlm_head=True))
        student, params = weights.surgery.make_student(
            encoder, teacher, self.experiment.student, jax.random.key(1)
        )
        self.pair, self.teacher, self.student = Pair(student, encoder), teacher, params
        for name, (one, own) in {
            "teacher": (encoder, teacher),
            "student": (student, params),
        }.items():
            random_model.save(work / name, one, jax.device_get(own))
        shape = (_BATCH.value, _LENGTH.value)
        ids = np.random.default_rng(0).integers(_SPECIAL, _WORDS.value, shape).astype(np.int32)
        self.batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        self.table = _mask_table(self.experiment)
        self.flops = flops_per_step(self.experiment, self.pair, *shape)

    def ours(self) -> Callable[[], None]:
        mesh = sharding.make_mesh(self.experiment.mesh, _BATCH.value)
        total = self.experiment.training.steps
        optimizer, _ = optimizer_of(self.experiment, total)
        step = make_step(self.experiment, self.pair, optimizer, total)
        with jax.set_mesh(mesh):
            current = state.create(mesh, self.student, optimizer)
            teacher, batch = jax.device_put(self.teacher), jax.device_put(self.batch)

        def call() -> None:
            nonlocal current
            current, metrics = step(current, teacher, self.table, batch)
            jax.block_until_ready((current, metrics))

        return call

    def torchs(self, compiled: bool) -> Callable[[], None]:
        import torch

        teacher, student = (self._loaded(name, compiled) for name in ("teacher", "student"))
        student.train()
        given = self.experiment.optimizer
        optimizer = torch.optim.AdamW(
            student.parameters(),
            lr=given.learning_rate,
            betas=(given.b1, given.b2),
            eps=given.eps,
            weight_decay=given.weight_decay,
            fused=True,
        )
        ids, labels = self._masked(keys_of(self.experiment.seed).masking)
        device = torch_side.device()
        torch_side.multiply_as_xla(torch)

        def call() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=_DTYPE.value == "bfloat16"):
                terms = _torch_terms(torch, teacher, student, ids, labels)
                total = sum(_LOSSES[name]["weight"] * value for name, value in terms.items())
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), given.clip_norm)
            optimizer.step()
            torch_side.finish(torch)

        return call

    def differences(self) -> dict[str, float]:
        """How far each term's value in torch is from ours, relative to ours, dropout off.

        Raises:
          UserError: beyond 1e-3: then the two do not do the same work.
        """
        import torch

        # What is compared is what is computed, not how it is rounded; so torch begins, too.
        exact = replace(self.experiment, compute=Compute())
        held_out = make_held_out_step(exact, self.pair)
        with jax.default_matmul_precision("highest"):
            sums = held_out(self.student, self.teacher, self.table, self.batch, np.int32(0))
        ours = {name: float(sums[name].sum / sums[name].count) for name in _LOSSES}
        key = state.purpose_key(self.experiment.seed, state.HELD_OUT_MASKING)
        teacher, student = (self._loaded(name, False) for name in ("teacher", "student"))
        with torch.no_grad():
            theirs = _torch_terms(torch, teacher, student, *self._masked(key))
        found = {name: abs(float(theirs[name]) / ours[name] - 1) for name in ours}
        for name, difference in found.items():
            if not difference < 1e-3:
                raise UserError(
                    f"{name} is {ours[name]:.5g} here and {float(theirs[name]):.5g} in torch, so "
                    "that the two steps do not do the same work; nothing was timed."
                )
        return found

    def _loaded(self, name: str, compiled: bool):
        import torch
        from transformers import AutoModelForMaskedLM

        model = AutoModelForMaskedLM.from_pretrained(self.work / name).eval()
        model = model.to(torch_side.device())
        return torch.compile(model) if compiled else model

    def _masked(self, key):
        """Ids and labels [B, L] as torch takes them, -100 where nothing is asked."""
        import torch

        masked = jax.device_get(masked_at(self.experiment, self.table, self.batch, key, 0))
        labels = np.full_like(self.batch["input_ids"], -100, dtype=np.int64)
        rows, slots = np.nonzero(masked.weights)
        labels[rows, masked.positions[rows, slots]] = masked.labels[rows, slots]
        ids = masked.input_ids.astype(np.int64)
        return tuple(torch.from_numpy(array).to(torch_side.device()) for array in (ids, labels))


def _torch_terms(torch, teacher, student, ids, labels) -> dict:
    """The three terms as DistilBERT's own code has them; nothing of the batch is padding."""
    functional = torch.nn.functional
    with torch.no_grad():
        wanted = teacher(ids, output_hidden_states=True)
    found = student(ids, output_hidden_states=True)
    ours, theirs = (one.logits.flatten(0, 1) / _TEMPERATURE for one in (found, wanted))
    ours, theirs = functional.log_softmax(ours, -1), functional.softmax(theirs, -1)
    hidden, target = (one.hidden_states[-1].flatten(0, 1) for one in (found, wanted))
    return {
        "kl": functional.kl_div(ours, theirs, reduction="batchmean") * _TEMPERATURE**2,
        "mlm": functional.cross_entropy(found.logits.flatten(0, 1), labels.flatten()),
        "cosine": (1 - functional.cosine_similarity(hidden, target, dim=-1)).mean(),
    }


def _experiment() -> Experiment:
    # Not cut out of the teacher: random layers change so little that the two would agree, and what
    # is next to nothing is no test of whether both libraries find the same.
    student = {"num_layers": max(1, _LAYERS.value // 2), "init": "random"}
    student |= {"dropout": _DROPOUT.value, "attention_dropout": _DROPOUT.value}
    return settings.from_config(
        {
            "student": student,
            "losses": _LOSSES,
            "training": {"batch_size": _BATCH.value, "steps": 1000},
            "compute": {"dtype": _DTYPE.value, "attention": _ATTENTION.value},
        }
    )


def _mask_table(experiment: Experiment) -> MaskTable:
    special = np.arange(_WORDS.value) < _SPECIAL
    counts = np.ones(_WORDS.value, np.int64)
    return mask_table(special, np.zeros_like(special), _SPECIAL - 1, counts, experiment.masking)


def _table(names: list[str], seconds: np.ndarray, flops: int, peak: Peak) -> tables.Table:
    tokens, median = _BATCH.value * _LENGTH.value, np.median(seconds, axis=0)
    rows = tuple(
        (
            name,
            tables.number(tokens / median[i], 0),
            tables.percent(flops / median[i] / peak.flops_per_second),
            tables.interval(speed.ratio(seconds[:, i], seconds[:, 0]), 1.0, 2),
        )
        for i, name in enumerate(names)
    )
    note = (
        f"{_BATCH.value} x {_LENGTH.value} tokens, {_LAYERS.value} to "
        f"{max(1, _LAYERS.value // 2)} layers of {_WIDTH.value}, {_DTYPE.value}, "
        f"{_THREADS.value} threads, "
        f"{_ROUNDS.value} rounds. MFU: of {peak.flops_per_second / 1e9:,.0f} GFLOP/s, "
        f"{peak.source}."
    )
    columns = ("Step", "Tokens/s", "MFU, %", "Time / ours [80%]")
    return tables.Table(machine.describe()["processor"], columns, rows, note)


if __name__ == "__main__":
    command.main(run)
