"""The model as a LiteRT graph, built operator by operator from its weights.

One sequence at a time, as an app has them, so that the batch drops out of the arithmetic. Shapes: L
length, D wide, H heads, K width of a head. L is a number, or None: then the caller sets it.

XNNPACK, which runs the graph on CPUs, takes everything from the first addition of embeddings on in
one piece: its fully-connected kernels want two dimensions, weights [out, in] and the bias in them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from distilflax.export.litert_graph import File, Graph, Value
from distilflax.export.rounding import quantized

_HIGHEST = float(np.finfo(np.float32).max)
_INT8 = 127
# What a runtime has to know of an operator, where it is more than the first version: weights of
# int8 with one scale for each row.
_DENSE_INT8, _ROWS_INT8 = 12, 4
# The decision itself: a few thousand numbers, which stay as they are.
_KEPT = {"task_head/classifier/kernel", "task_head/qa_outputs/kernel"}

Weights = dict[str, np.ndarray]


def build(
    settings: dict[str, Any],
    weights: Weights,
    lengths: Sequence[int | None],
    *,
    with_types: bool,
    int8: bool = False,
) -> File:
    """The file of the model that `numpy_model.Model(settings, weights)` is.

    One graph for each of `lengths`, under the signature of `key`; they share their weights.
    Inputs: input_ids, attention_mask and, with `with_types`, token_type_ids: int32 [1, L].
    Outputs: float32, by the names and in the order of `settings["outputs"]`.

    Args:
      int8: weights and embeddings of 8 bits, one scale for each output or row; activations of 8
        bits, one scale for each token, measured as they come.
    """
    file = File()
    stored = _Stored(weights, int8)
    for length in lengths:
        _Builder(settings, stored, file.graph(key(length)), length, with_types).outputs()
    return file


def key(length: int | None) -> str:
    """The name of a graph's signature."""
    return "any_length" if length is None else f"length_{length}"


class _Stored:
    """The weights as the file holds them, each made once."""

    def __init__(self, weights: Weights, int8: bool):
        self.weights, self.int8 = weights, int8
        self._made: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}

    def matrix(self, graph: Graph, name: str, array: np.ndarray) -> Value:
        """float32, or int8 with one scale for each row."""
        if name not in self._made:
            small = self.int8 and name not in _KEPT
            self._made[name] = quantized(array, _INT8, axis=1) if small else (array, None)
        return graph.constant(name, *self._made[name])

    def is_int8(self, name: str) -> bool:
        return self._made[name][1] is not None


class _Builder:
    def __init__(self, settings, stored, graph, length, with_types):
        self.settings, self.stored, self.graph = settings, stored, graph
        self.weights, self.length = stored.weights, length
        names = ["input_ids", "attention_mask"] + ["token_type_ids"] * with_types
        self.inputs = {name: graph.input(name, (1, length)) for name in names}
        self.width = self.weights["encoder/embeddings/word"].shape[1]

    def outputs(self) -> None:
        g, s, length = self.graph, self.settings, self.length
        real = g.decimal(self.inputs["attention_mask"])
        # A head that reads the first token alone needs nothing else of the last layer.
        hidden = self.encode(real, first_only=s["head"] == "sequence")
        found = {"last_hidden_state": self.shaped(hidden, (1, length, self.width))}
        if "sentence_embedding" in s["outputs"]:
            found["sentence_embedding"] = self.vector(hidden, real)
        if s["head"] == "masked_lm":
            logits = self.masked_lm(hidden)
            found["logits"] = self.shaped(logits, (1, length, logits.shape[-1]))
        elif s["head"] == "sequence":
            if s["pooler"]:
                read = self.unary("TANH", self.dense("encoder/pooler", hidden))
            else:
                read = self.unary("RELU", self.dense("task_head/pre_classifier", hidden))
            found["logits"] = self.dense("task_head/classifier", read)
        elif s["head"] == "token":
            logits = self.dense("task_head/classifier", hidden)
            found["logits"] = self.shaped(logits, (1, length, logits.shape[-1]))
        elif s["head"] == "answer":
            logits = self.dense("task_head/qa_outputs", hidden)
            for i, name in enumerate(("start_logits", "end_logits")):
                column = self.cut(logits, (0, i), (length, 1))
                found[name] = self.shaped(column, (1, length))
        for name in s["outputs"]:
            g.output(name, found[name])

    def encode(self, real: Value, first_only: bool) -> Value:
        """Ids to the last hidden state [L, D], or [1, D] of the first token."""
        g, hidden = self.graph, self.embed()
        # 0 for real tokens, and the lowest finite number for padding.
        added = self.shaped(real, (1, 1, 1, self.length))
        added = g.op("SUB", added, g.number(1.0), shape=added.shape)
        added = g.op("MUL", added, g.number(_HIGHEST), shape=added.shape)
        layers = self.settings["num_layers"]
        for i in range(layers):
            hidden = self.layer(
                f"encoder/layers_{i}/", hidden, added, first_only and i == layers - 1
            )
        return hidden

    def embed(self) -> Value:
        table = "encoder/embeddings/"
        ids = self.shaped(self.inputs["input_ids"], (self.length,), np.int32)
        position = self.weights[table + "position"]
        types = self.weights.get(table + "token_type")
        if types is not None and "token_type_ids" not in self.inputs:
            position = position + types[0]  # the only type: the same for every token
        word = self.rows(table + "word", self.weights[table + "word"], ids)
        hidden = self.plus(word, self.rows(table + "position", position, self.places(ids)))
        if "token_type_ids" in self.inputs:
            kinds = self.shaped(self.inputs["token_type_ids"], (self.length,), np.int32)
            hidden = self.plus(hidden, self.rows(table + "token_type", types, kinds))
        return self.norm(table + "norm", hidden)

    def places(self, ids: Value) -> Value:
        """0, 1, 2, ... as many as there are ids."""
        g = self.graph
        if self.length is not None:
            return g.constant(f"places_{self.length}", np.arange(self.length, dtype=np.int32))
        # A length that is read off a shape would make every tensor after it unknown to XNNPACK.
        zeros = g.op("MUL", ids, g.ints(0), shape=ids.shape, dtype=np.int32)
        ones = g.op("ADD", zeros, g.ints(1), shape=ids.shape, dtype=np.int32)
        axis = g.constant("axis_0", np.array(0, np.int32))
        more = {"shape": ids.shape, "dtype": np.int32}
        return g.op("CUMSUM", ones, axis, exclusive=True, reverse=False, **more)

    def layer(self, path: str, hidden: Value, added: Value, first_only: bool) -> Value:
        attended = self.attention(path + "attention/", hidden, added, first_only)
        kept = self.first(hidden) if first_only else hidden
        hidden = self.norm(path + "attention_norm", self.plus(kept, attended))
        inner = self.activation(self.dense(path + "ffn/up", hidden))
        return self.norm(path + "ffn_norm", self.plus(hidden, self.dense(path + "ffn/down", inner)))

    def attention(self, path: str, hidden: Value, added: Value, first_only: bool) -> Value:
        """softmax(q k^T / sqrt(K)) v and its projection; for the first token alone if asked."""
        g, heads, length = self.graph, self.settings["num_heads"], self.length
        each = self.width // heads
        asking = self.first(hidden) if first_only else hidden
        asked = asking.shape[0]
        # 1 / sqrt(K) belongs to the queries, and so to what makes them.
        kernel, bias = self.pair(path + "query")
        scale = np.float32(each**-0.5)
        query = self.heads(self.product(path + "query", asking, kernel * scale, bias * scale))
        key = self.heads(self.dense(path + "key", hidden))
        value = self.heads(self.dense(path + "value", hidden))
        scores = (1, heads, asked, length)
        found = g.op("BATCH_MATMUL", query, key, shape=scores, adjX=False, adjY=True)
        found = g.op("ADD", found, added, shape=scores)
        found = g.op("SOFTMAX", found, shape=scores, beta=1.0)
        context = (1, heads, asked, each)
        found = g.op("BATCH_MATMUL", found, value, shape=context, adjX=False, adjY=False)
        merged = g.op("TRANSPOSE", found, g.ints(0, 2, 1, 3), shape=(1, asked, heads, each))
        return self.dense(path + "output", self.shaped(merged, (asked, self.width)))

    def heads(self, x: Value) -> Value:
        """[L, D] as [1, H, L, K]."""
        g, heads = self.graph, self.settings["num_heads"]
        each = self.width // heads
        apart = self.shaped(x, (1, x.shape[0], heads, each))
        return g.op("TRANSPOSE", apart, g.ints(0, 2, 1, 3), shape=(1, heads, x.shape[0], each))

    def dense(self, path: str, x: Value) -> Value:
        return self.product(path, x, *self.pair(path))

    def product(self, path: str, x: Value, kernel: np.ndarray, bias: np.ndarray) -> Value:
        """x @ kernel + bias, for x of two dimensions."""
        return self.connected(x, f"{path}/kernel", kernel.T, f"{path}/bias", bias)

    def connected(
        self, x: Value, name: str, matrix: np.ndarray, bias_name: str, bias: np.ndarray
    ) -> Value:
        """x @ matrix.T + bias"""
        stored = self.stored.matrix(self.graph, name, matrix)
        small = self.stored.is_int8(name)
        return self.graph.op(
            "FULLY_CONNECTED",
            x,
            stored,
            self.graph.constant(bias_name, bias),
            shape=(x.shape[0], len(matrix)),
            version=_DENSE_INT8 if small else 1,
            asymmetricQuantizeInputs=small,
        )

    def rows(self, name: str, table: np.ndarray, ids: Value) -> Value:
        """table[ids]"""
        stored = self.stored.matrix(self.graph, name, table)
        version = _ROWS_INT8 if self.stored.is_int8(name) else 1
        shape = (*ids.shape, table.shape[1])
        return self.graph.op("EMBEDDING_LOOKUP", ids, stored, shape=shape, version=version)

    def pair(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        return self.weights[f"{path}/kernel"], self.weights[f"{path}/bias"]

    def norm(self, path: str, x: Value) -> Value:
        g = self.graph
        mean = g.op("MEAN", x, g.ints(1), shape=(x.shape[0], 1), keepDims=True)
        centred = g.op("SUB", x, mean, shape=x.shape)
        square = g.op("MUL", centred, centred, shape=x.shape)
        variance = g.op("MEAN", square, g.ints(1), shape=(x.shape[0], 1), keepDims=True)
        variance = self.plus(variance, g.number(self.settings["layer_norm_eps"]))
        normed = g.op("MUL", centred, self.unary("RSQRT", variance), shape=x.shape)
        scale = g.constant(path + "/scale", self.weights[path + "/scale"])
        normed = g.op("MUL", normed, scale, shape=x.shape)
        return self.plus(normed, g.constant(path + "/bias", self.weights[path + "/bias"]))

    def activation(self, x: Value) -> Value:
        kind = self.settings["hidden_act"]
        if kind == "relu":
            return self.unary("RELU", x)
        return self.graph.op("GELU", x, shape=x.shape, approximate=kind == "gelu_new")

    def vector(self, hidden: Value, real: Value) -> Value:
        """One vector: the mean over real tokens or the first, of unit length or not."""
        g, width = self.graph, (1, self.width)
        if self.settings["pooling"] == "cls":
            vector = self.first(hidden)
        else:
            column = self.shaped(real, (self.length, 1))
            kept = g.op("MUL", hidden, column, shape=hidden.shape)
            total = g.op("SUM", kept, g.ints(0), shape=width, keepDims=True)
            count = g.op("SUM", column, g.ints(0), shape=(1, 1), keepDims=True)
            count = g.op("MAXIMUM", count, g.number(1.0), shape=(1, 1))
            vector = g.op("DIV", total, count, shape=width)
        if not self.settings["normalize"]:
            return vector
        square = g.op("MUL", vector, vector, shape=width)
        square = g.op("SUM", square, g.ints(1), shape=(1, 1), keepDims=True)
        square = g.op("MAXIMUM", square, g.number(1e-24), shape=(1, 1))
        return g.op("MUL", vector, self.unary("RSQRT", square), shape=width)

    def masked_lm(self, hidden: Value) -> Value:
        active = self.activation(self.dense("mlm_head/transform", hidden))
        normed = self.norm("mlm_head/norm", active)
        own = "mlm_head/decoder" if "mlm_head/decoder" in self.weights else None
        name = own or "encoder/embeddings/word"
        bias = "mlm_head/bias"
        return self.connected(normed, name, self.weights[name], bias, self.weights[bias])

    def first(self, x: Value) -> Value:
        """[L, D] to [1, D]."""
        return self.cut(x, (0, 0), (1, self.width))

    def cut(self, x: Value, begin: tuple[int, int], shape: tuple[int | None, int]) -> Value:
        g = self.graph
        size = g.ints(*(-1 if size is None else size for size in shape))
        return g.op("SLICE", x, g.ints(*begin), size, shape=shape)

    def plus(self, x: Value, y: Value) -> Value:
        return self.graph.op("ADD", x, y, shape=x.shape)

    def unary(self, kind: str, x: Value) -> Value:
        return self.graph.op(kind, x, shape=x.shape)

    def shaped(self, x: Value, shape: tuple, dtype: type = np.float32) -> Value:
        """The same numbers in another shape; at most one size may be unknown."""
        sizes = [-1 if size is None else size for size in shape]
        more = {"shape": shape, "dtype": dtype, "newShape": sizes}
        return self.graph.op("RESHAPE", x, self.graph.ints(*sizes), **more)
