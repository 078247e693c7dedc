"""The terms by name, what each needs, and the check of a config's choice.

A term is one pure function of the two models' outputs that gives a value for each of its units (a
position, or a sequence). The algebra in `total.py` selects the units, sums and divides, so a term
cannot let padding in or divide by the wrong number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from distilflax.errors import UserError, choose_from
from distilflax.losses import hidden, logits
from distilflax.settings import Term


@dataclass(frozen=True)
class Kind:
    """One named term.

    `over` says what the function is given: rows of `logits`, `hidden` states [B, P, D] at the
    term's positions, or `pooled` sentence vectors [B, D]. `options` are the settings it reads
    beside `weight` and `schedule`.
    """

    function: Callable
    over: str
    options: tuple[str, ...]
    needs_teacher: bool = True


TERMS: dict[str, Kind] = {
    "kl": Kind(logits.kl, "logits", ("temperature", "positions")),
    "mlm": Kind(logits.cross_entropy, "logits", (), needs_teacher=False),
    "mse": Kind(logits.squared_error, "logits", ("positions",)),
    "cosine": Kind(hidden.cosine_distance, "hidden", ("positions",)),
    "sentence": Kind(hidden.cosine_distance, "pooled", ("pooling",)),
}


def active(losses: Mapping[str, Term]) -> dict[str, Term]:
    """The terms that take part, in the order of the config: those of positive weight."""
    return {name: term for name, term in losses.items() if term.weight > 0}


def check(losses: Mapping[str, Term], layout: str) -> None:
    """Refuses a choice of terms that cannot run.

    Raises:
      UserError: an unknown term, an option that the term does not read, no active term, a schedule
        out of order, or sentence vectors of sequences that hold several passages.
    """
    for name, term in losses.items():
        if name not in TERMS:
            raise UserError(f"config.losses.{name} is not a term; {choose_from(name, TERMS)}")
        _check_options(name, term)
        at = [fraction for fraction, _ in term.schedule]
        if at != sorted(at) or any(multiplier < 0 for _, multiplier in term.schedule):
            raise UserError(
                f"config.losses.{name}.schedule is {term.schedule}; it must be pairs (fraction of "
                "the run, multiplier) with rising fractions and no negative multiplier."
            )
        if TERMS[name].over == "pooled" and term.weight > 0 and layout == "packed":
            raise UserError(
                f"config.losses.{name} compares one vector a sequence, but config.data.layout "
                "'packed' puts several passages into one; set data.layout='lines'."
            )
    if not active(losses):
        raise UserError(
            "config.losses has no term of positive weight; give one of "
            f"{', '.join(TERMS)} a weight."
        )


def needs_teacher(losses: Mapping[str, Term]) -> bool:
    """Whether any active term compares with a teacher."""
    return any(TERMS[name].needs_teacher for name in active(losses))


def needs_head(losses: Mapping[str, Term]) -> tuple[bool, bool]:
    """Whether the (student, teacher) must have a masked-LM head for the active terms."""
    over_logits = [name for name in active(losses) if TERMS[name].over == "logits"]
    return bool(over_logits), any(TERMS[name].needs_teacher for name in over_logits)


def uses_masked(name: str, term: Term) -> bool:
    """Whether the term covers the masked positions only; masked-LM can cover no others."""
    return name == "mlm" or term.positions == "masked"


def _check_options(name: str, term: Term) -> None:
    reads = ("weight", "schedule", *TERMS[name].options)
    for field in fields(Term):
        if field.name not in reads and getattr(term, field.name) != field.default:
            raise UserError(
                f"config.losses.{name}.{field.name} is set, but {name} does not read it; its "
                f"options are {', '.join(reads)}."
            )
