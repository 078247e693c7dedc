"""How weights are stored in an ONNX file, and what multiplies with them.

A storage has four calls, each of which adds nodes to a graph and returns the result's name:

    dense(graph, x, name, kernel, bias)      x @ kernel + bias
    rows(graph, ids, name, table)            table[ids]
    leading(graph, length, name, table)      table[:length]
    words(graph, x, name, table, bias)       x @ table.T + bias, `table` stored once for both
"""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import numpy as np
from onnx import TensorProto

from distilflax.export.groups import group_of
from distilflax.export.onnx_graph import Graph
from distilflax.export.rounding import quantized


@runtime_checkable
class Storage(Protocol):
    """See the module's docstring."""

    def dense(self, graph: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """x @ kernel + bias."""

    def rows(self, graph: Graph, ids: str, name: str, table: np.ndarray) -> str:
        """table[ids]."""

    def leading(self, graph: Graph, length: str, name: str, table: np.ndarray) -> str:
        """table[:length]; `length` is a vector of one number."""

    def words(self, graph: Graph, x: str, name: str, table: np.ndarray, bias: np.ndarray) -> str:
        """x @ table.T + bias."""


class Full:
    """float32, or float16 that a runtime turns into float32 when it loads the file."""

    def __init__(self, dtype: type = np.float32):
        self._dtype = dtype

    def dense(self, graph: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        product = graph.op("MatMul", x, self._stored(graph, f"{name}/kernel", kernel))
        return graph.op("Add", product, graph.constant(f"{name}/bias", bias))

    def rows(self, graph: Graph, ids: str, name: str, table: np.ndarray) -> str:
        # The rows become float32 after they were looked up: the table itself stays small.
        return self._float(
            graph, graph.op("Gather", graph.constant(name, table.astype(self._dtype)), ids)
        )

    def leading(self, graph: Graph, length: str, name: str, table: np.ndarray) -> str:
        stored = graph.constant(name, table.astype(self._dtype))
        return self._float(graph, _leading(graph, stored, length))

    def words(self, graph: Graph, x: str, name: str, table: np.ndarray, bias: np.ndarray) -> str:
        turned = graph.op("Transpose", self._stored(graph, name, table), perm=[1, 0])
        return graph.op("Add", graph.op("MatMul", x, turned), graph.constant(f"{name}_bias", bias))

    def _stored(self, graph: Graph, name: str, array: np.ndarray) -> str:
        return self._float(graph, graph.constant(name, array.astype(self._dtype)))

    def _float(self, graph: Graph, x: str) -> str:
        return x if self._dtype is np.float32 else as_float(graph, x)


class Int8Weights:
    """Weights of 8 bits, one scale for each output; activations of 8 bits, one scale for each call.

    DynamicQuantizeLinear measures the activations' range whenever the model runs, so nothing has to
    be calibrated. What a text gets depends in its last digits on the texts beside it in the batch.

    `largest` is the greatest weight in magnitude. Processors without VNNI (AVX2 and older) add two
    products of an unsigned activation and a signed weight in 16 bits: 2 x 255 x 127 does not fit,
    and the sum is cut off without a word (onnxruntime issues 5849, 6004, 14642). 2 x 255 x 64 does.
    `largest_row` is the same for tables that are only looked up in, where nothing is added.
    """

    def __init__(self, largest: int, largest_row: int):
        self._largest, self._largest_row = largest, largest_row

    def dense(self, graph: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        weight, scale = quantized(kernel, self._largest, axis=0)
        return self._product(
            graph,
            x,
            graph.constant(f"{name}/kernel", weight),
            graph.constant(f"{name}/kernel_scale", scale),
            graph.constant(f"{name}/bias", bias),
        )

    def rows(self, graph: Graph, ids: str, name: str, table: np.ndarray) -> str:
        weight, scale = self._table(graph, name, table)
        return _scaled(graph, graph.op("Gather", weight, ids), graph.op("Gather", scale, ids))

    def leading(self, graph: Graph, length: str, name: str, table: np.ndarray) -> str:
        weight, scale = self._table(graph, name, table)
        return _scaled(graph, _leading(graph, weight, length), _leading(graph, scale, length))

    def words(self, graph: Graph, x: str, name: str, table: np.ndarray, bias: np.ndarray) -> str:
        weight, scale = self._table(graph, name, table)
        turned = graph.op("Transpose", weight, perm=[1, 0])
        return self._product(graph, x, turned, scale, graph.constant(f"{name}_bias", bias))

    def _table(self, graph: Graph, name: str, table: np.ndarray) -> tuple[str, str]:
        weight, scale = quantized(table, self._largest_row, axis=1)
        return graph.constant(name, weight), graph.constant(f"{name}_scale", scale)

    def _product(self, graph: Graph, x: str, weight: str, scale: str, bias: str) -> str:
        """In standard operators, which ONNX Runtime joins into one of its own when it loads."""
        small, factor, zero = graph.ops("DynamicQuantizeLinear", x, outputs=3)
        whole = graph.op("MatMulInteger", small, weight, zero)
        scaled = graph.op("Mul", as_float(graph, whole), graph.op("Mul", factor, scale))
        return graph.op("Add", scaled, bias)


class PartlyFloat:
    """One storage for most, and float32 for the groups named in `in_float` (see `groups`)."""

    def __init__(self, storage: Storage, in_float: Collection[str]):
        self._storage, self._full, self._in_float = storage, Full(), in_float

    def dense(self, graph: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        return self._of(name).dense(graph, x, name, kernel, bias)

    def rows(self, graph: Graph, ids: str, name: str, table: np.ndarray) -> str:
        return self._of(name).rows(graph, ids, name, table)

    def leading(self, graph: Graph, length: str, name: str, table: np.ndarray) -> str:
        return self._of(name).leading(graph, length, name, table)

    def words(self, graph: Graph, x: str, name: str, table: np.ndarray, bias: np.ndarray) -> str:
        return self._of(name).words(graph, x, name, table, bias)

    def _of(self, name: str) -> Storage:
        return self._full if group_of(name) in self._in_float else self._storage


def _leading(graph: Graph, table: str, length: str) -> str:
    # Not a Gather of a Range: ONNX Runtime 1.32 turns that into a Slice that it then refuses.
    return graph.op("Slice", table, graph.ints(0), length, graph.ints(0))


def _scaled(graph: Graph, numbers: str, scale: str) -> str:
    """Rows of whole numbers times one scale a row."""
    return graph.op("Mul", as_float(graph, numbers), graph.op("Unsqueeze", scale, graph.ints(-1)))


def as_float(graph: Graph, x: str) -> str:
    """Any numbers as float32."""
    return graph.op("Cast", x, to=TensorProto.FLOAT)
