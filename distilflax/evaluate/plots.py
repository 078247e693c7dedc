"""The figures of a report, with matplotlib where it is installed."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from distilflax.train import records

# Okabe and Ito (2008): told apart by every common kind of colour vision. Line styles differ too,
# for those who print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
INK, GRID = "#222222", "#DDDDDD"
DPI = 160
_SMOOTHED = 20  # a running mean over this part of a run; what was measured shows behind it

# Of a curve, what is no term: the total adds up other terms in every run, so it compares nothing.
_NO_TERM = ("step", "loss")


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def save(figure: Any, path: Path) -> None:
    """Writes a matplotlib `figure` to `path`, as `records.write_bytes` does."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix("."), dpi=DPI)
    records.write_bytes(path, drawn.getvalue())


def draw(report: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes the figures that the report has data for; {file name: what it shows}."""
    drawn: dict[str, str] = {}
    curves = {
        model["name"]: model["training"]["curve"]
        for model in report["models"]
        if (model.get("training") or {}).get("curve")
    }
    if curves:
        drawn["losses.png"] = (
            "Training loss by term before weighting: running means, with what was measured behind"
        )
        save(losses(curves), folder / "losses.png")
    reference, *others = report["models"]
    found = [model["retrieval"]["mrr@10"] for model in others if model["retrieval"]]
    kept = [one["retention"]["value"] for one in found]
    if kept and None not in kept:
        drawn["retention.png"] = (
            f"What each model keeps of {reference['name']} and how much faster it is"
        )
        save(_retention(report), folder / "retention.png")
    return drawn


def losses(runs: Mapping[str, Mapping[str, Sequence]]):
    """The figure of training losses, one panel a term: those of different meaning share no axis.

    `runs` are the `records.curve` of each run by its name.
    """
    from matplotlib.figure import Figure

    terms = [name for curve in runs.values() for name in curve if name not in _NO_TERM]
    terms = list(dict.fromkeys(terms))
    columns = 2 if len(terms) in (2, 4) else min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(8.4, 0.5 + 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    lines = {}
    for panel, term in zip(panels, terms, strict=False):
        for i, (name, curve) in enumerate(runs.items()):
            if term not in curve:
                continue
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
            # A step whose masks spared every row has no value for terms on masked words.
            points = [p for p in zip(curve["step"], curve[term], strict=True) if p[1] is not None]
            steps, values = zip(*points, strict=True) if points else ((), ())
            panel.plot(steps, values, color=colour, lw=0.6, alpha=0.25)
            smooth = _running_mean(values, max(1, len(values) // _SMOOTHED))
            (lines[name],) = panel.plot(steps, smooth, style, color=colour, lw=1.6)
        panel.set_title(term, fontsize=10)
        panel.set_xlabel("step")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylabel("loss")
        plain_axes(panel)
        panel.grid(axis="y", color=GRID, lw=0.6)
    for panel in panels[len(terms) :]:
        panel.set_visible(False)
    names = [name for name in runs if name in lines]
    handles = [lines[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _running_mean(values: Sequence[float], width: int) -> Float[np.ndarray, " n"]:
    """The mean of up to `width` values, this one the last."""
    total = np.cumsum([0.0, *values])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    return (total[end] - total[start]) / (end - start)


def _retention(report: Mapping[str, Any]):
    """Horizontal bars, so that the models' names can be read; the reference is the line."""
    from matplotlib.figure import Figure

    reference, *others = report["models"]
    figure = Figure(figsize=(8.4, 1.5 + 0.55 * len(others)), layout="constrained")
    kept, speed = figure.subplots(1, 2, sharey=True)
    _kept_bars(kept, others, reference["name"])
    _speed_bars(speed, others, reference["name"])
    kept.set_yticks(range(len(others)), [model["name"] for model in others])
    kept.invert_yaxis()
    for panel in (kept, speed):
        plain_axes(panel)
        panel.grid(axis="x", color=GRID, lw=0.6)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure


def _kept_bars(panel, models: Sequence[Mapping[str, Any]], reference: str) -> None:
    retention = [model["retrieval"]["mrr@10"]["retention"] for model in models]
    kept = [100 * found["value"] for found in retention]
    # Of very few queries, the value itself can lie outside of its interval.
    below = [100 * max(0.0, found["value"] - found["low"]) for found in retention]
    above = [100 * max(0.0, found["high"] - found["value"]) for found in retention]
    bars = panel.barh(
        range(len(models)),
        kept,
        height=0.6,
        color=COLOURS[0],
        xerr=[below, above],
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 3},
    )
    panel.axvline(100, color=INK, lw=1, ls="--")
    panel.set_xlabel(f"MRR@10, % of {reference} (95% interval)")
    ends = [value + more for value, more in zip(kept, above, strict=True)]
    panel.set_xlim(0, max(108.0, 1.05 * max(ends)))
    _label(panel, bars, [f"{value:.1f}" for value in kept], "white")


def _speed_bars(panel, models: Sequence[Mapping[str, Any]], reference: str) -> None:
    height = 0.3
    kinds = (("latency", -height / 2, COLOURS[1], "white"),)
    kinds += (("throughput", height / 2, COLOURS[4], INK),)
    most = max(model["speed"][kind]["speed_up"] for model in models for kind, *_ in kinds)
    panel.set_xlim(0, 1.1 * max(1.0, most))
    for kind, offset, colour, ink in kinds:
        values = [model["speed"][kind]["speed_up"] for model in models]
        batch = models[0]["speed"][kind]["batch"]
        rows = [row + offset for row in range(len(models))]
        bars = panel.barh(rows, values, height=height, color=colour, label=f"batch {batch}")
        _label(panel, bars, [f"{value:.2f}×" for value in values], ink)
    panel.axvline(1, color=INK, lw=1, ls="--")
    panel.set_xlabel(f"speed, times {reference} ({models[0]['speed']['latency']['length']} tokens)")
    panel.tick_params(axis="y", left=False)


def _label(panel, bars, texts: Sequence[str], colour: str) -> None:
    """At the bars' feet, where neither an interval nor the line of the reference crosses them."""
    for bar, text in zip(bars, texts, strict=True):
        middle, whole = bar.get_y() + bar.get_height() / 2, panel.get_xlim()[1]
        inside = bar.get_width() > 0.15 * whole
        left = 0.015 * whole + (0.0 if inside else bar.get_width())
        panel.text(left, middle, text, va="center", color=colour if inside else INK, fontsize=9)


def dots(
    panel, row: int, values: Sequence[float], of: Mapping[str, float | None], scale: float
) -> None:
    """Runs as pale dots under their mean, with its interval where there is one."""
    panel.plot(values, [row + 0.18] * len(values), "o", color=COLOURS[5], ms=4, alpha=0.8)
    if of["value"] is None:
        return
    reach = None
    if of["low"] is not None:
        ends = (of["value"] - of["low"], of["high"] - of["value"])
        reach = [[scale * ends[0]], [scale * ends[1]]]
    panel.errorbar(
        [scale * of["value"]],
        [row - 0.08],
        xerr=reach,
        fmt="D",
        ms=5,
        color=COLOURS[0],
        capsize=3,
        lw=1.4,
    )


def plain_axes(panel) -> None:
    """No frame, marks behind what is measured."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9)
