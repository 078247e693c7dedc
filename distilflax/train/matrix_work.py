"""What a compiled program's matrix products do, and how long they take while it runs.

Counted from the program itself: every `dot` of its HLO, with the shapes that XLA gave it. Timed
where they run, in a trace of `jax.profiler`: a product beside others in the step has cold caches
and busy neighbours, which the same product alone has not.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import jax

from distilflax.errors import UserError

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\S+(?: [^=(]*\))?) ([\w-]+)\((.*)$")
_SHAPE = re.compile(r"[a-z]+\d*\[([\d,]*)\]")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_CALLED = re.compile(r"calls=%?([\w.-]+)")


@dataclass(frozen=True)
class Product:
    """One instruction of a program: `flops` of an execution, and what it multiplies."""

    flops: int
    shapes: str


@dataclass(frozen=True)
class Executed:
    """All executions of one instruction in a trace: how many, and the seconds of all of them."""

    product: Product
    times: int
    seconds: float

    @property
    def flops(self) -> int:
        return self.times * self.product.flops


def products(hlo: str) -> dict[str, Product]:
    """The instructions of a program that multiply matrices, by name: `dot`, or a fusion around one.

    `hlo` is `compiled.as_text()`. A multiply and an add count as two operations.
    """
    inside: dict[str, dict[str, Product]] = {}  # by the computation that a product stands in
    of_fusions: dict[str, str] = {}
    computation, shapes = "", {}
    for line in hlo.splitlines():
        if opened := _COMPUTATION.match(line):
            computation, shapes = opened.group(1), {}
            continue
        if (instruction := _INSTRUCTION.match(line)) is None:
            continue
        name, result, kind, rest = instruction.groups()
        shapes[name] = _dims(result)
        if kind == "dot":
            inside.setdefault(computation, {})[name] = _product(shapes, result, rest)
        elif kind == "fusion" and (called := _CALLED.search(rest)):
            of_fusions[name] = called.group(1)
    found: dict[str, Product] = {}
    for name, called in of_fusions.items():
        if own := inside.pop(called, {}).values():
            found[name] = Product(sum(p.flops for p in own), ", ".join(p.shapes for p in own))
    # What is left stands by itself.
    return found | {name: product for own in inside.values() for name, product in own.items()}


def _product(shapes: Mapping[str, tuple[int, ...]], result: str, rest: str) -> Product:
    left, right = (
        _dims(operand) or shapes[operand.split("%")[-1]]
        for operand in rest.split(")")[0].split(", ")[:2]
    )
    contracted = _CONTRACTED.search(rest)
    summed = [left[int(i)] for i in contracted.group(1).split(",") if i] if contracted else []
    out = _dims(result)
    shown = " . ".join("x".join(map(str, side)) for side in (left, right))
    return Product(2 * prod(out) * prod(summed), f"{shown} -> {'x'.join(map(str, out))}")


def _dims(text: str) -> tuple[int, ...]:
    shape = _SHAPE.match(text)
    return tuple(int(size) for size in shape.group(1).split(",") if size) if shape else ()


def executed(
    folder: Path, known: Mapping[str, Product], module: str
) -> tuple[list[Executed], float]:
    """What the trace in `folder` shows of the `known` instructions of a program, slowest first,
    and the seconds during which at least one of them ran.

    Raises:
      UserError: there is no trace, or it shows none of them.
    """
    spans = _spans(folder, known, module)
    if not spans:
        raise UserError(
            f"The trace in {folder} shows no matrix product of {module}; this device's profiler "
            "names its operations otherwise."
        )
    times = Counter(name for name, _, _ in spans)
    seconds: Counter[str] = Counter()
    for name, begin, end in spans:
        seconds[name] += end - begin
    rows = [Executed(known[name], times[name], seconds[name]) for name in times]
    busy = covered((begin, end) for _, begin, end in spans)
    return sorted(rows, key=lambda row: -row.seconds), busy


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals: what runs at the same time counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _spans(
    folder: Path, known: Mapping[str, Product], module: str
) -> list[tuple[str, float, float]]:
    """(instruction, begin, end) in seconds of all executions of the `known` ones of a program."""
    found = []
    with warnings.catch_warnings():
        # Of the type that jaxlib 0.12 makes at the first `stats`, about its own `__module__`.
        warnings.simplefilter("ignore", DeprecationWarning)
        for path in sorted(folder.glob("**/*.xplane.pb")):
            trace = jax.profiler.ProfileData.from_file(str(path))
            for event in (e for plane in trace.planes for line in plane.lines for e in line.events):
                if event.name in known and dict(event.stats).get("hlo_module") == module:
                    begin = event.start_ns * 1e-9
                    found.append((event.name, begin, begin + event.duration_ns * 1e-9))
    return found


def by_shapes(rows: Iterable[Executed]) -> list[Executed]:
    """Executions of products of equal shapes put together, slowest first."""
    found: dict[str, Executed] = {}
    for row in rows:
        shapes = row.product.shapes
        before = found.get(shapes, Executed(row.product, 0, 0.0))
        found[shapes] = Executed(
            row.product, before.times + row.times, before.seconds + row.seconds
        )
    return sorted(found.values(), key=lambda row: -row.seconds)


def module_of(hlo: str) -> str:
    """The name of a program in a trace."""
    return hlo.split(",", 1)[0].removeprefix("HloModule ").strip()
