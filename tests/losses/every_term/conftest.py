"""Every term of the registry, at its defaults and with its options set, on two small models.

A model is the outputs that terms compare and nothing else; one program holds all terms.
"""

from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import losses, settings
from distilflax.batches.masking import Masked
from distilflax.settings import Term

LENGTHS = np.array([5, 4, 2, 5, 1, 3, 0, 5])  # a row of padding alone, and one of a single token
BATCH, LENGTH, WORDS, SLOTS, PROGRESS = 8, 5, 12, 2, 0.25
STUDENT = settings.Encoder(hidden_size=6, num_layers=2, num_heads=2)
TEACHER = settings.Encoder(hidden_size=6, num_layers=4, num_heads=2)
# As wide a teacher with as many heads as no term compares one by one.
WIDE = settings.Encoder(hidden_size=8, num_layers=4, num_heads=4)

DEFAULTS = {name: Term(weight=1.0) for name in losses.TERMS}
OPTIONS = {
    "kl": Term(1.0, temperature=3.0, temperature_by="confidence", positions="masked"),
    "reverse_kl": Term(1.0, temperature_schedule=((0.0, 4.0), (1.0, 2.0))),
    "jensen_shannon": Term(1.0, temperature=2.0, positions="masked"),
    "soft_cross_entropy": Term(
        1.0, temperature_schedule=((0.0, 2.0), (1.0, 4.0)), temperature_by="confidence"
    ),
    "dkd": Term(1.0, temperature=2.0, target_weight=0.5, non_target_weight=2.0),
    "mlm": Term(1.0, label_smoothing=0.1),
    "mse": Term(1.0, positions="masked"),
    "cosine": Term(1.0, positions="cls", layers="uniform_last", projection="per_layer"),
    "hidden_mse": Term(1.0, layers="embeddings,uniform_last", projection="shared"),
    "normalized_mse": Term(1.0, positions="pooled", layers="0:1", projection="shared"),
    "cka": Term(1.0, positions="masked", layers="0:1,final"),
    "attention_mse": Term(1.0, positions="masked", layers="uniform_last"),
    "attention_kl": Term(1.0, layers="0:2"),
    "attention_cosine": Term(1.0, layers="final:-2"),
    "relations": Term(1.0, layers="final:1", relation_heads=2, between=("queries", "values")),
    "sentence": Term(1.0, pooling="cls", projection="shared"),
    "similarity": Term(1.0, similarity="dot"),
    "info_nce": Term(1.0, temperature=0.5, projection="shared"),
    "margin_mse": Term(1.0, pooling="cls", similarity="dot"),
}
CHOICES = {"defaults": (DEFAULTS, TEACHER), "options": (OPTIONS, WIDE)}


class Case(NamedTuple):
    """A batch, and the outputs of two models by the names of `models.encode`, in numpy."""

    student: dict
    teacher: dict
    ids: np.ndarray
    mask: np.ndarray
    masked: Masked


@cache
def case(choice):
    """Two models as arrays, in numpy and float32, and a batch."""
    rng = np.random.default_rng(0)
    chosen, teacher = CHOICES[choice]

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def model(encoder):
        width, heads, depth = encoder.hidden_size, encoder.num_heads, encoder.num_layers
        of_heads = (BATCH, LENGTH, heads, width // heads)
        return {
            "hidden_states": tuple(normal(BATCH, LENGTH, width) for _ in range(depth + 1)),
            # Two heads in every model: these terms compare head by head.
            "attention_scores": tuple(normal(BATCH, 2, LENGTH, LENGTH) for _ in range(depth)),
            **{
                name: tuple(normal(*of_heads) for _ in range(depth))
                for name in ("queries", "keys", "values")
            },
            "kernel": normal(width, width),
            "matrix": normal(WORDS, width),
            "bias": normal(WORDS),
        }

    student = model(STUDENT)
    projections = losses.init_projections(chosen, STUDENT, teacher, jax.random.key(0))
    student["projections"] = jax.tree.map(lambda x: normal(*x.shape), projections)
    mask = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.int32)
    ids = (rng.integers(1, WORDS, mask.shape) * mask).astype(np.int32)
    used = np.arange(SLOTS) < np.minimum(LENGTHS // 2, SLOTS)[:, None]
    positions = np.stack([rng.permutation(n)[:SLOTS] if n > 1 else [0, 0] for n in LENGTHS])
    positions = (positions * used).astype(np.int32)
    labels = np.take_along_axis(ids, positions, axis=1)
    masked = Masked(ids, positions, labels, used.astype(np.float32))
    return Case(student, model(teacher), ids, mask, masked)


def view(model):
    outputs = {k: v for k, v in model.items() if isinstance(v, tuple)}
    outputs["last_hidden_state"] = outputs["hidden_states"][-1]
    return losses.View(
        outputs,
        lambda hidden: jnp.tanh(hidden @ model["kernel"].astype(hidden.dtype)),
        model["matrix"],
        model["bias"],
        model.get("projections", {}),
    )


def step(choice):
    chosen, _ = CHOICES[choice]

    def gradient(case, normalizers):
        def loss(student):
            return losses.total_loss(
                chosen,
                view(student),
                view(case.teacher),
                *case[2:],
                progress=jnp.float32(PROGRESS),
                normalizers=normalizers,
                chunk_rows=7,
            )

        return jax.value_and_grad(loss, has_aux=True)(case.student)

    # Compiled in half the time: speed is not what is tested.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(gradient, compiler_options=quickly)


program = cache(step)


def run(choice, of_case, only=None):
    """((total, sums), gradient). The others' gradients are divided by infinity: one program
    serves every term alone."""
    chosen, _ = CHOICES[choice]
    arrays = jax.tree.map(jnp.asarray, of_case)
    counts = losses.counts(chosen, arrays.mask, arrays.masked)
    if only is not None:
        counts = {name: n if name == only else jnp.float32(jnp.inf) for name, n in counts.items()}
    return jax.tree.map(np.asarray, program(choice)(arrays, counts))


@pytest.fixture(scope="session")
def every():
    """The two choices of terms, `defaults` and `options`, and what runs them."""
    return SimpleNamespace(
        choices=CHOICES,
        student=STUDENT,
        lengths=LENGTHS,
        progress=PROGRESS,
        case=case,
        step=step,
        run=run,
    )
