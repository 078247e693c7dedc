"""The tables of a report, built once from its dict and rendered as Markdown or for a terminal.

Nothing here measures or compares: every figure is read from the dict, so that a table can be made
again from `report.json` years later.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table as RichTable

MISSING = "–"
_WIDEST = 28  # characters; a cell that is longer may be wrapped


class Table(NamedTuple):
    """Rows of text under named columns; the first column holds names, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def markdown(table: Table) -> str:
    """A GitHub table under its heading, the note below."""
    marks = ["---", *["---:"] * (len(table.columns) - 1)]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (table.columns, *table.rows)]
    head, *rows = ["| " + " | ".join(row) + " |" for row in cells]
    parts = [f"## {table.title}", "\n".join([head, f"|{'|'.join(marks)}|", *rows])]
    return "\n\n".join([*parts, *([table.note] if table.note else [])])


def listed(facts: Mapping[str, Any]) -> str:
    """Names and what they stand for, a line each."""
    shown = {name: f"{v:,}" if isinstance(v, int) else v for name, v in facts.items()}
    return "\n".join(f"- **{name}**: {value}" for name, value in shown.items())


def made_with(report: Mapping[str, Any]) -> list[str]:
    """How every page ends: the machine and versions, the command, the settings folded away."""
    config = json.dumps(report["config"], indent=1)
    return [
        "## Machine\n\n" + listed({**report["machine"], **report["versions"]}),
        f"## Command\n\n```\n{report['command']}\n```",
        f"<details><summary>Settings</summary>\n\n```json\n{config}\n```\n\n</details>",
    ]


def terminal(table: Table) -> RichTable:
    """The same for a `rich` console; where it is narrow the headings wrap, never a figure."""
    out = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        caption=table.note or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, column in enumerate(table.columns):
        pieces = [*column.split(), *(row[i] for row in table.rows)]
        width = max(map(len, pieces))
        # Left to itself, rich shortens figures to make room for headings.
        fixed = width if width <= _WIDEST else None
        out.add_column(column, justify="right" if i else "left", width=fixed)
    for row in table.rows:
        out.add_row(*row)
    return out


def number(value: float | int | None, digits: int = 3) -> str:
    """`value` with that many decimals; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None or math.isnan(value) else "∞"
    return f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of one as a percentage, without the sign."""
    return number(None if value is None else 100 * value, digits)


def interval(of: Mapping[str, float | None] | None, scale: float = 1.0, digits: int = 3) -> str:
    """`value [low, high]`, or the value alone, as of a single run; a dash where nothing was
    compared, or the reference scored 0."""
    ends = ("value", "low", "high")
    value, low, high = (None if of is None or of[end] is None else scale * of[end] for end in ends)
    if low is None or math.isnan(low):
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def summary(report: Mapping[str, Any]) -> Table:
    """What one would read if one read one table."""
    rows = []
    for model in report["models"]:
        masked, found = model["masked_lm"] or {}, (model["retrieval"] or {}).get("mrr@10")
        latency = model["speed"]["latency"]
        rows.append(
            (
                model["name"],
                str(model["layers"]),
                number(model["parameters"] / 1e6, 1),
                number(model["megabytes"], 1),
                percent(masked.get("accuracy")),
                number(masked.get("perplexity"), 2),
                number(found and found["mean"]),
                percent(found and found.get("retention", {"value": 1.0})["value"]),
                number(1e3 * latency["median"], 1),
                f"{number(latency['speed_up'], 2)}×",
            )
        )
    return Table(
        "Summary",
        (
            "Model",
            "Layers",
            "Par. (M)",
            "Size (MB)",
            "MLM acc. (%)",
            "MLM ppl.",
            "MRR @10",
            "kept (%)",
            "Time (ms)",
            "Speed",
        ),
        tuple(rows),
        _with_note(report, "summary", _conditions(report)),
    )


def _with_note(report: Mapping[str, Any], table: str, note: str) -> str:
    """`note` and what the report says of that table besides."""
    return " ".join(filter(None, [note, report.get("notes", {}).get(table)]))


def _conditions(report: Mapping[str, Any]) -> str:
    first = report["models"][0]
    latency, found = first["speed"]["latency"], first["retrieval"]
    positions = [m["masked_lm"]["positions"] for m in report["models"] if m["masked_lm"]]
    masked = f"MLM: {positions[0]:,} masked words of held-out text. " if positions else ""
    asked = (
        f"MRR@10: {found['queries']:,} queries over {found['documents']:,} documents, and what is "
        f"kept of {first['name']}'s. "
        if found
        else "No retrieval: fewer than two held-out texts have a first line and more below it. "
    )
    return (
        f"Parameters and size without the masked-LM head. {masked}{asked}"
        f"Time and speed: one sequence of {latency['length']} tokens."
    )


def by_figure(
    title: str,
    names: Sequence[str],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    note: str = "",
) -> Table:
    """Figures as rows and models as columns, each with its interval, if there is one, and below it
    the share of the first model's that is kept."""
    rows = []
    for name, entries in metrics.items():
        shown = (
            interval(e["interval"]) if "interval" in e else number(e["score"]) for e in entries
        )
        rows.append((name, *shown))
        kept = [interval(entry.get("retention"), 100.0, 1) for entry in entries]
        if any(share != MISSING for share in kept):
            rows.append(("  kept, %", *kept))
    return Table(title, ("Figure", *names), tuple(rows), note)


def retrieval(report: Mapping[str, Any]) -> Table | None:
    """Retrieval of every model, and its difference from the reference; None if there was none."""
    if report["models"][0]["retrieval"] is None:
        return None
    rows = []
    for model in report["models"]:
        found = model["retrieval"]
        first = found["mrr@10"]
        rows.append(
            (
                model["name"],
                *(number(found[m]["mean"]) for m in ("mrr@10", "recall@1", "recall@10", "ndcg@10")),
                interval(first.get("difference")),
                interval(first.get("retention"), 100.0, 1),
            )
        )
    found = report["models"][0]["retrieval"]
    return Table(
        "Retrieval",
        (
            "Model",
            "MRR@10",
            "Recall@1",
            "Recall@10",
            "nDCG@10",
            "MRR@10 − reference [95%]",
            "MRR@10 kept, % [95%]",
        ),
        tuple(rows),
        f"{found['queries']:,} queries (first lines) over {found['documents']:,} documents "
        f"(bodies), none of them trained on. Reference: {report['models'][0]['name']}.",
    )


def comparisons(report: Mapping[str, Any]) -> Table | None:
    """Each distilled model against every other student; None where there is no such pair."""
    rows = tuple(
        (
            f"{entry['model']} − {entry['against']}",
            interval(entry["difference"]),
            "yes" if entry["difference"]["low"] > 0 else "no",
        )
        for entry in report["comparisons"]
    )
    columns = ("Pair", "Difference in MRR@10 [95%]", "Interval above 0")
    note = "Paired over the same queries. Noise between training runs is not in these intervals."
    return Table("Against the other students", columns, rows, note) if rows else None


def agreement(report: Mapping[str, Any]) -> Table | None:
    """Students beside their reference on the same masked text; None where nothing was compared."""
    rows = []
    for model in report["models"]:
        alike = model["agreement"]
        if alike is None:
            continue
        pairs = zip(alike["layers"], alike["cosines"], strict=True)
        rows.append(
            (
                model["name"],
                number(alike["kl"]),
                percent(alike["top_1"]),
                ", ".join(f"{ours}→{theirs}: {number(c)}" for (ours, theirs), c in pairs)
                or MISSING,
            )
        )
    reference = report["models"][0]["name"]
    columns = ("Model", "KL (nats)", "Same top word (%)", "Cosine of hidden states by layer")
    note = (
        f"Against {reference}. `m→n` compares hidden state m of the model with n of {reference}: "
        "0 is the embeddings and m the output of layer m, which of M layers stands for layer m·N/M "
        "of N. Hidden states of another width are not compared."
    )
    return Table("Agreement with the reference", columns, tuple(rows), note) if rows else None


def speed(report: Mapping[str, Any]) -> Table:
    """Latency and throughput side by side."""
    rows = []
    for model in report["models"]:
        latency, bulk = model["speed"]["latency"], model["speed"]["throughput"]
        sequences = bulk["batch"] / bulk["median"]
        span = f"{number(1e3 * latency['p10'], 1)}–{number(1e3 * latency['p90'], 1)}"
        rows.append(
            (
                model["name"],
                f"{number(1e3 * latency['median'], 1)} ({span})",
                f"{number(latency['speed_up'], 2)}×",
                number(sequences, 1),
                number(sequences * bulk["length"], 0),
                f"{number(bulk['speed_up'], 2)}×",
            )
        )
    latency, bulk = (report["models"][0]["speed"][kind] for kind in ("latency", "throughput"))
    return Table(
        "Speed",
        (
            "Model",
            "Batch 1, ms (10–90%)",
            "Speed-up",
            f"Batch {bulk['batch']}, sequences/s",
            "tokens/s",
            "Speed-up",
        ),
        tuple(rows),
        f"{latency['length']} tokens a sequence; medians of {latency['rounds']} rounds in which "
        "the models took turns. Ids to sentence vector, compiled, on the device. Models of one "
        "architecture share one measurement.",
    )


def training(report: Mapping[str, Any]) -> Table | None:
    """What each model cost to train; None where nothing was trained."""
    rows = []
    for model in report["models"]:
        run = model.get("training")
        if run:
            rows.append(
                (
                    model["name"],
                    number(run["steps"], 0),
                    number(run["tokens"], 0),
                    number(run["seconds"], 0),
                    number(run["tokens"] / run["seconds"] if run["seconds"] else None, 0),
                    run.get("objective", MISSING),
                )
            )
    columns = ("Model", "Steps", "Tokens", "Seconds", "Tokens/s", "Objective")
    note = _with_note(report, "training", "Seconds without compiling, evaluating and saving.")
    return Table("Training", columns, tuple(rows), note) if rows else None


def relative(
    title: str,
    names: Sequence[str],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    note: str = "",
) -> Table:
    """Models as rows; for every metric its score, and what share of the first model's that is.

    `metrics` has for each metric one entry a model: its `score` and, if known, its `retention`.
    """
    rows = []
    for i, name in enumerate(names):
        entries = [values[i] for values in metrics.values()]
        kept = [interval(entry.get("retention"), 100.0, 1) for entry in entries]
        rows.append(
            (
                name,
                *(
                    number(entry["score"], 4) + (f" ({share}%)" if share != MISSING else "")
                    for entry, share in zip(entries, kept, strict=True)
                ),
            )
        )
    return Table(title, ("Model", *metrics), tuple(rows), note)
