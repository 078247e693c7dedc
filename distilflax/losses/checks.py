"""Refuses a choice of terms that cannot run, in one sentence and before anything is computed."""

from collections.abc import Mapping
from dataclasses import fields

from distilflax.errors import UserError, choose_from
from distilflax.losses.layers import EMBEDDINGS, layer_pairs
from distilflax.losses.terms import TERMS, active, uses_masked, whole_batch
from distilflax.settings import Encoder, Masking, Term

# Where the terms of a distillation stand; those of a task's stage before have a place of their own.
PLACE = "config.losses"
_BETWEEN = ("queries", "keys", "values")
# An anchor needs another sequence; for a margin, a nearest one and one that is farther away.
_LEAST_BATCH = {"similarity": 2, "info_nce": 2, "margin_mse": 3}
# Of these positions a sequence has many; of any other, one.
_OF_TOKENS = ("real", "masked")


def check(
    losses: Mapping[str, Term],
    layout: str,
    accumulate: int = 1,
    batch_size: int | None = None,
    where: str = PLACE,
) -> None:
    """What can be said without the models; without `batch_size`, nothing about it. `where` the
    terms stand in a config, mistakes are named.

    Raises:
      UserError: an unknown term, an option that the term does not read or a value that it cannot
        take, no active term, a schedule out of order, a term on pairs of packed
        passages, micro-batches of a term that needs the batch whole, or a batch in which a
        sequence finds none to be compared with.
    """
    for name, term in losses.items():
        if name not in TERMS:
            raise UserError(f"{where}.{name} is not a term; {choose_from(name, TERMS)}")
        place = f"{where}.{name}"
        _check_options(place, name, term)
        _check_schedule(f"{place}.schedule", term.schedule, "multiplier", 0.0)
        schedule = term.temperature_schedule
        _check_schedule(f"{place}.temperature_schedule", schedule, "temperature", 1e-3)
    for name in active(losses):
        if TERMS[name].over == "pairs" and layout == "packed":
            raise UserError(
                f"{where}.{name} compares every sequence of a batch with every other, but "
                "config.data.layout 'packed' leaves open how many there are; set "
                "data.layout='lines'."
            )
        least = _LEAST_BATCH.get(name, 1)
        if name == "cka" and losses[name].positions not in _OF_TOKENS:
            least = 3
        if batch_size is not None and batch_size < least:
            raise UserError(
                f"{where}.{name} compares the sequences of a batch with each other and is always "
                f"the same with config.training.batch_size={batch_size}; set it to {least} or more."
            )
    check_accumulation(losses, accumulate)
    if not active(losses):
        raise UserError(
            f"{where} has no term of positive weight; give one of {', '.join(TERMS)} a weight."
        )


def check_accumulation(losses: Mapping[str, Term], accumulate: int) -> None:
    """Refuses micro-batches where a term compares the sequences of a batch with each other."""
    for name in active(losses):
        if accumulate > 1 and whole_batch(name):
            raise UserError(
                f"config.losses.{name} compares the sequences of a batch with each other, which "
                f"config.training.accumulate={accumulate} would tear apart; set accumulate=1 and "
                "a smaller batch_size or more devices."
            )


def check_no_teacher(losses: Mapping[str, Term]) -> None:
    """Refuses terms that compare with a teacher, where there is none."""
    for name in active(losses):
        if TERMS[name].needs_teacher:
            raise UserError(
                f"config.losses.{name} compares with a teacher, and there is none; give one, or "
                "set its weight to 0."
            )


def check_masking(losses: Mapping[str, Term], masking: Masking) -> None:
    """Refuses terms over masked positions where nothing is ever masked: they would be 0."""
    for name, term in active(losses).items():
        if not masking.sequences and uses_masked(name, term):
            remedy = "its weight to 0" if name == "mlm" else "its positions to 'real'"
            raise UserError(
                f"config.losses.{name} covers masked positions, but config.masking.sequences is 0 "
                f"and none are masked; raise that, or set {remedy}."
            )


def check_models(
    losses: Mapping[str, Term], student: Encoder, teacher: Encoder, where: str = PLACE
) -> None:
    """Whether these two models have what the active terms compare; `where` as in `check`.

    Raises:
      UserError: a layer map that does not fit, widths, heads or vocabularies that differ where the
        term compares them one by one, or relation heads that do not divide a width.
    """
    for name, term in active(losses).items():
        kind, place = TERMS[name], f"{where}.{name}"
        if not kind.needs_teacher:
            continue
        if "layers" in kind.options:
            _check_layers(f"{place}.layers", name, term, student, teacher)
        if kind.over == "logits" and student.vocab_size != teacher.vocab_size:
            raise UserError(
                f"{place} compares distributions over words, but the student has "
                f"{student.vocab_size} words and the teacher {teacher.vocab_size}; set its "
                "weight to 0."
            )
        if kind.over == "scores" and student.num_heads != teacher.num_heads:
            raise UserError(
                f"{place} compares head by head, but the student has {student.num_heads} heads and "
                f"the teacher {teacher.num_heads}; use relations, with relation_heads."
            )
        if kind.over == "relations":
            _check_heads(f"{place}.relation_heads", term.relation_heads, student, teacher)
        compares_states = kind.over in ("hidden", "pooled", "pairs") and kind.same_width
        differ = student.hidden_size != teacher.hidden_size
        if compares_states and differ and term.projection == "none":
            raise UserError(
                f"{place} compares vectors of {student.hidden_size} numbers with vectors of "
                f"{teacher.hidden_size}; set projection='shared', which learns a map between them."
            )


def _check_layers(place: str, name: str, term: Term, student: Encoder, teacher: Encoder) -> None:
    pairs = layer_pairs(term.layers, student.num_layers, teacher.num_layers, place)
    in_layers = TERMS[name].over in ("scores", "relations")
    if in_layers and any(EMBEDDINGS in pair for pair in pairs):
        raise UserError(
            f"{place} is {term.layers!r}, but the embeddings have no attention; name layers only."
        )


def _check_heads(place: str, heads: int, student: Encoder, teacher: Encoder) -> None:
    if not heads and student.num_heads != teacher.num_heads:
        raise UserError(
            f"{place} is 0, which keeps the models' heads, but the student has "
            f"{student.num_heads} and the teacher {teacher.num_heads}; set it to a number that "
            f"divides the widths of both, {student.hidden_size} and {teacher.hidden_size}."
        )
    widths = dict.fromkeys((student.hidden_size, teacher.hidden_size))
    for whose, encoder in (("student", student), ("teacher", teacher)):
        if heads and encoder.hidden_size % heads:
            raise UserError(
                f"{place} is {heads}, which does not divide the {whose}'s width "
                f"{encoder.hidden_size}; choose a divisor of {' and '.join(map(str, widths))}."
            )


def _check_options(place: str, name: str, term: Term) -> None:
    kind = TERMS[name]
    known = ("weight", "schedule", *kind.options)
    for field in fields(Term):
        if field.name not in known and getattr(term, field.name) != field.default:
            raise UserError(
                f"{place}.{field.name} is set, but {name} does not read it; its options are "
                f"{', '.join(known)}."
            )
    if "positions" in kind.options and term.positions not in kind.positions:
        raise UserError(
            f"{place}.positions is {term.positions!r}; "
            f"{choose_from(term.positions, kind.positions)}"
        )
    if len({*term.between}) < len(term.between):
        raise UserError(f"{place}.between names {', '.join(term.between)}; name each once.")
    unknown = [vectors for vectors in term.between if vectors not in _BETWEEN]
    if unknown or not term.between:
        what = repr(unknown[0]) if unknown else "nothing"
        raise UserError(
            f"{place}.between names {what}; {choose_from(unknown[0] if unknown else '', _BETWEEN)}"
        )


def _check_schedule(
    place: str, schedule: tuple[tuple[float, float], ...], value: str, least: float
) -> None:
    at = [fraction for fraction, _ in schedule]
    inside = all(0.0 <= fraction <= 1.0 for fraction in at)
    if at != sorted(at) or not inside or any(v < least for _, v in schedule):
        raise UserError(
            f"{place} is {schedule}; it must be pairs (fraction of the run, {value}) with rising "
            f"fractions, none below 0 or above 1, and no {value} below {least:g}."
        )
