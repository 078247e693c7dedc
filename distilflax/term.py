"""What a config may say of one loss term."""

from dataclasses import dataclass

from distilflax.bounds import choice, number


@dataclass(frozen=True)
class Term:
    """One loss term: its weight, what it is computed over, and how.

    A term reads the options that `losses/terms.py` lists for it, and setting another is an error.

    `schedule`: piecewise-linear multipliers of the weight over the run, as pairs (fraction of the
    run, multiplier); empty means constant.

    `temperature`: logits are divided by it, or similarities by terms that rank sequences.
    `temperature_schedule`: pairs (fraction of the run, temperature) that take its place.
    `temperature_by="confidence"`: T_n = 1 + (T - 1) c_n at position n, with c_n the probability of
    the teacher's likeliest word: where the teacher is in doubt its distribution stays as it is.

    `positions`: `real` (every token that is not padding), `masked` (those the masking drew), `cls`
    (the first of each sequence) or `pooled` (the mean of each sequence's real tokens).
    `pooling`: how a sentence vector is made; `own` is each model's own way, as its files for
    sentence-transformers say (mean without any), of the student that of its first teacher.

    `layers`: which layers of the student learn from which of the teacher's, separated by commas:
    `final` (the last from the last), `embeddings`, pairs `student:teacher` counted from 0 (-1 is
    the last), or a map of all the student's layers by name (`every_other`, `uniform_last`, `first`,
    `last`). A term takes the mean over them.
    `turns`: over that first part of the run the pairs of layers take turns, in their order and for
    equally long: of the mean only the pair whose turn it is remains, and none of it afterwards.
    `projection`: a linear map, learned with the student and dropped with the run, from the
    student's width to the teacher's: one for all pairs (`shared`) or one for each (`per_layer`).

    `relation_heads`: into how many heads the vectors are cut before they are related; 0 keeps the
    models' own. `between`: which vectors are related, each with itself.
    `similarity`: `cosine` or `dot`, between sentence vectors.
    `label_smoothing`: share of the truth that is spread evenly over all words.
    `target_weight`, `non_target_weight`: alpha and beta of decoupled distillation.
    """

    weight: float = number(0.0, 0.0)
    schedule: tuple[tuple[float, float], ...] = ()
    temperature: float = number(1.0, 1e-3)
    temperature_schedule: tuple[tuple[float, float], ...] = ()
    temperature_by: str = choice("constant", "constant", "confidence")
    positions: str = choice("real", "real", "masked", "cls", "pooled")
    pooling: str = choice("own", "own", "mean", "cls")
    layers: str = "final"
    turns: float = number(0.0, 0.0, 1.0)
    projection: str = choice("none", "none", "shared", "per_layer")
    relation_heads: int = number(0, 0)
    between: tuple[str, ...] = ("queries", "keys", "values")
    similarity: str = choice("cosine", "cosine", "dot")
    label_smoothing: float = number(0.0, 0.0, 0.99)
    target_weight: float = number(1.0, 0.0)
    non_target_weight: float = number(1.0, 0.0)
