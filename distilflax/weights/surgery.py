"""A student out of its teacher: which layers are kept, and what becomes of the rest."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from distilflax import models
from distilflax.errors import UserError, choose_from
from distilflax.settings import Encoder, Student


def every_other(teacher: int, student: int) -> tuple[int, ...]:
    """Evenly spaced from the first layer to the last: i (N - 1) / (M - 1), a half rounded down.

    12 to 6 gives 0,2,4,7,9,11: the layers that the released DistilBERT was started from.
    """
    if student == 1:
        return (0,)
    n, m = teacher - 1, student - 1
    # ceil(i n / m - 1/2) in whole numbers: floats would round 2.5 down and 3.5 up.
    return tuple((2 * i * n + m - 1) // (2 * m) for i in range(student))


def uniform_last(teacher: int, student: int) -> tuple[int, ...]:
    """The last layer of each of M equal blocks: TinyBERT's g(m) = m N / M (arXiv:1909.10351)."""
    return tuple((m + 1) * teacher // student - 1 for m in range(student))


def first(teacher: int, student: int) -> tuple[int, ...]:
    """The M layers next to the embeddings."""
    del teacher
    return tuple(range(student))


def last(teacher: int, student: int) -> tuple[int, ...]:
    """The M layers next to the output."""
    return tuple(range(teacher - student, teacher))


LAYER_MAPS = {
    "every_other": every_other,
    "uniform_last": uniform_last,
    "first": first,
    "last": last,
}


def layer_indices(layer_map: str, teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The teacher's layer for each of the student's, counted from 0, increasing.

    `layer_map` is a name of `LAYER_MAPS`, or the layers themselves: `0,2,5`. Their order must
    increase: a layer moved before one that fed it reads hidden states that it never learned from.

    Raises:
      UserError: an unknown name, a student deeper than its teacher, or a list that has the wrong
        length, repeats a layer, names one that is not there, or is out of order.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(
            f"student.num_layers is {student_layers} but the teacher has {teacher_layers} layers; "
            f"choose 1 to {teacher_layers}."
        )
    if layer_map in LAYER_MAPS:
        return LAYER_MAPS[layer_map](teacher_layers, student_layers)
    try:
        layers = tuple(int(part) for part in layer_map.split(","))
    except ValueError:
        choices = (*LAYER_MAPS, "a list such as 0,2,5")
        raise UserError(
            f"student.layer_map is {layer_map!r}; {choose_from(layer_map, choices)}"
        ) from None
    place = f"student.layer_map {layer_map!r}"
    if len(layers) != student_layers:
        raise UserError(
            f"{place} names {len(layers)} layers but student.num_layers is {student_layers}; "
            "make them agree."
        )
    for layer in layers:
        if not 0 <= layer < teacher_layers:
            raise UserError(
                f"{place}: the teacher has no layer {layer}; choose from 0 to {teacher_layers - 1}."
            )
    if list(layers) != sorted(set(layers)):
        raise UserError(f"{place} must increase, each layer at most once.")
    return layers


def student_encoder(encoder: Encoder, student: Student) -> Encoder:
    """The student's settings, of a teacher with those of `encoder`.

    Raises:
      UserError: as `layer_indices` does, and for a width that does not divide into heads.
    """
    layer_indices(student.layer_map, encoder.num_layers, student.num_layers)
    width = student.hidden_size or encoder.hidden_size
    return replace(
        encoder,
        num_layers=student.num_layers,
        hidden_size=width,
        num_heads=student.num_heads or _heads(encoder, width),
        intermediate_size=student.intermediate_size
        or max(1, encoder.intermediate_size * width // encoder.hidden_size),
        type_vocab_size=0,
        pooler=False,
        dropout=student.dropout,
        attention_dropout=student.attention_dropout,
    )


def as_left(student: Encoder, teacher: Encoder) -> Encoder:
    """The settings that a trained student's folder gets: with the dropout of its teacher.

    That of a run is for its own few steps, or many; what a folder says is what whoever fine-tunes
    the model gets, here and in transformers. A student left with 0 was fine-tuned without dropout
    beside a teacher that had some.
    """
    dropout = {name: getattr(teacher, name) for name in ("dropout", "attention_dropout")}
    return replace(student, **dropout)


def check_cut(encoder: Encoder, student: Student) -> None:
    """Refuses a student that starts from its teacher and is larger in some way.

    Raises:
      UserError: naming the size.
    """
    if student.init == "random":
        return
    narrower = student_encoder(encoder, student)
    for what in ("hidden_size", "num_heads", "intermediate_size"):
        ours, theirs = getattr(narrower, what), getattr(encoder, what)
        if ours > theirs:
            raise UserError(
                f"student.{what} is {ours} but the teacher's is {theirs}, and what is not there "
                "cannot be copied; choose at most that, or student.init='random'."
            )
    ours, theirs = (one.hidden_size // one.num_heads for one in (narrower, encoder))
    if ours > theirs:
        raise UserError(
            f"student.num_heads is {narrower.num_heads}, which makes heads of {ours} numbers, but "
            f"the teacher's have {theirs}; give at least {-(-narrower.hidden_size // theirs)} "
            "heads, or student.init='random'."
        )


def can_be_cut(encoder: Encoder, student: Student) -> bool:
    """Whether `check_cut` has nothing against it: a random student may be larger somewhere."""
    try:
        check_cut(encoder, student)
    except UserError:
        return False
    return True


def at_full_width(student: Student) -> Student:
    """The same student as wide as its teacher: what `weights/width.py` cuts."""
    return replace(student, hidden_size=0, num_heads=0, intermediate_size=0)


def _heads(encoder: Encoder, width: int) -> int:
    """How many heads a width gets that was given without: of the teacher's size, or its number."""
    size = encoder.hidden_size // encoder.num_heads
    if width % size == 0:
        return width // size
    if width % encoder.num_heads == 0:
        return encoder.num_heads
    raise UserError(
        f"student.hidden_size is {width}, which divides neither into heads of {size} numbers nor "
        f"into {encoder.num_heads} heads, as the teacher has them; set student.num_heads."
    )


def make_student(
    encoder: Encoder, params: Mapping, student: Student, key: PRNGKeyArray
) -> tuple[Encoder, dict]:
    """The student's settings and parameters, cut out of the teacher's (which are not changed).

    With `init="teacher"` embeddings and the chosen layers are copied, so that a student with all
    layers computes what its teacher does (`regressed` is the same here; `train/regression.py` goes
    on from it). DistilBERT has no token types; type 0, which every token of a single text has, is
    folded into the positions. The pooler is dropped. A masked-LM head, if the teacher has one, is
    copied with `copy_head` and drawn anew, tied, without.

    Layers are chosen here and sizes are not: for a narrower student this makes the one
    `at_full_width`, out of which `width.narrow` makes it.

    With `init="random"` everything is drawn anew from `key`, head included: nothing of the teacher
    but its sizes is left (the paper's Table 4, "random weights initialization").

    Raises:
      UserError: as `layer_indices` does, and for sizes of its own without `init="random"`.
    """
    layers = layer_indices(student.layer_map, encoder.num_layers, student.num_layers)
    settings = student_encoder(encoder, student)
    has_head = params.get("mlm_head") is not None
    if student.init == "random":
        return settings, models.init(settings, key, mlm_head=has_head)
    if settings != student_encoder(encoder, at_full_width(student)):
        raise UserError(
            "make_student copies layers as wide as they are; give it "
            "surgery.at_full_width(student), and its result to width.narrow(...)."
        )

    old = params["encoder"]
    embeddings = dict(old["embeddings"])
    token_type = embeddings.pop("token_type", None)
    if token_type is not None:
        embeddings["position"] = embeddings["position"] + token_type[0]
    new = {"encoder": {"embeddings": embeddings}}
    for i, layer in enumerate(layers):
        new["encoder"][f"layers_{i}"] = old[f"layers_{layer}"]
    if has_head:
        whole = params if student.copy_head else models.init(settings, key, mlm_head=True)
        new["mlm_head"] = whole["mlm_head"]
    return settings, jax.tree.map(_copy, new)


def _copy(leaf):
    # Training donates the student's buffers; they must not be the teacher's.
    return np.array(leaf) if isinstance(leaf, np.ndarray) else jnp.array(leaf, copy=True)
