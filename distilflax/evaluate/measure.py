"""Everything that a report says of some models, measured: a plain dict for each of them.

The first model is the reference, in a report of distillation the teacher.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float

from distilflax import models, settings
from distilflax.evaluate import speed, vectors
from distilflax.evaluate.held_out import MaskedBatch
from distilflax.evaluate.intervals import compare_means
from distilflax.evaluate.masked_lm import masked_lm
from distilflax.evaluate.model import ROLES, Model
from distilflax.search import ranking
from distilflax.search.collection import Collection, retrieve
from distilflax.text.tokenizer import Tokenizer
from distilflax.weights import SentenceFiles
from distilflax.weights.sentence import DOCUMENT, QUERY

_BYTES_OF_FLOAT32 = 4
# Models that make vectors at the same time: some part of every batch runs on one core only, and
# another model's batch fills that gap.
_AT_ONCE = 2


def measure(
    compared: Sequence[Model],
    tokenizer: Tokenizer,
    *,
    batches: Sequence[MaskedBatch],
    collection: Collection | None,
    evaluation: settings.Evaluation,
    compute: settings.Compute,
    sentence: SentenceFiles,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """What `report.build` takes as `measured`: one dict of plain values for each model.

    `batches` come from `held_out.mask_batches` and `collection` from `retrieval.documentation`;
    None of a text that has nothing to be asked for, and retrieval is left out. `sentence` says how
    all of them make vectors: students stand in for the first, and are asked as it is. `say` is told
    what is being measured. Masked-LM figures are None for a model without a head.

    Raises:
      UserError: as the measurements do.
    """
    say("speed")
    timings = _speed(compared, evaluation, compute, sentence.pooling)
    say("masked words")
    filled = masked_lm(compared, batches, compute)

    def retrieved(model: Model) -> dict[str, Float[np.ndarray, "Q"]]:
        say(f"retrieval by {model.name}")
        return ranking_scores(model, tokenizer, collection, evaluation, compute, sentence)

    found: list[dict[str, Any] | None] = [None] * len(compared)
    if collection is not None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            scores = list(pool.map(retrieved, compared))
        found = [
            _compared(own, scores[0])
            | {
                "queries": len(collection.queries),
                "documents": len(collection.documents),
                "per_query": {"mrr@10": [round(float(value), 6) for value in own["mrr@10"]]},
            }
            for own in scores
        ]
    return [
        {
            "name": model.name,
            "role": model.role,
            "about": model.about or ROLES[model.role],
            **size(model),
            "masked_lm": masked and masked._asdict(),
            "agreement": agreement and agreement._asdict(),
            "retrieval": own,
            "speed": timing,
        }
        for model, timing, (masked, agreement), own in zip(
            compared, timings, filled, found, strict=True
        )
    ]


def size(model: Model) -> dict[str, Any]:
    """Layers, width, and what the model takes up.

    `megabytes` (10^6 bytes) are those of the encoder's tensors in a float32 safetensors file, to
    which the header adds about a hundred bytes a tensor.
    """
    parameters = models.parameter_count(model.params["encoder"])
    return {
        "layers": model.encoder.num_layers,
        "hidden_size": model.encoder.hidden_size,
        "parameters": parameters,
        "head_parameters": models.parameter_count(model.params["mlm_head"])
        if model.has_head
        else None,
        "megabytes": parameters * _BYTES_OF_FLOAT32 / 1e6,
    }


def _speed(
    compared: Sequence[Model],
    evaluation: settings.Evaluation,
    compute: settings.Compute,
    pooling: str,
) -> list[dict[str, Any]]:
    """Latency at batch 1 and throughput at `latency_batch`; speed-ups over the first model."""
    kinds = {"latency": 1, "throughput": evaluation.latency_batch}
    out: list[dict[str, Any]] = [{} for _ in compared]
    for kind, batch in kinds.items():
        timings = speed.measure(
            compared,
            compute,
            batch=batch,
            length=evaluation.latency_length,
            rounds=evaluation.latency_repeats,
            pooling=pooling,
        )
        for entry, timing in zip(out, timings, strict=True):
            entry[kind] = timing._asdict() | {"speed_up": timings[0].median / timing.median}
    return out


def ranking_scores(
    model: Model,
    tokenizer: Tokenizer,
    collection: Collection,
    evaluation: settings.Evaluation,
    compute: settings.Compute,
    sentence: SentenceFiles,
) -> dict[str, Float[np.ndarray, "Q"]]:
    """The scores of `ranking.METRICS` for every query of `collection`, asked as `sentence` says."""
    queries, documents = (
        vectors.embed(
            model,
            tokenizer,
            sentence.prompted(texts, prompts),
            compute=compute,
            max_length=evaluation.retrieval_length,
            batch_size=evaluation.batch_size,
            sentence=sentence,
        )
        for texts, prompts in ((collection.queries, QUERY), (collection.documents, DOCUMENT))
    )
    return retrieve(queries, documents, collection.relevance, collection.itself)


def _compared(
    own: dict[str, Float[np.ndarray, "Q"]], reference: dict[str, Float[np.ndarray, "Q"]]
) -> dict[str, Any]:
    """Each metric's mean, and how it compares with the reference's on the same queries."""
    out: dict[str, Any] = {}
    for metric in ranking.METRICS:
        out[metric] = {"mean": float(own[metric].mean())}
        if own is not reference:
            comparison = compare_means(own[metric], reference[metric])
            out[metric] |= {
                "difference": comparison.difference._asdict(),
                "retention": comparison.retention._asdict(),
            }
    return out
