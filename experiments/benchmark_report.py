"""What a benchmark leaves in its folder: benchmark.json, and of it a table and a figure.

Everything shown is read from the record, and a folder takes in the parts of one benchmark: shapes
that were measured one command at a time, of one model on one machine with the same versions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.evaluate import plots, speed, tables
from distilflax.train import records
from experiments.contenders import PEER

FILE = "benchmark.json"
# Of two records that may be parts of one benchmark.
_SAME = ("model", "threads", "clock", "against", "machine", "versions", "commit")
# How the key of a time ends where the texts were put in the order of their lengths, as our own
# commands do.
BY_LENGTH = ", by length"
# Those by shape or contender, which the parts bring together.
_PARTS = ("seconds", "mean_difference", "absent", "footprint", "text")


def earlier(folder: Path | None, same: Mapping[str, Any]) -> dict[str, Any]:
    """The record that `folder` holds, to be added to; empty if there is none.

    Raises:
      UserError: a record of something else, or a folder that cannot be made.
    """
    if folder is None:
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}); give another --output."
        ) from None
    if not (folder / FILE).exists():
        return {}
    found = json_file.read(folder / FILE)
    # As JSON: what was read back has lists where there were tuples.
    asked = json.loads(json.dumps(dict(same)))
    other = next((name for name in _SAME if found.get(name) != asked[name]), None)
    if other:
        raise UserError(
            f"{folder / FILE} is a benchmark with another {other}, so this one is no part of it; "
            "give another --output."
        )
    return found


def joined(before: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Both parts as one record; where they measured the same, the later one counts."""
    parts = {name: before.get(name, {}) | record[name] for name in _PARTS}
    return {**record, **parts, "commands": [*before.get("commands", []), *record["commands"]]}


def columns(record: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, str]]]:
    """What is shown side by side: by its title, where each contender's seconds are, as the shape
    and the key there. Times of both orders of the texts are over the same one of the reference."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for shape, row in record["seconds"].items():
        for key in row:
            name = key.removesuffix(BY_LENGTH)
            found.setdefault(shape + key.removeprefix(name), {})[name] = shape, key
    return found


def ratios(record: Mapping[str, Any], shape: str, name: str) -> tuple[float, float, float]:
    """Median, 10% and 90% over the rounds of a contender's time over the reference's."""
    row = record["seconds"][shape]
    found = speed.ratio(np.array(row[name]), np.array(row[record["against"]]))
    return found["value"], found["low"], found["high"]


def shown(record: Mapping[str, Any]) -> list[tables.Table]:
    """Times as ratios, and, where they were counted, the costs of a fresh process."""
    seconds, places = record["seconds"], columns(record)
    names = list(dict.fromkeys(name for column in places.values() for name in column))
    rows = [
        (name, *(_cell(record, column.get(name)) for column in places.values())) for name in names
    ]
    rounds = {len(values) for row in seconds.values() for values in row.values()}
    times = "thread" if record["threads"] == 1 else "threads"
    note = (
        f"{record['model']['layers']} layers of {record['model']['hidden_size']}, "
        f"{record['threads']} {times}: {record['clock']} time over that of {record['against']} in "
        f"the same round, median and middle 80% of {' or '.join(map(str, sorted(rounds)))} rounds; "
        "less is faster."
    )
    if record["text"]:
        note += f" Texts: {record['text']['texts']:,} with {record['text']['tokens']:,} tokens."
    found = [tables.Table("Time", ("", *places), tuple(rows), note)]
    if record["footprint"]:
        found.append(_costs(record["footprint"], record["against"]))
    return found


def _cell(record: Mapping[str, Any], place: tuple[str, str] | None) -> str:
    if place is None:
        return tables.MISSING
    return "{:.2f} [{:.2f}, {:.2f}]".format(*ratios(record, *place))


def _costs(found: Mapping[str, dict], against: str) -> tables.Table:
    """Bytes as they are, seconds as ratios: those of this machine are no one else's."""
    base = np.median(found[against]["first_answer_seconds"])
    rows = tuple(
        (
            name,
            tables.number(one["file_bytes"] / 1e6, 1) if one["file_bytes"] else tables.MISSING,
            tables.number(float(np.median(one["peak_bytes"])) / 1e6, 0),
            tables.number(float(np.median(one["first_answer_seconds"]) / base), 2),
        )
        for name, one in found.items()
    )
    note = f"In a fresh process; first answer: median over that of {against}."
    columns = ("", "File, MB", "Peak memory, MB", "First answer")
    return tables.Table("File, memory, first answer", columns, rows, note)


def figure(record: Mapping[str, Any]):
    """A panel for each shape: bars of time over the reference's, ours and the peers' in colours."""
    from matplotlib.figure import Figure

    shown = columns(record)
    names = list(dict.fromkeys(name for column in shown.values() for name in column))
    size = (1.8 + 2.2 * len(shown), 0.9 + 0.26 * len(names))
    drawn = Figure(figsize=size, layout="constrained")
    panels = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (title, column) in zip(panels, shown.items(), strict=True):
        for place, name in enumerate(names):
            if name not in column:
                continue
            middle, low, high = ratios(record, *column[name])
            colour = plots.COLOURS[1 if name.startswith(PEER) else 0]
            error = {"ecolor": plots.INK, "elinewidth": 1, "capsize": 2}
            sides = [[middle - low], [high - middle]]
            panel.barh(place, middle, height=0.7, color=colour, xerr=sides, error_kw=error)
        panel.axvline(1, color=plots.INK, lw=1, ls="--")
        panel.set_title(title, fontsize=10)
        plots.plain_axes(panel)
        panel.grid(axis="x", color=plots.GRID, lw=0.6)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    drawn.supxlabel(f"{record['clock']} time over that of {record['against']}", fontsize=9)
    return drawn


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """benchmark.json, benchmark.md and, with matplotlib, benchmark.png."""
    records.write_json(folder / FILE, record)
    parts = ["# Beside other runtimes", *map(tables.markdown, shown(record))]
    if plots.available():
        plots.save(figure(record), folder / "benchmark.png")
        parts.append("![time over the reference's](benchmark.png)")
    if record["absent"]:
        told = "; ".join(f"{name}: {why}" for name, why in record["absent"].items())
        parts.append(f"Took no part: {told}.")
    told = {**record["machine"], **record["versions"], "commit": record["commit"]}
    parts += ["## Machine", tables.listed(told)]
    parts += ["## Commands", "\n".join(["```", *record["commands"], "```"])]
    records.write_text(folder / "benchmark.md", "\n\n".join(parts) + "\n")
