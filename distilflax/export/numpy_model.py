"""The whole model in numpy: what the other formats are checked against, and a way to read it.

This file needs numpy alone. `python -m experiments.export --format=numpy` puts a copy of it beside
the weights:

    model = load("a/folder")                          # weights.safetensors and settings.json
    model(input_ids, attention_mask)                  # integers [B, L]; 1 for real tokens, 0 for
                                                      # padding; a dict of float32 arrays
    python model.py "a text"                          # with the package `tokenizers` installed

Shapes in names: B batch, L length, D wide, H heads, K width of a head.
"""

import json
import sys
from pathlib import Path

import numpy as np

_TYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8}


class Model:
    """An encoder with what stands on it; `weights` are float32 arrays by path, kernels (in, out).

    `settings` has num_layers, num_heads, hidden_act, layer_norm_eps, max_positions and
      outputs: last_hidden_state, sentence_embedding, logits, start_logits and end_logits;
      pooling (mean, cls) and normalize, of a sentence vector; prompt, which goes before its text;
      max_length, of a text in tokens;
      head: masked_lm, sequence, token, answer, or "" for none; pooler: whether BERT's is below it.
    """

    def __init__(self, settings: dict, weights: dict[str, np.ndarray]):
        self.settings, self.weights = settings, weights

    def __call__(self, input_ids, attention_mask, token_type_ids=None) -> dict[str, np.ndarray]:
        real_BxL = np.asarray(attention_mask) > 0
        hidden_BxLxD = self.encode(np.asarray(input_ids), real_BxL, token_type_ids)
        found = {"last_hidden_state": hidden_BxLxD}
        if "sentence_embedding" in self.settings["outputs"]:
            found["sentence_embedding"] = self.sentence_vector(hidden_BxLxD, real_BxL)
        head = self.settings["head"]
        if head == "masked_lm":
            found["logits"] = self.masked_lm(hidden_BxLxD)
        elif head == "sequence":
            found["logits"] = self.dense("task_head/classifier", self.first(hidden_BxLxD[:, 0]))
        elif head == "token":
            found["logits"] = self.dense("task_head/classifier", hidden_BxLxD)
        elif head == "answer":
            logits_BxLx2 = self.dense("task_head/qa_outputs", hidden_BxLxD)
            found["start_logits"], found["end_logits"] = np.moveaxis(logits_BxLx2, -1, 0)
        return {name: found[name] for name in self.settings["outputs"]}

    def encode(self, input_ids, real_BxL, token_type_ids=None) -> np.ndarray:
        """Ids to the last hidden state [B, L, D]: embeddings, then layers of attention and FFN."""
        length = input_ids.shape[1]
        if length > self.settings["max_positions"]:
            raise ValueError(f"{length} tokens; there are {self.settings['max_positions']}.")
        table = "encoder/embeddings/"
        hidden = self.weights[table + "word"][input_ids] + self.weights[table + "position"][:length]
        if table + "token_type" in self.weights:
            types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            hidden = hidden + self.weights[table + "token_type"][types]
        hidden = self.norm(table + "norm", hidden)
        for i in range(self.settings["num_layers"]):
            layer = f"encoder/layers_{i}/"
            attended = self.attention(layer + "attention/", hidden, real_BxL)
            hidden = self.norm(layer + "attention_norm", hidden + attended)
            inner = self.activation(self.dense(layer + "ffn/up", hidden))
            hidden = self.norm(layer + "ffn_norm", hidden + self.dense(layer + "ffn/down", inner))
        return hidden

    def attention(self, path: str, hidden_BxLxD, real_BxL) -> np.ndarray:
        """softmax(q k^T / sqrt(K)) v over the real tokens, and its output projection."""
        query, key, value = (
            self.heads(self.dense(path + name, hidden_BxLxD)) for name in ("query", "key", "value")
        )
        scores_BxHxLxL = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(query.shape[-1]))
        # The lowest finite number and not -inf: a row of nothing but padding would become NaN.
        lowest = np.finfo(np.float32).min
        scores_BxHxLxL = np.where(real_BxL[:, None, None, :], scores_BxHxLxL, lowest)
        context_BxHxLxK = softmax(scores_BxHxLxL) @ value
        return self.dense(
            path + "output", context_BxHxLxK.swapaxes(1, 2).reshape(hidden_BxLxD.shape)
        )

    def heads(self, x_BxLxD) -> np.ndarray:
        batch, length, width = x_BxLxD.shape
        heads = self.settings["num_heads"]
        return x_BxLxD.reshape(batch, length, heads, width // heads).swapaxes(1, 2)

    def sentence_vector(self, hidden_BxLxD, real_BxL) -> np.ndarray:
        """The mean over real tokens, or the first one; of unit length where the model says so."""
        if self.settings["pooling"] == "cls":
            vector_BxD = hidden_BxLxD[:, 0]
        else:
            total_BxD = np.where(real_BxL[..., None], hidden_BxLxD, np.float32(0)).sum(axis=1)
            vector_BxD = total_BxD / np.maximum(real_BxL.sum(axis=1), 1)[:, None].astype(np.float32)
        if self.settings["normalize"]:
            square = np.square(vector_BxD).sum(axis=-1, keepdims=True)
            vector_BxD = vector_BxD / np.sqrt(np.maximum(square, np.float32(1e-24)))
        return vector_BxD

    def masked_lm(self, hidden) -> np.ndarray:
        """Logits over the words; the decoder is the word embeddings unless the head has its own."""
        active = self.activation(self.dense("mlm_head/transform", hidden))
        words = self.weights.get("mlm_head/decoder", self.weights["encoder/embeddings/word"])
        return self.norm("mlm_head/norm", active) @ words.T + self.weights["mlm_head/bias"]

    def first(self, hidden_BxD) -> np.ndarray:
        """What a sequence head reads of the first token: BERT's pooler, or DistilBERT's layer."""
        if self.settings["pooler"]:
            return np.tanh(self.dense("encoder/pooler", hidden_BxD))
        return np.maximum(self.dense("task_head/pre_classifier", hidden_BxD), 0)

    def dense(self, path: str, x) -> np.ndarray:
        return x @ self.weights[path + "/kernel"] + self.weights[path + "/bias"]

    def norm(self, path: str, x) -> np.ndarray:
        """LayerNorm with its statistics in two passes: E[x^2] - E[x]^2 loses digits."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt(variance + np.float32(self.settings["layer_norm_eps"]))
        return normed * self.weights[path + "/scale"] + self.weights[path + "/bias"]

    def activation(self, x) -> np.ndarray:
        kind = self.settings["hidden_act"]
        if kind == "relu":
            return np.maximum(x, 0)
        if kind == "gelu_new":
            inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
            return np.float32(0.5) * x * (1 + np.tanh(inner))
        return np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5))))


def softmax(x) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def erf(x) -> np.ndarray:
    """To 1.5e-7, a float32's own precision (Abramowitz and Stegun 1964, 7.1.26)."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    series = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    return np.sign(x) * (1 - series * np.exp(-np.square(x)))


def load(folder) -> Model:
    settings = json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8"))
    return Model(settings, read_safetensors(Path(folder) / "weights.safetensors"))


def read_safetensors(path) -> dict[str, np.ndarray]:
    """8 bytes of length, that many bytes of JSON, then the tensors end to end."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + at for at in entry["data_offsets"])
            flat = np.frombuffer(content[begin:end], _TYPES[entry["dtype"]])
            found[name] = flat.reshape(entry["shape"])
    return found


if __name__ == "__main__":
    from tokenizers import Tokenizer

    here = Path(__file__).parent
    model = load(here)
    text = model.settings["prompt"] + " ".join(sys.argv[1:])
    words = Tokenizer.from_file(str(here / "tokenizer.json"))
    words.enable_truncation(model.settings["max_length"])
    row = words.encode(text)
    columns = (np.array([column]) for column in (row.ids, row.attention_mask, row.type_ids))
    for name, value in model(*columns).items():
        print(name, value.shape, value)
