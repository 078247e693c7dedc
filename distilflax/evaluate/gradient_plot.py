"""The figure of gradient accounting: how hard each term pulls, where, and which pull together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilflax.evaluate import plots

# All of what trains together, as `train/gradients.py` calls it.
_ALL = "all"

Accounts = Sequence[Mapping[str, Any]]


def draw(report: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes a figure for each model whose training has accounts; {file name: what it shows}."""
    drawn = {}
    for model in report["models"]:
        accounts = (model.get("training") or {}).get("gradients")
        if accounts:
            name = f"gradients-{model['name']}.png"
            plots.save(figure(accounts), folder / name)
            drawn[name] = (
                f"Gradients of each term of {model['name']}: how hard they pull, and which together"
            )
    return drawn


def figure(accounts: Accounts):
    """Norms (above) and cosines (below) of the terms' gradients: by layer, and along the run.

    `accounts` are the records of `records.gradients`: {"step": ..., "norm/GROUP/TERM": ...,
    "cosine/GROUP/TERM/TERM": ...}. By layer means over the run are shown.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [name.split("/") for name in accounts[0] if "/" in name]
    groups = [g for g in dict.fromkeys(name[1] for name in names) if g != _ALL]
    groups.sort(key=_depth)
    terms = list(dict.fromkeys(name[2] for name in names if name[0] == "norm"))
    pairs = list(dict.fromkeys("/".join(name[2:]) for name in names if name[0] == "cosine"))
    steps = [account["step"] for account in accounts]

    kinds = [("norm", terms), *([("cosine", pairs)] if pairs else [])]
    drawn = Figure(figsize=(9.2, 0.6 + 3.1 * len(kinds)), layout="constrained")
    panels = drawn.subplots(len(kinds), 2, squeeze=False)
    for (by_layer, along), (kind, found) in zip(panels, kinds, strict=True):
        for number, name in enumerate(found):
            look = {"color": plots.COLOURS[number % len(plots.COLOURS)], "lw": 1.6, "ms": 4}
            label = name.replace("/", " · ")
            style = plots.STYLES[number % len(plots.STYLES)]
            means = [_mean(accounts, f"{kind}/{group}/{name}") for group in groups]
            if kind == "cosine":
                # Where one of the two has no gradient, as in a head that it does not use.
                apart = [
                    [_mean(accounts, f"norm/{g}/{t}") for t in name.split("/")] for g in groups
                ]
                means = [m if all(n) else np.nan for m, n in zip(means, apart, strict=True)]
            by_layer.plot(range(len(groups)), means, style, marker="o", label=label, **look)
            values = [account.get(f"{kind}/{_ALL}/{name}") for account in accounts]
            points = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None]
            if points:
                along.plot(*zip(*points, strict=True), style, marker="o", **look)
        by_layer.set_xticks(range(len(groups)), [_shown(group) for group in groups])
        # Turned about their ends, which stand below the ticks.
        for label in by_layer.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
        along.xaxis.set_major_locator(MaxNLocator(integer=True))
        by_layer.set_xlabel("part of the model (means over the steps)")
        along.set_xlabel("step (all layers together)")
        for panel in (by_layer, along):
            plots.plain_axes(panel)
            panel.grid(axis="y", color=plots.GRID, lw=0.6)
            if kind == "cosine":
                panel.set_ylim(-1.05, 1.05)
                panel.axhline(0, color=plots.INK, lw=0.8)
            elif any(v for line in panel.get_lines() for v in line.get_ydata()):
                panel.set_yscale("log", nonpositive="mask")
                # Less than a decade has labels between its powers: as numbers, and not all nine.
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter(_two_or_five)
        by_layer.set_ylabel("gradient norm" if kind == "norm" else "cosine of two gradients")
        by_layer.legend(frameon=False, fontsize=8)
    return drawn


def _two_or_five(value: float, _: int) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""


def _shown(group: str) -> str:
    return group.replace("layers_", "layer ").replace("_", " ")


def _depth(group: str) -> tuple[int, int, str]:
    """From the embeddings upwards, then the heads."""
    if group == "embeddings":
        return (0, 0, group)
    if group.startswith("layers_"):
        return (1, int(group.removeprefix("layers_")), group)
    return (2, 0, group)


def _mean(accounts: Accounts, key: str) -> float:
    values = [account[key] for account in accounts if account.get(key) is not None]
    return float(np.mean(values)) if values else float("nan")
