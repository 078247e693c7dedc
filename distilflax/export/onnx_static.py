"""Products in 8 bits whose activations have ranges that were measured beforehand.

Written as every runtime's tools write it: QuantizeLinear and DequantizeLinear around a float
product ("QDQ"), which a runtime that can joins into one in whole numbers.
"""

from collections.abc import Mapping

import numpy as np

from distilflax.export.calibration import Range
from distilflax.export.onnx_graph import Graph
from distilflax.export.onnx_weights import Int8Weights
from distilflax.export.rounding import quantized

_STEPS = 255


class StaticInt8(Int8Weights):
    """As `Int8Weights`, but for what the activations are rounded by."""

    def __init__(self, ranges: Mapping[str, Range], largest: int, largest_row: int):
        super().__init__(largest, largest_row)
        self._ranges = ranges

    def dense(self, graph: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        weight, scale = quantized(kernel, self._largest, axis=0)
        stored = graph.constant(f"{name}/kernel", weight)
        scales = graph.constant(f"{name}/kernel_scale", scale)
        product = self._matmul(graph, x, name, stored, scales, len(scale))
        return graph.op("Add", product, graph.constant(f"{name}/bias", bias))

    def words(self, graph: Graph, x: str, name: str, table: np.ndarray, bias: np.ndarray) -> str:
        weight, scale = self._table(graph, name, table)
        turned = graph.op("Transpose", weight, perm=[1, 0])
        product = self._matmul(graph, x, name, turned, scale, len(table))
        return graph.op("Add", product, graph.constant(f"{name}_bias", bias))

    def _matmul(
        self, graph: Graph, x: str, name: str, weight: str, scale: str, columns: int
    ) -> str:
        factor, zero = rounding(self._ranges[name])
        # By value and not by name: query, key and value share one rounding.
        by = (graph.number(factor), graph.constant(f"byte_{zero}", np.array(zero, np.uint8)))
        small = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, *by), *by)
        zeros = graph.constant(f"zeros_{columns}", np.zeros(columns, np.int8))
        kernel = graph.op("DequantizeLinear", weight, scale, zeros, axis=1)
        return graph.op("MatMul", small, kernel)


def rounding(given: Range) -> tuple[float, int]:
    """(scale, zero): x ~ (number - zero) * scale, with numbers from 0 to 255."""
    scale = float(np.float32(max(given.high - given.low, 1e-12) / _STEPS))
    return scale, int(np.clip(np.rint(-given.low / scale), 0, _STEPS))
