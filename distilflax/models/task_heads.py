"""Heads that put an encoder to use, as transformers has them for BERT and for DistilBERT.

sequence: one row of logits a text. BERT: its pooler, dropout, `classifier`. DistilBERT, which has
          no pooler: `pre_classifier`, ReLU, dropout, `classifier`, from the first token.
token:    one row of logits a token: dropout, `classifier`.
answer:   the logits of a span's first and last token: `qa_outputs`.
vector:   no layer at all: the text's pooled vector, what retrieval compares.

The parameters are {"task_head": {"classifier": {"kernel", "bias"}, ...}} beside the encoder's.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from distilflax.errors import UserError, choose_from
from distilflax.models.dropout import dropped
from distilflax.models.encoder import TransformerEncoder
from distilflax.models.heads import POOLING, normalize
from distilflax.models.product import product
from distilflax.settings import Compute, Encoder

KINDS = ("sequence", "token", "answer", "vector")
PROBLEMS = ("single", "multi", "regression")
OUTPUT_ACTIVATIONS = ("", "identity", "sigmoid")


@dataclass(frozen=True)
class TaskHead:
    """One head: its kind, the names of its outputs, and the dropout before its last layer.

    `problem` is how a sequence head is read: one label of many, any number of them, or a number.
    `activation` is what a number goes through, where sentence-transformers is told so: of `sigmoid`
    the logit is not the number, but what it is made of. An answer head has no labels of its own,
    and neither has a vector, which is made by `pooling` and, with `normalize`, of unit length.
    """

    kind: str
    labels: tuple[str, ...] = ()
    problem: str = "single"
    dropout: float = 0.1
    pooling: str = "mean"
    normalize: bool = True
    activation: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"{self.kind!r} is no kind of head; {choose_from(self.kind, KINDS)}")
        if self.problem not in PROBLEMS:
            name = self.problem
            raise UserError(f"{name!r} is no kind of problem; {choose_from(name, PROBLEMS)}")
        if self.pooling not in POOLING:
            raise UserError(f"pooling is {self.pooling!r}; {choose_from(self.pooling, POOLING)}")
        if self.activation not in OUTPUT_ACTIVATIONS:
            name = self.activation
            raise UserError(f"{name!r} is no activation; {choose_from(name, OUTPUT_ACTIVATIONS)}")
        if self.kind in ("sequence", "token") and not self.labels:
            raise UserError(f"A {self.kind} head needs at least one label; there is none.")

    @property
    def outputs(self) -> int:
        """Logits a row; those of a vector are as many as the encoder is wide."""
        return 2 if self.kind == "answer" else len(self.labels)

    def first_only(self, encoder: Encoder) -> bool:
        """Whether the last layer is computed of the first token of each row alone, as no other is
        read. Of vectors as an int8 file makes them it is not: there all tokens share a scale."""
        of_first = self.kind == "vector" and self.pooling == "cls" and encoder.int8_range == "none"
        return self.kind == "sequence" or of_first


def head_shapes(head: TaskHead, encoder: Encoder) -> dict[str, tuple[int, int]]:
    """(in, out) of each dense layer of the head, in the order in which they run."""
    width = encoder.hidden_size
    if head.kind == "vector":
        return {}
    if head.kind == "answer":
        return {"qa_outputs": (width, 2)}
    before = {"pre_classifier": (width, width)}
    projected = head.kind == "sequence" and not encoder.pooler
    return (before if projected else {}) | {"classifier": (width, head.outputs)}


def init_head(head: TaskHead, encoder: Encoder, key: PRNGKeyArray, prior: float = 0.0) -> dict:
    """Float32 parameters as BERT's dense layers start: normal kernels, zero biases, but for those
    of the outputs, which are `prior`."""
    shapes = head_shapes(head, encoder)
    last = next(reversed(shapes), None)
    return {
        name: {
            "kernel": encoder.initializer_range * jax.random.normal(layer_key, shape),
            "bias": jnp.full(shape[1], prior if name == last else 0.0),
        }
        for (name, shape), layer_key in zip(
            shapes.items(), jax.random.split(key, len(shapes)), strict=True
        )
    }


def task_logits(
    encoder: Encoder,
    compute: Compute,
    head: TaskHead,
    params: dict,
    input_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
    *,
    token_type_ids: Int[Array, "B L"] | None = None,
    dropout_key: PRNGKeyArray | None = None,
    real_places: Int[Array, "1 T"] | None = None,
) -> Float[Array, "B *L N"]:
    """Float32 logits of a model with a head: [B, N] of a sequence or vector head, else [B, L, N].

    `params` has "encoder" and, where the head has layers, "task_head". Dropout is on exactly when a
    `dropout_key` is given. `real_places` as of `TransformerEncoder`.

    Raises:
      UserError: as `models.encode` does.
    """
    encoder_key = head_key = None
    if dropout_key is not None:
        encoder_key, head_key = jax.random.split(dropout_key)
    pooled = head.kind == "sequence" and encoder.pooler
    out = TransformerEncoder(encoder, compute).apply(
        {"params": params["encoder"]},
        input_ids,
        attention_mask,
        token_type_ids=token_type_ids,
        outputs=("pooler_output",) if pooled else (),
        deterministic=dropout_key is None,
        first_only=head.first_only(encoder),
        real_places=real_places,
        rngs=None if encoder_key is None else {"dropout": encoder_key},
    )
    if head.kind == "vector":
        last = out["last_hidden_state"]
        vectors = POOLING[head.pooling](last, attention_mask[:, : last.shape[1]])
        return normalize(vectors) if head.normalize else vectors
    hidden = out["pooler_output"] if pooled else out["last_hidden_state"]
    if head.kind == "sequence" and not pooled:
        first = hidden[:, 0]
        hidden = jax.nn.relu(_dense(encoder, params["task_head"]["pre_classifier"], first))
    last = "qa_outputs" if head.kind == "answer" else "classifier"
    if head_key is not None and head.dropout:
        hidden = dropped(head_key, hidden, head.dropout)
    return _dense(encoder, params["task_head"][last], hidden).astype(jnp.float32)


def _dense(encoder: Encoder, layer: dict, x: Float[Array, "*B D"]) -> Float[Array, "*B N"]:
    multiplied = product(encoder.int8_range)(x, layer["kernel"].astype(x.dtype))
    return multiplied + layer["bias"].astype(x.dtype)
