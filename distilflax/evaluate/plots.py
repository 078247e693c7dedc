"""The figures of a report, with matplotlib where it is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Okabe and Ito (2008): told apart by every common kind of colour vision. Line styles differ too,
# for those who print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_INK, _GRID = "#222222", "#DDDDDD"
_DPI = 160

# Of a curve, what is no term: the total adds up other terms in every run, so it compares nothing.
_NO_TERM = ("step", "loss")


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def draw(report: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes the figures that the report has data for; {file name: what it shows}."""
    drawn = {}
    if any((model.get("training") or {}).get("curve") for model in report["models"]):
        drawn["losses.png"] = "Loss terms over training, each on its own scale, before weighting"
        _losses(report).savefig(folder / "losses.png", dpi=_DPI)
    drawn["retention.png"] = (
        f"What each model keeps of {report['models'][0]['name']} and how much faster it is"
    )
    _retention(report).savefig(folder / "retention.png", dpi=_DPI)
    return drawn


def _losses(report: Mapping[str, Any]):
    """One panel a term: terms of different meaning share no axis."""
    from matplotlib.figure import Figure

    runs = [
        (i, model["name"], model["training"]["curve"])
        for i, model in enumerate(report["models"])
        if (model.get("training") or {}).get("curve")
    ]
    terms = list(
        dict.fromkeys(name for _, _, curve in runs for name in curve if name not in _NO_TERM)
    )
    figure = Figure(figsize=(3.3 * len(terms), 3.0), layout="constrained")
    panels = figure.subplots(1, len(terms), squeeze=False)[0]
    for panel, term in zip(panels, terms, strict=True):
        for i, name, curve in runs:
            if term in curve:
                style = _STYLES[i % len(_STYLES)]
                colour = _COLOURS[i % len(_COLOURS)]
                panel.plot(curve["step"], curve[term], style, color=colour, label=name, lw=1.5)
        panel.set_title(term, fontsize=10)
        panel.set_xlabel("step")
        _plain(panel)
        panel.grid(axis="y", color=_GRID, lw=0.6)
    panels[0].set_ylabel("loss (mean per unit)")
    handles = {}
    for panel in panels:
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
    )
    return figure


def _retention(report: Mapping[str, Any]):
    """Horizontal bars, so that the models' names can be read; the reference is the line."""
    from matplotlib.figure import Figure

    reference, *others = report["models"]
    names = [model["name"] for model in others]
    kept, errors = [], []
    for model in others:
        found = model["retrieval"]["mrr@10"]["retention"]
        kept.append(100 * found["value"])
        errors.append((found["value"] - found["low"], found["high"] - found["value"]))
    speed = [model["speed"]["latency"]["speed_up"] for model in others]
    bulk = [model["speed"]["throughput"]["speed_up"] for model in others]
    batch = reference["speed"]["throughput"]["batch"]

    figure = Figure(figsize=(8.4, 1.5 + 0.55 * len(others)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(others))
    bars = left.barh(
        rows,
        kept,
        height=0.6,
        color=_COLOURS[0],
        xerr=[[100 * e[side] for e in errors] for side in (0, 1)],
        error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 3},
    )
    left.bar_label(bars, [f"{value:.1f}" for value in kept], padding=4, fontsize=9)
    left.axvline(100, color=_INK, lw=1, ls="--")
    left.set_xlabel(f"MRR@10, % of {reference['name']} (95% interval)")
    left.set_xlim(0, max(115.0, *(value * 1.15 for value in kept)))

    height = 0.3
    for offset, values, colour, label in (
        (-height / 2, speed, _COLOURS[1], "batch 1"),
        (height / 2, bulk, _COLOURS[4], f"batch {batch}"),
    ):
        at = [row + offset for row in rows]
        bars = right.barh(at, values, height=height, color=colour, label=label)
        right.bar_label(bars, [f"{value:.2f}×" for value in values], padding=3, fontsize=9)
    right.axvline(1, color=_INK, lw=1, ls="--")
    right.set_xlim(0, 1.25 * max([1.0, *speed, *bulk]))
    length = reference["speed"]["latency"]["length"]
    right.set_xlabel(f"speed, times {reference['name']} ({length} tokens)")
    left.set_yticks(list(rows), names)
    left.invert_yaxis()
    for panel in (left, right):
        _plain(panel)
        panel.grid(axis="x", color=_GRID, lw=0.6)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure


def _plain(panel) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9)
