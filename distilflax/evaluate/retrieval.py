"""Retrieval out of the corpus's own held-out entries, whose first lines must find their bodies."""

from collections.abc import Sequence
from pathlib import Path

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.search.collection import Collection


def documentation(entries: Sequence[str], limit: int = 0) -> Collection:
    """The first line of each entry as a query for the rest of it, among the rests of all.

    Entries without a body are left out. A body that stands under several titles is one document,
    and a title that several bodies share is one query for all of them: an exact copy is then
    neither a wrong answer nor a competitor. `limit` takes that many entries, spread evenly; 0 all.

    Raises:
      UserError: fewer than two different bodies.
    """
    pairs = [
        (title.strip(), body.strip()) for title, _, body in (e.partition("\n") for e in entries)
    ]
    pairs = [(title, body) for title, body in pairs if title and body]
    if limit and limit < len(pairs):
        pairs = [pairs[i * len(pairs) // limit] for i in range(limit)]
    documents: dict[str, int] = {}
    relevance: dict[str, dict[int, float]] = {}
    for title, body in pairs:
        index = documents.setdefault(body, len(documents))
        relevance.setdefault(title, {})[index] = 1.0
    if len(documents) < 2:
        raise UserError(
            f"The held-out text has {len(documents)} entries with a first line and a body, and "
            "retrieval needs at least two; give longer documents or a larger "
            "data.validation_fraction."
        )
    return Collection(tuple(documents), tuple(relevance), tuple(relevance.values()))


def held_out_by(path: str) -> float:
    """The share of the text that a run of experiments.distill held out, by the config that lies
    above its model; 1 of models that have none."""
    config = Path(path).expanduser().parent / "config.json"
    values = json_file.read_if_there(config)
    share = (values.get("data") or {}).get("validation_fraction")
    return float(share) if isinstance(share, int | float) else 1.0
