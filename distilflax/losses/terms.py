"""The terms by name, and what each needs.

A term is one pure function of the two models' outputs that gives a value for each of its units (a
position, or a sequence). The algebra (`total.py`) selects the units, sums and divides, so a term
cannot let padding in or divide by the wrong number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distilflax.losses import attention, hidden, logits, relations, sentence, words
from distilflax.models import OUTPUTS
from distilflax.settings import Term


@dataclass(frozen=True)
class Kind:
    """One named term.

    `over` says what the function is given, and what it returns (B sequences of L tokens, P
    positions that the term covers, both sides float32 unless said otherwise):

      logits     rows [N, V]                                              -> [N]
      hidden     states [B, P, D], in the models' precision               -> [B, P]
      matrix     states [B, P, D] and which of them count [B, P]          -> one number
      scores     attention scores [B, H, L, L] and who sees whom          -> [B, L]
      relations  queries, keys or values [B, L, H, K], in the models'
                 precision, and who sees whom                             -> [B, L]
      pooled     sentence vectors [B, D]                                  -> [B]
      pairs      sentence vectors [B, D] and which of them count [B]      -> [B]

    `options` are the settings it reads beside `weight` and `schedule`, `positions` the values that
    the option of that name may take, and `same_width` whether the two sides must be equally wide.
    `on_words` is the same function of a teacher that is kept as a few words (`words.py`), if there
    is one: of what is linear in the teacher's distribution.
    """

    function: Callable
    over: str
    options: tuple[str, ...]
    positions: tuple[str, ...] = ("real", "masked")
    needs_teacher: bool = True
    same_width: bool = True
    on_words: Callable | None = None


_SOFT = ("temperature", "temperature_schedule", "temperature_by", "positions")
_BY_LAYER = ("positions", "layers", "turns")
_STATE_OPTIONS = (*_BY_LAYER, "projection")
_STATES = ("real", "masked", "cls", "pooled")

TERMS: dict[str, Kind] = {
    "kl": Kind(logits.kl, "logits", _SOFT, on_words=words.kl),
    "reverse_kl": Kind(logits.reverse_kl, "logits", _SOFT),
    "jensen_shannon": Kind(logits.jensen_shannon, "logits", _SOFT),
    "soft_cross_entropy": Kind(
        logits.soft_cross_entropy, "logits", _SOFT, on_words=words.cross_entropy
    ),
    "dkd": Kind(logits.decoupled, "logits", (*_SOFT, "target_weight", "non_target_weight")),
    "mlm": Kind(logits.cross_entropy, "logits", ("label_smoothing",), needs_teacher=False),
    "mse": Kind(logits.squared_error, "logits", ("positions",)),
    "cosine": Kind(hidden.cosine_distance, "hidden", _STATE_OPTIONS, _STATES),
    "hidden_mse": Kind(hidden.mean_squared_error, "hidden", _STATE_OPTIONS, _STATES),
    "normalized_mse": Kind(hidden.normalized_squared_error, "hidden", _STATE_OPTIONS, _STATES),
    "cka": Kind(hidden.cka_distance, "matrix", _BY_LAYER, _STATES, same_width=False),
    "attention_mse": Kind(attention.scores_squared_error, "scores", _BY_LAYER),
    "attention_kl": Kind(attention.probabilities_kl, "scores", _BY_LAYER),
    "attention_cosine": Kind(attention.probabilities_cosine, "scores", _BY_LAYER),
    "relations": Kind(
        relations.relation_kl,
        "relations",
        (*_BY_LAYER, "relation_heads", "between"),
        same_width=False,
    ),
    "sentence": Kind(hidden.cosine_distance, "pooled", ("pooling", "projection")),
    "similarity": Kind(
        sentence.similarity_squared_error, "pairs", ("pooling", "similarity"), same_width=False
    ),
    "info_nce": Kind(
        sentence.info_nce, "pairs", ("pooling", "similarity", "temperature", "projection")
    ),
    "margin_mse": Kind(
        sentence.margin_squared_error, "pairs", ("pooling", "similarity"), same_width=False
    ),
}


def active(losses: Mapping[str, Term]) -> dict[str, Term]:
    """The terms that take part, in the order of the config: those of positive weight."""
    return {name: term for name, term in losses.items() if term.weight > 0}


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


def only_masked(losses: Mapping[str, Term]) -> bool:
    """Whether the active terms over words cover the masked positions only."""
    over_logits = (item for item in active(losses).items() if TERMS[item[0]].over == "logits")
    return all(uses_masked(*item) for item in over_logits)


def reads(name: str, term: Term) -> tuple[str, ...]:
    """The encoder outputs that the term compares, beside `last_hidden_state`."""
    over = TERMS[name].over
    if over == "relations":
        return term.between
    if over == "scores":
        return ("attention_scores",)
    by_layer = over in ("hidden", "matrix") and term.layers != "final"
    return ("hidden_states",) if by_layer else ()


def outputs(losses: Mapping[str, Term]) -> tuple[str, ...]:
    """What `models.encode` must be asked for so that the active terms can be computed."""
    wanted = {output for name, term in active(losses).items() for output in reads(name, term)}
    return tuple(name for name in OUTPUTS if name in wanted)


def unit(name: str, term: Term) -> str:
    """What the term has a value for: each `real` or `masked` token, `sequences`, or the `batch`."""
    over = TERMS[name].over
    if over == "matrix":
        return "batch"
    if over in ("pooled", "pairs") or term.positions in ("cls", "pooled"):
        return "sequences"
    return "masked" if uses_masked(name, term) else "real"


def whole_batch(name: str) -> bool:
    """Whether a unit's value depends on the other sequences of the batch."""
    return TERMS[name].over in ("matrix", "pairs")


def formula(losses: Mapping[str, Term]) -> str:
    """`5 kl + 2 mlm + 1 cosine`: what is minimised."""
    return " + ".join(f"{term.weight:g} {name}" for name, term in active(losses).items())
