"""A graph of ONNX operators as it is built: nodes in order, constants by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from distilflax.errors import UserError

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
# The first opset that has LayerNormalization, and so what most runtimes know.
DEFAULT_OPSET = 17
OPSETS = range(17, 24)
# Protocol buffers end there; larger models would need their weights in a second file.
_LARGEST = 2**31 - 1


class Graph:
    """Collects nodes and constants. Every value is called by its name, a string."""

    def __init__(self, opset: int = DEFAULT_OPSET):
        if opset not in OPSETS:
            raise UserError(
                f"--opset is {opset}; the graph can be written for {OPSETS[0]} to {OPSETS[-1]}."
            )
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._domains: set[str] = set()
        self._known: dict[tuple, list[str]] = {}

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """One node with one output; returns the output's name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """One node with several outputs. An absent optional input is "".

        Asked for once more with the same inputs, it is the node that is there already.
        """
        key = (kind, domain, inputs, repr(sorted(attributes.items())))
        if key in self._known:
            return self._known[key]
        name = f"{kind}_{len(self._nodes)}"
        found = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(
            helper.make_node(kind, list(inputs), found, name=name, domain=domain, **attributes)
        )
        self._domains.add(domain)
        self._known[key] = found
        return found

    def constant(self, name: str, array: np.ndarray) -> str:
        """A tensor that is stored in the file, once for each name."""
        if name not in self._constants:
            array = np.ascontiguousarray(array)
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of int64: shapes, axes."""
        return self.constant(f"ints_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(f"number_{value!r}", np.array(value, np.float32))

    def model(
        self,
        inputs: Mapping[str, tuple[str | int, ...]],
        outputs: Mapping[str, tuple[str, tuple[str | int, ...]]],
    ) -> onnx.ModelProto:
        """The whole model.

        Args:
          inputs: int64 tensors by name: their shapes, letters for what is dynamic.
          outputs: float32 tensors by name: the value that each is, and its shape.

        Raises:
          UserError: a model too large for one file.
        """
        for name, (value, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        graph = helper.make_graph(
            self._nodes,
            "distilflax",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, shape)
                for name, shape in inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, (_, shape) in outputs.items()
            ],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(MICROSOFT, 1)] * (MICROSOFT in self._domains)
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            producer_name="distilflax",
            # The oldest that has this opset: a newer one than a runtime knows makes it refuse.
            ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
        )
        if model.ByteSize() > _LARGEST:
            raise UserError(
                f"The model would take {model.ByteSize():,} bytes; an ONNX file holds "
                f"{_LARGEST:,}: export it in int8, or as another format."
            )
        return model
