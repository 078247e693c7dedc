"""Weights alone in 4 or 8 bits, one scale for each block of a column; activations stay float32.

The products are ONNX Runtime's own MatMulNBits, so these files run nowhere else. They are small
and near to the model; how fast they are beside float32 is up to the processor and the shape.
"""

import numpy as np
from jaxtyping import Float, UInt8

from distilflax.export.onnx_graph import MICROSOFT, Graph
from distilflax.export.onnx_weights import Int8Weights, as_float

# Numbers that share a scale: fewer are nearer to the weights, and a scale takes 32 bits itself.
_BLOCK = {4: 32, 8: 128}
# A range that cuts off a block's greatest number a little rounds all others more finely.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
_COMPUTE_FLOAT32 = 1  # MatMulNBits' accuracy_level; 4 would round the activations to int8


class BlockWeights(Int8Weights):
    """Kernels of 4 or 8 bits in blocks; tables of 8 bits with one scale a row."""

    def __init__(self, bits: int):
        super().__init__(largest=127, largest_row=127)
        self._bits = bits

    def dense(self, graph: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        block = _BLOCK[self._bits]
        numbers, scale = blocks(kernel, self._bits, block)
        return graph.op(
            "MatMulNBits",
            x,
            graph.constant(f"{name}/kernel", packed(numbers, self._bits)),
            graph.constant(f"{name}/kernel_scale", scale),
            "",  # zero points: the middle of the range
            "",
            graph.constant(f"{name}/bias", bias),
            domain=MICROSOFT,
            K=kernel.shape[0],
            N=kernel.shape[1],
            bits=self._bits,
            block_size=block,
            accuracy_level=_COMPUTE_FLOAT32,
        )

    def words(self, graph: Graph, x: str, name: str, table: np.ndarray, bias: np.ndarray) -> str:
        # The table is small in the file; a runtime makes it float32 when it loads it.
        weight, scale = self._table(graph, name, table)
        turned = graph.op("Transpose", as_float(graph, weight), perm=[1, 0])
        product = graph.op("Mul", graph.op("MatMul", x, turned), scale)
        return graph.op("Add", product, graph.constant(f"{name}_bias", bias))


def blocks(
    kernel: Float[np.ndarray, "K N"], bits: int, block: int
) -> tuple[UInt8[np.ndarray, "N blocks block"], Float[np.ndarray, "N blocks"]]:
    """Whole numbers from 0 to 2**bits - 1 and scales: kernel.T ~ (numbers - 2**(bits - 1)) * scale.

    The last block is filled up with zeros. The middle is no zero point but the range's: there is
    one number more below it than above, and the scale's sign gives it to the side that reaches
    farther. Of a few ranges each block takes the one with the least squared error.
    """
    middle, (depth, width) = 2 ** (bits - 1), kernel.shape
    columns = np.zeros((width, -(-depth // block) * block), np.float32)
    columns[:, :depth] = kernel.T
    columns = columns.reshape(width, -1, block)
    place = np.abs(columns).argmax(axis=-1, keepdims=True)
    farthest = np.take_along_axis(columns, place, axis=-1)
    best, least = None, None
    for share in _SHARES:
        scale = np.where(farthest == 0, 1.0, farthest * share / -middle).astype(np.float32)
        numbers = np.clip(np.rint(columns / scale), -middle, middle - 1)
        error = np.square(numbers * scale - columns).sum(axis=-1, keepdims=True)
        if best is None:
            best, least = (numbers, scale), error
        else:
            nearer = error < least
            best = tuple(
                np.where(nearer, a, b) for a, b in zip((numbers, scale), best, strict=True)
            )
            least = np.minimum(error, least)
    numbers, scale = best
    return (numbers + middle).astype(np.uint8), scale[..., 0]


def packed(
    numbers: UInt8[np.ndarray, "N blocks block"], bits: int
) -> UInt8[np.ndarray, "N blocks bytes"]:
    """Two numbers of 4 bits in a byte, the first in the lower half; those of 8 bits as they are."""
    return numbers if bits == 8 else numbers[..., 0::2] | (numbers[..., 1::2] << 4)
