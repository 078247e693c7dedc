"""The figure of models on several tasks: a panel a task, a row a model, every run a dot."""

from collections.abc import Mapping
from typing import Any

from distilflax.evaluate import plots

_COLUMNS, _PERCENT = 4, 100.0


def figure(report: Mapping[str, Any]):
    """The first figure of every task, by model; `report` is that of `task_table.build`."""
    from matplotlib.figure import Figure

    arms, tasks = report["arms"], report["tasks"]
    columns = min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    drawn = Figure(
        figsize=(1.6 + 2.4 * columns, (0.9 + 0.3 * len(arms)) * rows), layout="constrained"
    )
    panels = drawn.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, task in zip(panels, tasks, strict=False):
        name = task["figures"][0]
        for row, arm in enumerate(arms):
            values = [_PERCENT * found[name] for found in task["runs"][arm].values()]
            if values:
                plots.dots(panel, row, values, task["means"][arm][name], _PERCENT)
        classic = (task["classic"] or {"figures": {}})["figures"].get(name)
        if classic is not None:
            panel.axvline(_PERCENT * classic, color=plots.INK, lw=1, ls=":")
        panel.set_title(task["name"], fontsize=10)
        if name != task["name"]:
            panel.set_xlabel(f"{name}, %", fontsize=9)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        plots.plain_axes(panel)
        panel.grid(axis="x", color=plots.GRID, lw=0.6)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    return drawn
