"""An ablation's figures: every arm under every seed, and which differences are more than noise.

Seeds are the unit: what another training run would have said is what an ablation is about. An arm's
mean has an interval by Student's t over its runs. It is held against the full recipe seed by seed,
both having seen the same batches and masks, and the interval is that of the mean difference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from distilflax.errors import UserError
from distilflax.evaluate import ablation_plot, plots, retrieval, tables
from distilflax.evaluate.held_out import held_out_batches, mask_batches
from distilflax.evaluate.intervals import over_runs
from distilflax.evaluate.masked_lm import masked_lm
from distilflax.evaluate.measure import ranking_scores
from distilflax.evaluate.model import Model
from distilflax.evaluate.outside import Outside
from distilflax.settings import Experiment
from distilflax.train import machine, records
from distilflax.train.setup import Materials
from distilflax.train.state import HELD_OUT_MASKING, purpose_key

FILE = "ablation.json"
VERSION = 1


class Metric(NamedTuple):
    """How a figure is shown: `scale` times it with so many digits; higher is better in all."""

    label: str
    meaning: str
    scale: float = 1.0
    digits: int = 3
    needs_head: bool = False


METRICS = {
    "mrr@10": Metric("MRR@10", "retrieval of held-out documentation: mean reciprocal rank"),
    "ndcg@10": Metric("nDCG@10", "the same retrieval: discounted gain of the first ten"),
    "mlm_accuracy": Metric(
        "MLM acc. (%)", "share of masked held-out words that are filled in right", 100.0, 2, True
    ),
    "agreement": Metric(
        "Same top word (%)",
        "share of them for which the teacher puts the same first",
        100.0,
        2,
        True,
    ),
    "sts": Metric("STS (Spearman)", "cosines of sentence pairs against people's scores, test"),
    "beir": Metric("BEIR (nDCG@10)", "retrieval of a collection's documents by its queries, test"),
    "probe": Metric(
        "Probe acc. (%)", "a linear model on the frozen sentence vectors, test", 100.0, 2
    ),
}


_RETRIEVED = ("mrr@10", "ndcg@10")


class Yardstick:
    """What every arm is measured with: the same text under the same masks, the same queries."""

    def __init__(
        self,
        experiment: Experiment,
        materials: Materials,
        say: Callable[[str], None] = lambda _: None,
    ):
        """
        Raises:
          UserError: the experiment's metric cannot be had from these models, the held-out text is
            too small, or something is wrong with data of one's own.
        """
        metric = experiment.ablation.metric
        teacher = materials.teacher
        if METRICS[metric].needs_head and "mlm_head" not in teacher.params:
            raise UserError(
                f"config.ablation.metric is {metric!r}, but neither the teacher nor any term has a "
                "masked-LM head; set config.teacher.mlm_head='fit' or choose mrr@10."
            )
        self.evaluation, self.compute = experiment.evaluation, experiment.compute
        self.tokenizer, self.sentence = materials.tokenizer, teacher.vectors
        self.teacher = Model("teacher", teacher.encoder, teacher.params, "teacher")
        self.outside = Outside(
            experiment.ablation, teacher, materials.tokenizer, experiment.compute, say
        )
        # Whatever the seed of training, so that seeds differ by training alone.
        self.batches = mask_batches(
            held_out_batches(materials.corpus.validation, experiment.data, experiment.evaluation),
            purpose_key(experiment.seed, HELD_OUT_MASKING),
            materials.table,
            replace(experiment.masking, sequences=1.0),
        )
        self.collection = None
        try:
            self.collection = retrieval.documentation(
                materials.corpus.validation_documents, experiment.evaluation.retrieval_entries
            )
        except UserError as reason:
            # As of one-line texts; other metrics do without.
            if metric in _RETRIEVED:
                raise
            say(f"the table will have no retrieval: {reason}")

    def measure(self, students: Sequence[Model]) -> list[dict[str, float | None]]:
        """The figures of `METRICS` that there is data for; None where a model has no masked-LM
        head."""
        filled = masked_lm([self.teacher, *students], self.batches, self.compute)
        found = []
        for model, (masked, agreement) in zip(students, filled[1:], strict=True):
            found.append(
                {
                    **self._retrieved(model),
                    "mlm_accuracy": masked and masked.accuracy,
                    "agreement": agreement and agreement.top_1,
                    **self.outside.measure(model),
                }
            )
        return found

    def _retrieved(self, model: Model) -> dict[str, float]:
        if self.collection is None:
            return {}
        how = (self.evaluation, self.compute, self.sentence)
        ranked = ranking_scores(model, self.tokenizer, self.collection, *how)
        return {name: float(ranked[name].mean()) for name in _RETRIEVED}


def build(
    runs: Mapping[str, Mapping[int, Mapping[str, Any] | None]],
    *,
    full: str,
    metric: str,
    teacher: Mapping[str, float | None],
    changes: Mapping[str, str],
    **facts: Any,
) -> dict[str, Any]:
    """The report as a dict that JSON can hold.

    Args:
      runs: for each arm and seed its figures, of `METRICS`; None of a run that diverged.
      full: the arm that the others are held against.
      metric: the primary one, chosen beforehand.
      teacher: the same figures of the teacher.
      changes: by arm, in what it differs from `full`, for the reader.
      facts: anything else that the record should hold, such as `command` and `config`.
    """
    arms, measured = [], _measured(teacher)
    for name, of_seeds in runs.items():
        figures = {key: over_runs(_values(of_seeds, key))._asdict() for key in measured}
        against = None
        if name != full:
            against = {
                key: over_runs(_differences(of_seeds, runs[full], key))._asdict()
                for key in measured
            }
        arms.append(
            {
                "name": name,
                "changes": changes.get(name, ""),
                "runs": dict(of_seeds),
                "diverged": [seed for seed, found in of_seeds.items() if found is None],
                "figures": figures,
                "difference": against,
            }
        )
    return records.plain(
        {
            "version": VERSION,
            **facts,
            "metric": metric,
            "full": full,
            "teacher": dict(teacher),
            "arms": arms,
            "machine": machine.describe(),
            "versions": machine.versions(),
        }
    )


def separates(difference: Mapping[str, float | None] | None) -> bool:
    """Whether the interval of a difference leaves 0 out; one seed has no interval."""
    if difference is None or difference["low"] is None or math.isnan(difference["low"]):
        return False
    return difference["low"] > 0 or difference["high"] < 0


def table(report: Mapping[str, Any]) -> tables.Table:
    """The arms: the primary metric with its interval, its difference from full, the others."""
    metric = report["metric"]
    shown = METRICS[metric]
    others = [key for key in _measured(report["teacher"]) if key != metric]
    rows = []
    for arm in report["arms"]:
        difference = arm["difference"] and arm["difference"][metric]
        found = [arm["figures"][key] for key in others]
        rows.append(
            (
                arm["name"],
                tables.interval(arm["figures"][metric], shown.scale, shown.digits),
                tables.interval(difference, shown.scale, shown.digits),
                ("yes" if separates(difference) else "no") if difference else tables.MISSING,
                *(_shown(entry["value"], key) for key, entry in zip(others, found, strict=True)),
            )
        )
    teacher = report["teacher"]
    rows.append(
        (
            "teacher",
            _shown(teacher[metric], metric),
            tables.MISSING,
            tables.MISSING,
            *(_shown(teacher[key], key) for key in others),
        )
    )
    columns = (
        "Arm",
        f"{shown.label} [95%]",
        f"− {report['full']} [95%]",
        "Separate",
        *(METRICS[key].label for key in others),
    )
    seeds = list(report["arms"][0]["runs"])
    diverged = [
        f"{arm['name']} under seed {seed}" for arm in report["arms"] for seed in arm["diverged"]
    ]
    note = (
        f"{shown.label} is the primary metric, named in the config beforehand. Means over the "
        f"seeds {', '.join(map(str, seeds))}; intervals by Student's t over the seeds"
    )
    intervals = len(report["arms"]) - 1
    if intervals:
        note += (
            ", of the differences over their pairs. `Separate`: the interval of the difference "
            f"leaves 0 out. Each of the {intervals} intervals covers 95% by itself, not all "
            "together"
        )
    note += "."
    if diverged:
        note += f" Diverged, and left out: {', '.join(diverged)}."
    return tables.Table("Ablation", columns, tuple(rows), note)


def write(folder: Path, report: Mapping[str, Any]) -> Path:
    """Writes `ablation.json`, `ablation.md` and the figure; returns the path of `ablation.md`.

    Raises:
      UserError: the folder cannot be written.
    """
    drawn = plots.available()
    if drawn:
        figure = ablation_plot.figure(report, METRICS[report["metric"]])
        plots.save(figure, folder / "ablation.png")
    records.write_json(folder / FILE, report)
    records.write_text(folder / "ablation.md", to_markdown(report, drawn))
    return folder / "ablation.md"


def to_markdown(report: Mapping[str, Any], drawn: bool) -> str:
    """The text of `ablation.md`."""
    parts = [f"# {report['title']}", tables.markdown(table(report))]
    if drawn:
        caption = "Each dot is a run; bars are 95% intervals over seeds"
        parts.append(f"![{caption}](ablation.png)\n\n*{caption}.*")
    else:
        parts.append("There is no figure because matplotlib is not installed.")
    changes = [f"- **{arm['name']}**: {arm['changes'] or 'the recipe'}" for arm in report["arms"]]
    parts.append("## What each arm changes\n\n" + "\n".join(changes))
    measured = [METRICS[key] for key in _measured(report["teacher"])]
    meanings = [f"- **{metric.label}**: {metric.meaning}" for metric in measured]
    parts.append("## What the figures mean\n\n" + "\n".join(meanings))
    return "\n\n".join([*parts, *tables.made_with(report)]) + "\n"


def _measured(teacher: Mapping[str, float | None]) -> list[str]:
    """The metrics that there was data for."""
    return [key for key in METRICS if key in teacher]


def _shown(value: float | None, key: str) -> str:
    metric = METRICS[key]
    return tables.number(None if value is None else metric.scale * value, metric.digits)


def _values(of_seeds: Mapping[int, Mapping[str, Any] | None], key: str) -> list[float]:
    return [found[key] for found in of_seeds.values() if found and found[key] is not None]


def _differences(ours: Mapping, theirs: Mapping, key: str) -> list[float]:
    """Seed by seed, where neither run diverged."""
    pairs = [(ours[seed], theirs[seed]) for seed in ours if ours[seed] and theirs.get(seed)]
    return [a[key] - b[key] for a, b in pairs if a[key] is not None and b[key] is not None]
