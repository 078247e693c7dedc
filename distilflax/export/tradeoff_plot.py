"""The figure of a model's exports: what each keeps of a task, against its size and its time."""

from collections.abc import Mapping, Sequence
from typing import Any

from distilflax.evaluate import plots


def figure(rows: Sequence[Mapping[str, Any]], metric: str):
    """Scores over megabytes (left) and over time in units of the first one's (right), both with
    logarithmic axes below; `rows` are those of `tradeoff.weigh`. Up and to the left is better."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8.4, 4.2), layout="constrained")
    by_size, by_time = drawn.subplots(1, 2, sharey=True)
    for i, row in enumerate(rows):
        look = {"color": plots.COLOURS[i % len(plots.COLOURS)], "ms": 7}
        mark = _MARKS[i % len(_MARKS)]
        by_size.plot(row["bytes"] / 1e6, row["score"], mark, label=row["name"], **look)
        ratio = row["time_ratio"]
        sides = [[ratio["value"] - ratio["low"]], [ratio["high"] - ratio["value"]]]
        by_time.errorbar(
            ratio["value"], row["score"], xerr=sides, fmt=mark, capsize=2, elinewidth=1, **look
        )
    by_size.set_xlabel("MB, without the tokenizer")
    by_size.set_ylabel(metric)
    by_time.set_xlabel(f"time a text, over that of {rows[0]['name']} (middle 80% of rounds)")
    for panel in (by_size, by_time):
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(_plain)
        panel.xaxis.set_minor_formatter(_plain)
        plots.plain_axes(panel)
        panel.tick_params(axis="x", which="minor", labelsize=7)
        panel.grid(color=plots.GRID, lw=0.6)
    columns = min(4, len(rows))
    drawn.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return drawn


_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _plain(value: float, _position: int | None = None) -> str:
    return f"{value:g}"
