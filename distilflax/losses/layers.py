"""Which layers of the student learn from which of the teacher's."""

from distilflax.errors import UserError, choose_from
from distilflax.weights.surgery import LAYER_MAPS

# The embeddings' output, in front of layer 0.
EMBEDDINGS = -1
_FORMS = ("final", "embeddings", *LAYER_MAPS, "pairs such as 0:2")


def layer_pairs(
    layers: str, student_layers: int, teacher_layers: int, place: str
) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer), counted from 0, `EMBEDDINGS` the embeddings.

    `layers` is what `Term.layers` describes, such as `embeddings,uniform_last` (TinyBERT) or
    `final:-3` (MiniLMv2 with the teacher's third layer from the end).

    Raises:
      UserError: naming `place`, for an entry that is none of these, a layer that is not there, or
        a map by name for a student deeper than its teacher.
    """
    pairs = []
    for entry in layers.split(","):
        entry = entry.strip()
        if entry in ("final", "embeddings"):
            entry = f"{entry}:{entry}"
        if entry in LAYER_MAPS:
            if student_layers > teacher_layers:
                raise UserError(
                    f"{place} is {layers!r}, but the student has {student_layers} layers and the "
                    f"teacher {teacher_layers}; give pairs such as 0:0."
                )
            pairs += enumerate(LAYER_MAPS[entry](teacher_layers, student_layers))
            continue
        sides = entry.split(":")
        if len(sides) != 2:
            raise UserError(f"{place} is {layers!r}; {choose_from(entry, _FORMS)}")
        whose = (("student", student_layers), ("teacher", teacher_layers))
        pairs.append(tuple(_layer(side, *w, place) for side, w in zip(sides, whose, strict=True)))
    return tuple(pairs)


def _layer(name: str, whose: str, count: int, place: str) -> int:
    name = name.strip()
    if name == "embeddings":
        return EMBEDDINGS
    if name == "final":
        return count - 1
    if not name.removeprefix("-").isdecimal():
        raise UserError(
            f"{place}: {name!r} is no layer; {choose_from(name, ('final', 'embeddings'))[:-1]}, "
            "or a number counted from 0."
        )
    number = int(name)
    if not -count <= number < count:
        raise UserError(
            f"{place}: the {whose} has no layer {number}; choose from 0 to {count - 1}, or -1 for "
            "the last."
        )
    return number % count
