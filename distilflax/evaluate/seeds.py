"""Reports of one experiment under several seeds: what is left of a difference beyond the noise.

A bootstrap over queries says what other queries would have shown; only other seeds say what
another training run would have.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distilflax.errors import UserError
from distilflax.evaluate.tables import MISSING, Table, number
from distilflax.train.workdir import FREE_TO_CHANGE, differences, flat

# What runs of one experiment may differ in. Arms are models of the report, and what is measured is
# its figures, so that neither is free here.
_FREE = (
    "seed",
    "evaluation.latency_*",
    *(key for key in FREE_TO_CHANGE if key not in ("arms.*", "evaluation.*")),
)


def across_seeds(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Mean ± standard deviation of each model's figures over reports of the same models.

    The last column is the smallest lead in MRR@10, over all seeds, of the first distilled model
    over that model: above 0, it was ahead in every run.

    Raises:
      UserError: fewer than two reports, the same seed twice, or reports of different models,
        configs or text.
    """
    if len(reports) < 2:
        raise UserError(f"{len(reports)} report was given; noise over seeds needs at least two.")
    seeds = [report["config"].get("seed") for report in reports]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"The reports have the seeds {seeds}; give runs of different seeds.")
    names = [[model["name"] for model in report["models"]] for report in reports]
    for other in names[1:]:
        if other != names[0]:
            raise UserError(
                f"The reports compare {', '.join(names[0])} and {', '.join(other)}; give reports "
                "of the same models."
            )
    for other in reports[1:]:
        _check_alike(reports[0], other)
    if any(model["retrieval"] is None for report in reports for model in report["models"]):
        raise UserError(
            "A report without retrieval is among them, by which seeds are compared; give runs on "
            "texts with titles."
        )
    runs = [[report["models"][i] for report in reports] for i in range(len(names[0]))]
    distilled = next((models for models in runs if models[0]["role"] == "distilled"), None)
    rows = []
    for models in runs:
        lead = MISSING
        if distilled is not None and models is not distilled:
            gaps = [
                _mrr(ours) - _mrr(theirs) for ours, theirs in zip(distilled, models, strict=True)
            ]
            lead = number(min(gaps))
        rows.append(
            (
                models[0]["name"],
                _spread([100 * (m["masked_lm"] or {}).get("accuracy", np.nan) for m in models], 1),
                _spread([_mrr(model) for model in models], 3),
                _spread([_kept(m, first) for m, first in zip(models, runs[0], strict=True)], 1),
                lead,
            )
        )
    columns = ("Model", "MLM accuracy (%)", "MRR@10", "MRR@10 kept (%)", "Smallest lead")
    note = f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}."
    return Table(f"Over {len(reports)} seeds", columns, tuple(rows), note)


def _check_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """
    Raises:
      UserError: the two are not of one experiment, whose seeds alone may differ.
    """
    seeds = f"seeds {one['config'].get('seed')} and {other['config'].get('seed')}"
    for key, first, second in differences(flat(one["config"]), flat(other["config"]), _FREE):
        raise UserError(
            f"The reports of {seeds} are of different configs: {key} is {first} in the one and "
            f"{second} in the other; give runs that differ in their seeds alone."
        )
    first, second = (report["text"].get("fingerprint") for report in (one, other))
    if first != second:
        raise UserError(
            f"The reports of {seeds} are of different text: its fingerprint is {first} in the one "
            f"and {second} in the other; give runs on the same text."
        )


def _mrr(model: Mapping[str, Any]) -> float:
    return model["retrieval"]["mrr@10"]["mean"]


def _kept(model: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Percent of the reference's MRR@10; NaN where that is 0."""
    return 100 * _mrr(model) / _mrr(reference) if _mrr(reference) else math.nan


def _spread(values: Sequence[float], digits: int) -> str:
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    return f"{number(mean, digits)} ± {number(deviation, digits)}"
