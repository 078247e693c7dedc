"""The model as an ONNX graph, built operator by operator from its weights.

Two variants of the same arithmetic. The plain one uses standard operators that every runtime has.
The fused one puts ONNX Runtime's own `MultiHeadAttention` in the place of nine of them, and runs
nowhere else.

Batch and length are dynamic. Shapes: B batch, L length, D wide, H heads, K width of a head.
"""

from typing import Any

import numpy as np
import onnx

from distilflax.export.onnx_graph import DEFAULT_OPSET, MICROSOFT, Graph
from distilflax.export.onnx_weights import Storage
from distilflax.export.pruning import without_silent_heads

_LOWEST = float(np.finfo(np.float32).min)

Weights = dict[str, np.ndarray]


def build(
    settings: dict[str, Any],
    weights: Weights,
    storage: Storage,
    *,
    with_types: bool,
    fused: bool = False,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """The graph of the model that `numpy_model.Model(settings, weights)` is.

    Inputs: input_ids, attention_mask and, with `with_types`, token_type_ids: int64 [B, L].
    Outputs: float32, by the names and in the order of `settings["outputs"]`.

    Raises:
      UserError: an opset that is not known here, or a model too large for one file.
    """
    builder = _Builder(settings, weights, storage, Graph(opset), with_types, fused)
    found = builder.outputs()
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * with_types
    return builder.graph.model(
        {name: ("batch", "length") for name in names},
        {name: found[name] for name in settings["outputs"]},
    )


class _Builder:
    def __init__(self, settings, weights, storage, graph, with_types, fused):
        self.settings, self.storage, self.graph = settings, storage, graph
        self.with_types, self.fused = with_types, fused
        self.width = weights["encoder/embeddings/word"].shape[1]
        self.head_size = self.width // settings["num_heads"]
        self.weights = without_silent_heads(weights, self.head_size)

    def outputs(self) -> dict[str, tuple[str, tuple]]:
        """{name: (value, shape)} of every output that the settings name."""
        g, s = self.graph, self.settings
        rows = ("batch", "length")  # of the shapes, as the file names them
        # A head that reads the first token alone needs nothing else of the last layer.
        hidden = self.encode(first_only=s["head"] == "sequence")
        found = {"last_hidden_state": (hidden, (*rows, self.width))}
        if "sentence_embedding" in s["outputs"]:
            found["sentence_embedding"] = (self.vector(hidden), ("batch", self.width))
        if s["head"] == "masked_lm":
            found["logits"] = (self.masked_lm(hidden), (*rows, self.words.shape[0]))
        elif s["head"] == "sequence":
            first = g.op("Squeeze", hidden, g.ints(1))
            if s["pooler"]:
                read = g.op("Tanh", self.dense("encoder/pooler", first))
            else:
                read = g.op("Relu", self.dense("task_head/pre_classifier", first))
            logits = self.dense("task_head/classifier", read)
            found["logits"] = (logits, ("batch", self.labels))
        elif s["head"] == "token":
            found["logits"] = (self.dense("task_head/classifier", hidden), (*rows, self.labels))
        elif s["head"] == "answer":
            logits = self.dense("task_head/qa_outputs", hidden)
            both = g.ops("Split", logits, g.ints(1, 1), outputs=2, axis=-1)
            start, end = (g.op("Squeeze", one, g.ints(-1)) for one in both)
            found |= {"start_logits": (start, rows), "end_logits": (end, rows)}
        return found

    @property
    def words(self) -> np.ndarray:
        return self.weights.get("mlm_head/decoder", self.weights["encoder/embeddings/word"])

    @property
    def labels(self) -> int:
        return len(self.weights["task_head/classifier/bias"])

    def encode(self, first_only: bool) -> str:
        hidden, mask = self.embed(), self.mask()
        layers = self.settings["num_layers"]
        for i in range(layers):
            hidden = self.layer(
                f"encoder/layers_{i}/", hidden, mask, first_only and i == layers - 1
            )
        return hidden

    def embed(self) -> str:
        g, table = self.graph, "encoder/embeddings/"
        position = self.weights[table + "position"]
        types = self.weights.get(table + "token_type")
        if types is not None and not self.with_types:
            position = position + types[0]  # the only type: the same for every token
        word = self.storage.rows(g, "input_ids", table + "word", self.weights[table + "word"])
        length = g.op("Slice", g.op("Shape", "input_ids"), g.ints(1), g.ints(2))
        places = self.storage.leading(g, length, table + "position", position)
        hidden = g.op("Add", word, places)
        if self.with_types:
            rows = g.op("Gather", g.constant(table + "token_type", types), "token_type_ids")
            hidden = g.op("Add", hidden, rows)
        return self.norm(table + "norm", hidden)

    def mask(self) -> str:
        """What attention is told of the padding: int32 [B, L], or what is added [B, 1, 1, L]."""
        g = self.graph
        if self.fused:
            return g.op("Cast", "attention_mask", to=onnx.TensorProto.INT32)
        real = g.op("Cast", "attention_mask", to=onnx.TensorProto.BOOL)
        added = g.op("Where", real, g.number(0.0), g.number(_LOWEST))
        return g.op("Unsqueeze", added, g.ints(1, 2))

    def layer(self, path: str, hidden: str, mask: str, first_only: bool) -> str:
        g = self.graph
        attended = self.attention(path + "attention/", hidden, mask, first_only)
        kept = self.first(hidden) if first_only else hidden
        hidden = self.norm(path + "attention_norm", g.op("Add", kept, attended))
        inner = self.activation(self.dense(path + "ffn/up", hidden))
        fed = self.dense(path + "ffn/down", inner)
        return self.norm(path + "ffn_norm", g.op("Add", hidden, fed))

    def first(self, x: str) -> str:
        """[B, L, D] to [B, 1, D]."""
        g = self.graph
        return g.op("Slice", x, g.ints(0), g.ints(1), g.ints(1))

    def attention(self, path: str, hidden: str, mask: str, first_only: bool) -> str:
        """softmax(q k^T / sqrt(K)) v and its projection; for the first token alone if asked."""
        g = self.graph
        inner = len(self.weights[f"{path}query/bias"])  # less than the width where heads are silent
        asking = self.first(hidden) if first_only else hidden
        key, value = self.dense(path + "key", hidden), self.dense(path + "value", hidden)
        if self.fused:
            query = self.dense(path + "query", asking)
            given = (query, key, value, "", mask)
            context = g.op(
                "MultiHeadAttention", *given, domain=MICROSOFT, num_heads=inner // self.head_size
            )
            return self.dense(path + "output", context)
        # 1 / sqrt(K) belongs to the queries, and so to what makes them.
        kernel, bias = self.pair(path + "query")
        scale = np.float32(self.head_size**-0.5)
        query = self.storage.dense(g, asking, path + "query", kernel * scale, bias * scale)
        query = self.split(query, [0, 2, 1, 3])
        key, value = self.split(key, [0, 2, 3, 1]), self.split(value, [0, 2, 1, 3])
        scores = g.op("Add", g.op("MatMul", query, key), mask)
        context = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        merged = g.op("Transpose", context, perm=[0, 2, 1, 3])
        return self.dense(path + "output", g.op("Reshape", merged, g.ints(0, 0, inner)))

    def split(self, x: str, order: list[int]) -> str:
        """[B, L, H K] as [B, L, H, K] with its axes in another order."""
        g = self.graph
        apart = g.op("Reshape", x, g.ints(0, 0, -1, self.head_size))
        return g.op("Transpose", apart, perm=order)

    def dense(self, path: str, x: str) -> str:
        return self.storage.dense(self.graph, x, path, *self.pair(path))

    def pair(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        return self.weights[f"{path}/kernel"], self.weights[f"{path}/bias"]

    def norm(self, path: str, x: str) -> str:
        g = self.graph
        scale = g.constant(path + "/scale", self.weights[path + "/scale"])
        bias = g.constant(path + "/bias", self.weights[path + "/bias"])
        epsilon = self.settings["layer_norm_eps"]
        return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def activation(self, x: str) -> str:
        """BERT's GELU is the exact one, x (1 + erf(x / sqrt 2)) / 2; runtimes know the pattern."""
        g, kind = self.graph, self.settings["hidden_act"]
        if kind == "relu":
            return g.op("Relu", x)
        if kind == "gelu":
            inner = g.op("Erf", g.op("Div", x, g.number(2**0.5)))
        else:
            cube = g.op("Mul", g.op("Pow", x, g.number(3.0)), g.number(0.044715))
            inner = g.op("Mul", g.op("Add", x, cube), g.number((2 / np.pi) ** 0.5))
            inner = g.op("Tanh", inner)
        double = g.op("Mul", x, g.op("Add", inner, g.number(1.0)))
        return g.op("Mul", double, g.number(0.5))

    def vector(self, hidden: str) -> str:
        """One vector a sequence: the mean over real tokens or the first, of unit length or not."""
        g = self.graph
        if self.settings["pooling"] == "cls":
            vector = g.op("Squeeze", self.first(hidden), g.ints(1))
        else:
            ones = g.op("Cast", "attention_mask", to=onnx.TensorProto.BOOL)
            real = g.op("Unsqueeze", ones, g.ints(-1))
            # Where and not a product with 0: a NaN at padding would come through that.
            kept = g.op("Where", real, hidden, g.number(0.0))
            total = g.op("ReduceSum", kept, g.ints(1), keepdims=0)
            counted = g.op("Cast", real, to=onnx.TensorProto.FLOAT)
            count = g.op("ReduceSum", counted, g.ints(1), keepdims=0)
            vector = g.op("Div", total, g.op("Max", count, g.number(1.0)))
        if not self.settings["normalize"]:
            return vector
        square = g.op("ReduceSum", g.op("Mul", vector, vector), g.ints(-1), keepdims=1)
        return g.op("Div", vector, g.op("Sqrt", g.op("Max", square, g.number(1e-24))))

    def masked_lm(self, hidden: str) -> str:
        active = self.activation(self.dense("mlm_head/transform", hidden))
        normed = self.norm("mlm_head/norm", active)
        bias = self.weights["mlm_head/bias"]
        own = "mlm_head/decoder" if "mlm_head/decoder" in self.weights else None
        name = own or "encoder/embeddings/word"
        return self.storage.words(self.graph, normed, name, self.words, bias)
