"""The report of a run: one dict of plain values, and what is made of it.

report.json    the dict: everything that the others show, the config, the machine, the versions
report.md      tables and figures, for reading and for a paper's appendix
*.png          the figures, where matplotlib is installed
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilflax.errors import UserError
from distilflax.evaluate import gradient_plot, plots, tables
from distilflax.evaluate.intervals import compare_means
from distilflax.search import ranking
from distilflax.train import machine, records

# Counts up when a reader of an older file would be wrong about this one.
VERSION = 1
FILE = "report.json"

_MEANINGS = {
    "MLM acc.": "share of masked held-out words that the model puts first",
    "MLM ppl.": "exp of the mean cross-entropy of masked held-out words; lower is better",
    "MRR@10": f"mean of {ranking.METRICS['mrr@10']}",
    "Recall@k": "share of the relevant documents among the first k",
    "nDCG@10": ranking.METRICS["ndcg@10"],
    "Kept": "the figure as a percentage of the reference's, which is the first model",
    "KL": "KL(reference || model) of the words at masked positions, temperature 1; lower is closer",
    "Same top word": "share of masked positions where both put the same word first",
    "Cosine": "mean over real tokens of the cosine between the hidden states of both models",
    "[95%]": "bootstrap interval over the queries (2,000 draws, the same ones for both models)",
    "Time": "median time of one sequence, batch 1; speed is the reference's time over it",
    "Size": "the encoder's tensors as float32 safetensors, 1 MB = 10^6 bytes",
}


def build(
    measured: Sequence[Mapping[str, Any]],
    *,
    title: str,
    command: str,
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    training: Mapping[str, Mapping[str, Any]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The report as a dict that JSON can hold.

    Args:
      measured: of `measure.measure`; the first model is the reference.
      title: the heading.
      command: what was typed to make the report.
      config: the experiment's settings, whole (`dataclasses.asdict`), seeds among them.
      text: facts of the text by name: sources, sequences, fingerprint, ...
      training: by a model's name, `steps`, `tokens` and `seconds` of its training and, if known,
        `objective` (a phrase), `curve`: {"step": [...], TERM: [...], ...}, all of one length, and
        `gradients`, the accounts that `records.gradients` reads.
      notes: sentences below the tables `summary` and `training`.
    """
    training = training or {}
    models = [{**model, "training": training.get(model["name"])} for model in measured]
    return records.plain(
        {
            "version": VERSION,
            "title": title,
            "command": command,
            "config": config,
            "text": text,
            "machine": machine.describe(),
            "versions": machine.versions(),
            "models": models,
            "comparisons": _comparisons(models),
            "notes": notes or {},
        }
    )


def _comparisons(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The distilled models against every other student, query by query, each pair once."""
    students = [model for model in models[1:] if model["retrieval"]]
    distilled = [model for model in students if model["role"] == "distilled"]
    others = [model for model in students if model["role"] != "distilled"]
    out = []
    for i, model in enumerate(distilled):
        for other in (*distilled[i + 1 :], *others):
            ours, theirs = (np.array(m["retrieval"]["per_query"]["mrr@10"]) for m in (model, other))
            comparison = compare_means(ours, theirs)
            out.append(
                {
                    "model": model["name"],
                    "against": other["name"],
                    "difference": comparison.difference._asdict(),
                }
            )
    return out


def write(folder: str | Path, report: Mapping[str, Any]) -> Path:
    """Writes `report.json`, `report.md` and the figures into `folder`; returns `report.md`'s path.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The report cannot be written to {folder} ({error.strerror}).") from None
    records.write_json(folder / FILE, report)
    figures = None
    if plots.available():
        figures = plots.draw(report, folder) | gradient_plot.draw(report, folder)
    path = folder / "report.md"
    records.write_text(path, to_markdown(report, figures))
    return path


def read(path: str | Path) -> dict[str, Any]:
    """A report from its `report.json`, or from the folder that has one.

    Raises:
      UserError: no such file, not a report, or one of another version.
    """
    path = Path(path).expanduser()
    path = path / FILE if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no report {path}; give a run's folder or report.json.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a report ({error}).") from None
    if not isinstance(report, dict) or not isinstance(report.get("models"), list):
        raise UserError(f"{path} is not a report: it has no list of models.")
    if report.get("version") != VERSION:
        raise UserError(
            f"{path} is a report of version {report.get('version')!r} and this is the reader of "
            f"version {VERSION}; make it again with the command in it."
        )
    return report


def all_tables(report: Mapping[str, Any]) -> list[tables.Table]:
    """The tables in the order of reading, without those that have nothing to say."""
    found = [
        tables.summary(report),
        tables.retrieval(report),
        tables.comparisons(report),
        tables.agreement(report),
        tables.speed(report),
        tables.training(report),
    ]
    return [table for table in found if table is not None]


def to_markdown(report: Mapping[str, Any], figures: Mapping[str, str] | None) -> str:
    """The text of `report.md`; `figures` are {file: caption}, or None where nothing can draw."""
    first, *rest = all_tables(report)
    parts = [f"# {report['title']}", tables.markdown(first), _models(report)]
    if figures is None:
        parts.append(
            "There are no figures because matplotlib is not installed; `pip install matplotlib` "
            "and run the command again."
        )
    for file, caption in (figures or {}).items():
        parts.append(f"![{caption}]({file})\n\n*{caption}.*")
    parts += [tables.markdown(table) for table in rest]
    parts.append("## What the figures mean\n\n" + tables.listed(_MEANINGS))
    parts.append("## Text\n\n" + tables.listed(report["text"]))
    return "\n\n".join([*parts, *tables.made_with(report)]) + "\n"


def _models(report: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{m['name']}**: {m['about']}." for m in report["models"])
