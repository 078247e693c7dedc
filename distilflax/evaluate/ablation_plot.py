"""The figure of an ablation: every run a dot, every arm a mean with its interval."""

from collections.abc import Mapping
from typing import Any

from distilflax.evaluate import plots


def figure(report: Mapping[str, Any], metric: Any):
    """The primary metric by arm, and its paired difference from full.

    Args:
      report: of `ablation.build`.
      metric: the `ablation.Metric` that is primary.
    """
    from matplotlib.figure import Figure

    arms = report["arms"]
    drawn = Figure(figsize=(9.2, 1.6 + 0.45 * len(arms)), layout="constrained")
    scores, gaps = drawn.subplots(1, 2, sharey=True)
    key, scale = report["metric"], metric.scale
    runs = [{seed: found[key] for seed, found in arm["runs"].items() if found} for arm in arms]
    (full,) = [own for arm, own in zip(arms, runs, strict=True) if arm["name"] == report["full"]]

    for row, (arm, own) in enumerate(zip(arms, runs, strict=True)):
        plots.dots(
            scores, row, [scale * value for value in own.values()], arm["figures"][key], scale
        )
        if arm["difference"]:
            paired = [scale * (own[seed] - full[seed]) for seed in own if seed in full]
            plots.dots(gaps, row, paired, arm["difference"][key], scale)
    if report["teacher"][key] is not None:
        line = scores.axvline(scale * report["teacher"][key], color=plots.INK, lw=1, ls="--")
        drawn.legend([line], ["teacher"], loc="outside lower left", frameon=False)
    gaps.axvline(0, color=plots.INK, lw=1)
    scores.set_xlabel(f"{metric.label} (mean and 95% interval over seeds)")
    gaps.set_xlabel(f"difference from {report['full']}, paired by seed")
    scores.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    scores.set_ylim(len(arms) - 0.5, -0.5)
    for panel in (scores, gaps):
        plots.plain_axes(panel)
        panel.grid(axis="x", color=plots.GRID, lw=0.6)
    return drawn
