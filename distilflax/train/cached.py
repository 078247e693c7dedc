"""What is kept of a teacher that is run once, and how a step finds it in its batch.

Masks are a pure function of (seed, step, row), and batches one of (seed, step). So the teacher's
outputs are kept by step: the run that meets step i masks the very words that the teacher saw
masked when record i was made, and dynamic masking loses nothing. Each output is a column of its
own (`cache_store.py`), so that arms which compare different things share what they have in common.

A batch carries a column as `taught/OUTPUT` or `taught/OUTPUT/LAYER` [B, L, ...], and kept words as
`taught/words/VALUE`, [B, K, ...] at masked slots or [B, L, ...] at all positions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distilflax import losses
from distilflax.errors import UserError
from distilflax.losses import TERMS, Words
from distilflax.losses import words as kept_words
from distilflax.losses.layers import layer_pairs
from distilflax.settings import Compute, Encoder, Experiment

PREFIX = "taught/"
WORDS = "words"

# What words take at most, for each position, where the config names no number.
_WORD_BYTES = 64
_CONSTANT_BYTES = 4


class Column(NamedTuple):
    """One output of the teacher. `place` is its name in a batch, `folder` that on disk; `slots`
    says that it is kept at masked slots and not at all tokens; `values` names its arrays."""

    place: str
    folder: str
    slots: bool = False
    values: tuple[str, ...] = ("states",)

    def name_in_batch(self, value: str) -> str:
        """Of one of its values."""
        return f"{PREFIX}{self.place}" + (f"/{value}" if self.place == WORDS else "")

    def of(self, outputs: Mapping[str, Any]) -> Array:
        """The array among the outputs of `models.encode`."""
        output, *layer = self.place.split("/")
        return outputs[output][int(layer[0])] if layer else outputs[output]


class Kept(NamedTuple):
    """How the distributions over words are kept."""

    choice: str
    number: int
    temperature: float

    @property
    def values(self) -> tuple[str, ...]:
        """The names of the arrays, as `cache_fill.chosen_words` gives them."""
        return ("ids", "weights", "rest") if self.choice == "top_k" else ("ids", "constant")


def check(experiment: Experiment) -> None:
    """What can be said without the models.

    Raises:
      UserError: more than one teacher, or terms that compare what a cache cannot hold.
    """
    if not experiment.teacher_cache.enabled:
        return
    others = any(teacher.share for teacher in experiment.teachers.values())
    average = experiment.teaching.average_decay and experiment.teaching.average_share
    if others or average:
        raise UserError(
            "config.teacher_cache keeps the outputs of config.teacher alone, but others teach too; "
            "set config.teacher_cache.enabled=False."
        )
    for name in losses.active(experiment.losses):
        if TERMS[name].over == "scores":
            raise UserError(
                f"config.losses.{name} compares attention scores, of which a cache would hold "
                "heads x length numbers a token; set its weight to 0, or "
                "teacher_cache.enabled=False."
            )
    if experiment.teacher_cache.words != "states":
        _temperature(experiment)


def kept(experiment: Experiment, vocab_size: int) -> Kept:
    """How words are kept of a vocabulary of this size."""
    cache = experiment.teacher_cache
    each = id_dtype(vocab_size)().itemsize + (2 if cache.words == "top_k" else 0)
    number = cache.number or min((_WORD_BYTES - _CONSTANT_BYTES) // each, vocab_size - 1)
    if cache.words == "top_k" and number >= vocab_size:
        raise UserError(
            f"config.teacher_cache.number is {number} of {vocab_size} words, which leaves no rest; "
            f"set it below {vocab_size}."
        )
    return Kept(cache.words, number, _temperature(experiment))


def id_dtype(vocab_size: int) -> type[np.integer]:
    """The smallest type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def columns(experiment: Experiment, student: Encoder, teacher: Encoder) -> tuple[Column, ...]:
    """What the active terms compare, each output once.

    Raises:
      UserError: more words than there are.
    """
    cache = experiment.teacher_cache
    places = []
    over_words = False
    for name, term in losses.active(experiment.losses).items():
        kind = TERMS[name]
        if not kind.needs_teacher:
            continue
        if kind.over == "logits" and cache.words != "states":
            over_words = True
        elif kind.over == "relations":
            pairs = _pairs(name, term, student, teacher)
            places += [f"{vectors}/{layer}" for vectors in term.between for _, layer in pairs]
        elif kind.over in ("hidden", "matrix") and term.layers != "final":
            # hidden_states[0] is the embeddings, and the last one is last_hidden_state.
            layers = [layer + 1 for _, layer in _pairs(name, term, student, teacher)]
            places += [
                "last_hidden_state" if layer == teacher.num_layers else f"hidden_states/{layer}"
                for layer in layers
            ]
        else:
            places.append("last_hidden_state")
    found = [
        Column(place, f"{place.replace('/', '.')}-{cache.dtype}")
        for place in sorted(dict.fromkeys(places))
    ]
    if over_words:
        how = kept(experiment, teacher.vocab_size)
        slots = losses.only_masked(experiment.losses)
        where = "masked" if slots else "real"
        name = f"{WORDS}-{how.choice}{how.number}-T{how.temperature:g}-{where}"
        found.append(Column(WORDS, name, slots, how.values))
    return tuple(found)


def carries(batch: Mapping[str, Any]) -> bool:
    """Whether the batch brings its teacher's outputs with it."""
    return any(name.startswith(PREFIX) for name in batch)


def outputs(
    compute: Compute, teacher: Encoder, batch: Mapping[str, Array]
) -> dict[str, Array | tuple[Array, ...]]:
    """The outputs of `models.encode` that a batch carries, in the precision of the models.

    Layers that no term compares are arrays without an element, which keep the others in place.
    """
    found: dict[str, Any] = {}
    for name, array in batch.items():
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}{WORDS}/"):
            output, *layer = name.removeprefix(PREFIX).split("/")
            array = array.astype(compute.dtype)
            if layer:
                found.setdefault(output, {})[int(layer[0])] = array
            else:
                found[output] = array
    if "hidden_states" in found or "last_hidden_state" in found:
        layers = found.setdefault("hidden_states", {})
        if "last_hidden_state" in found:
            layers[teacher.num_layers] = found["last_hidden_state"]
    for output, layers in found.items():
        if isinstance(layers, dict):
            length = teacher.num_layers + (output == "hidden_states")
            found[output] = tuple(layers.get(i, jnp.zeros(0)) for i in range(length))
    return found


def words(batch: Mapping[str, Array]) -> Words | None:
    """The words that a batch carries of its teacher's distributions, if it does."""
    place = f"{PREFIX}{WORDS}/"
    found = {name.removeprefix(place): a for name, a in batch.items() if name.startswith(place)}
    if not found:
        return None
    ids = found["ids"].astype(jnp.int32)
    if "weights" in found:
        return kept_words.of_likeliest(ids, found["weights"].astype(jnp.float32), found["rest"])
    return kept_words.of_samples(ids, found["constant"])


def _pairs(name, term, student, teacher):
    place = f"config.losses.{name}.layers"
    return layer_pairs(term.layers, student.num_layers, teacher.num_layers, place)


def _temperature(experiment: Experiment) -> float:
    """The one temperature of the terms over words that have a teacher.

    Raises:
      UserError: a term that words would bias, or temperatures that differ.
    """
    chosen: dict[str, float] = {}
    place = f"config.teacher_cache.words is {experiment.teacher_cache.words!r}"
    remedy = "set teacher_cache.words='states'"
    for name, term in losses.active(experiment.losses).items():
        kind = TERMS[name]
        if kind.over != "logits" or not kind.needs_teacher:
            continue
        if kind.on_words is None:
            raise UserError(
                f"{place}, but config.losses.{name} is not linear in the teacher's distribution "
                f"and a few of its words would bias it; {remedy}, or the term's weight to 0."
            )
        if term.temperature_schedule or term.temperature_by != "constant":
            raise UserError(
                f"{place}, which are kept for one temperature, but that of config.losses.{name} "
                f"changes; {remedy}, or make it constant."
            )
        chosen[name] = term.temperature
    if len(set(chosen.values())) > 1:
        different = " and ".join(f"{t:g} ({name})" for name, t in chosen.items())
        raise UserError(
            f"{place}, which are kept for one temperature, but the terms have {different}; "
            f"{remedy}."
        )
    return next(iter(chosen.values()), 1.0)
