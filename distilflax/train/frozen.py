"""Parameters that stay as they are: not differentiated, not in the optimizer, in the checkpoint."""

from typing import Any

from distilflax.settings import Student


def trained(student: Student, params: dict) -> dict:
    """The part of a tree of parameters (or of their shardings) that the run changes.

    With `freeze_embeddings` that is all but the embeddings: word, position, and their LayerNorm.
    A tied decoder is the word embeddings and stays with them.
    """
    if not student.freeze_embeddings:
        return params
    rest = {name: part for name, part in params["encoder"].items() if name != "embeddings"}
    return params | {"encoder": rest}


def merged(params: dict, own: dict[str, Any]) -> dict:
    """`params` with its trained part replaced by `own`."""
    return params | own | {"encoder": params["encoder"] | own["encoder"]}
