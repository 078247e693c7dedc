"""A LiteRT (TFLite) file as it is built: operators in order, constants once for all graphs.

The format is one flatbuffer: buffers of bytes, and graphs whose tensors point into them. Two graphs
that name the same constant share its bytes. Its schema comes with the package ai-edge-litert, so
that nothing is traced or converted: neither TensorFlow nor torch nor a compiler is needed.

A length that is not fixed is `None` in a shape: the file says -1, and the runtime lets the caller
choose it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from distilflax.errors import UserError

Shape = tuple[int | None, ...]

_FILE_IDENTIFIER = b"TFL3"
_VERSION = 3  # of the schema; there has been no other since 2018
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
}
# The table of an operator's options, where it has any.
_OPTIONS = {
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "CAST": "CastOptions",
    "RESHAPE": "ReshapeOptions",
    "TRANSPOSE": "TransposeOptions",
    "SLICE": "SliceOptions",
    "CUMSUM": "CumsumOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "SOFTMAX": "SoftmaxOptions",
    "GELU": "GeluOptions",
}
# What kernels are fastest to read; the format asks for it, and the Python writer does not do it.
_ALIGNMENT = 16
# Flatbuffers count in 31 bits.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Value:
    """A tensor of one graph."""

    index: int
    shape: Shape


class File:
    """The buffers, operator codes and graphs of one file."""

    def __init__(self):
        # The first buffer is empty, for tensors without constants.
        self._buffers: list[schema.BufferT] = [schema.BufferT()]
        self._named: dict[str, int] = {}
        self._codes: dict[tuple[str, int], int] = {}
        self._graphs: list[Graph] = []

    def graph(self, key: str) -> "Graph":
        """A new graph, which the runtime finds by the signature `key`."""
        self._graphs.append(Graph(self, key))
        return self._graphs[-1]

    def buffer(self, name: str, array: np.ndarray) -> int:
        """The place of a constant's bytes; once for each name."""
        if name not in self._named:
            self._named[name] = len(self._buffers)
            self._buffers.append(_aligned(array))
        return self._named[name]

    def code(self, kind: str, version: int) -> int:
        return self._codes.setdefault((kind, version), len(self._codes))

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
          UserError: more bytes than a flatbuffer can count.
        """
        total = sum(buffer.data.size for buffer in self._buffers[1:])
        if total > _LARGEST - 2**20:
            raise UserError(
                f"The model would take {total:,} bytes; a LiteRT file holds {_LARGEST:,}: export "
                "it in int8, or as another format."
            )
        model = _table(
            "Model",
            version=_VERSION,
            description="distilflax",
            operatorCodes=[_code(kind, version) for kind, version in self._codes],
            subgraphs=[graph.packed() for graph in self._graphs],
            signatureDefs=[graph.signature(i) for i, graph in enumerate(self._graphs)],
            buffers=self._buffers,
        )
        builder = flatbuffers.Builder(total + 2**20)
        builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
        path.write_bytes(builder.Output())


class Graph:
    """Collects operators. `File.graph` makes one."""

    def __init__(self, file: File, key: str):
        self._file, self._key = file, key
        self._tensors: list[schema.TensorT] = []
        self._operators: list[schema.OperatorT] = []
        self._constants: dict[str, Value] = {}
        self._inputs: dict[str, Value] = {}
        self._outputs: dict[str, Value] = {}

    def input(self, name: str, shape: Shape) -> Value:
        """An int32 tensor that the caller gives."""
        self._inputs[name] = self._tensor(f"{self._key}_{name}", shape, np.int32)
        return self._inputs[name]

    def decimal(self, value: Value) -> Value:
        """An int32 tensor as float32."""
        kinds = {"inDataType": schema.TensorType.INT32, "outDataType": schema.TensorType.FLOAT32}
        return self.op("CAST", value, shape=value.shape, **kinds)

    def output(self, name: str, value: Value) -> None:
        """Return `value` to the caller."""
        self._outputs[name] = value

    def constant(self, name: str, array: np.ndarray, scale: np.ndarray | None = None) -> Value:
        """A tensor that is stored in the file, once for each name.

        Args:
          name: of the bytes; the same one in another graph is the same bytes.
          array: float32, int32, or int8 with
          scale: one float32 for each row of `array`: array * scale is what is meant.
        """
        if name not in self._constants:
            found = self._tensor(name, array.shape, array.dtype, self._file.buffer(name, array))
            if scale is not None:
                self._tensors[found.index].quantization = _table(
                    "QuantizationParameters",
                    scale=scale.astype(np.float32),
                    zeroPoint=np.zeros(len(scale), np.int64),
                    quantizedDimension=0,
                )
            self._constants[name] = found
        return self._constants[name]

    def ints(self, *values: int) -> Value:
        """A constant vector of int32: shapes, axes."""
        return self.constant(f"ints_{'_'.join(map(str, values))}", np.array(values, np.int32))

    def number(self, value: float) -> Value:
        """A constant float32, of shape [1]."""
        return self.constant(f"number_{value!r}", np.array([value], np.float32))

    def op(
        self,
        kind: str,
        *inputs: Value,
        shape: Shape,
        dtype: type = np.float32,
        version: int = 1,
        **options: Any,
    ) -> Value:
        """One operator with one output of `shape`; `options` are the fields of its table."""
        name = _OPTIONS.get(kind)
        output = self._tensor(f"{self._key}_{kind.lower()}_{len(self._operators)}", shape, dtype)
        self._operators.append(
            _table(
                "Operator",
                opcodeIndex=self._file.code(kind, version),
                inputs=[value.index for value in inputs],
                outputs=[output.index],
                builtinOptionsType=getattr(schema.BuiltinOptions, name) if name else 0,
                builtinOptions=_table(name, **options) if name else None,
            )
        )
        return output

    def packed(self) -> schema.SubGraphT:
        return _table(
            "SubGraph",
            name=self._key,
            tensors=self._tensors,
            operators=self._operators,
            inputs=[value.index for value in self._inputs.values()],
            outputs=[value.index for value in self._outputs.values()],
        )

    def signature(self, index: int) -> schema.SignatureDefT:
        inputs, outputs = (
            [
                _table("TensorMap", name=name, tensorIndex=value.index)
                for name, value in named.items()
            ]
            for named in (self._inputs, self._outputs)
        )
        return _table(
            "SignatureDef",
            signatureKey=self._key,
            subgraphIndex=index,
            inputs=inputs,
            outputs=outputs,
        )

    def _tensor(self, name: str, shape: Shape, dtype: Any, buffer: int = 0) -> Value:
        tensor = _table(
            "Tensor",
            name=name,
            shape=[1 if size is None else size for size in shape],
            shapeSignature=[-1 if size is None else size for size in shape],
            type=_TYPES[np.dtype(dtype)],
            buffer=buffer,
            hasRank=True,
        )
        if None not in shape:
            tensor.shapeSignature = None
        self._tensors.append(tensor)
        return Value(len(self._tensors) - 1, tuple(shape))


def _code(kind: str, version: int) -> schema.OperatorCodeT:
    code = getattr(schema.BuiltinOperator, kind)
    # An older field of 8 bits, which older readers look at, ends at 127.
    older = min(code, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    return _table("OperatorCode", deprecatedBuiltinCode=older, builtinCode=code, version=version)


def _table(kind: str, **fields: Any) -> Any:
    """A table of the schema. Its classes take arguments in newer releases of the package only."""
    table = getattr(schema, f"{kind}T")()
    for name, value in fields.items():
        if not hasattr(table, name):
            raise TypeError(f"{kind} has no field {name!r}")
        setattr(table, name, value)
    return table


def _aligned(array: np.ndarray) -> "_Aligned":
    found = _Aligned()
    found.data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return found


class _Aligned(schema.BufferT):
    """A buffer whose bytes begin at a multiple of `_ALIGNMENT` in the file."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        builder.Prep(_ALIGNMENT, self.data.size)
        return super().Pack(builder)
