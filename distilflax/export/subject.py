"""What is exported: a model, which of its outputs, and the run that it came from.

A model may be named by a workdir of `experiments.distill` or `experiments.finetune`, by a run
inside of one, or as anywhere else: an HF folder, a hub name, package:NAME/SUBFOLDER.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from distilflax import models, weights
from distilflax.errors import UserError, choose_from
from distilflax.settings import Compute, Encoder
from distilflax.tasks import texts
from distilflax.text import tokenizer
from distilflax.weights import Checkpoint, SentenceFiles, hf_config

PARTS = ("encoder", "masked_lm", "head")

_MODEL = "model"  # the HF folder inside a run
_MAIN_RUN = "distilled"  # of experiments.distill
_SEED = "seed*"  # of experiments.finetune


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that leaves.

    Attributes:
      checkpoint: as read, with its task head where it has one.
      part: of `PARTS`.
      words: its tokenizer.
      name: the last steps of how the user named it.
      run: the folder with the records of its run, or None.
    """

    checkpoint: Checkpoint
    part: str
    words: tokenizer.Tokenizer
    name: str
    run: Path | None

    @property
    def encoder(self) -> Encoder:
        return self.checkpoint.encoder

    @property
    def head(self) -> str:
        """masked_lm, sequence, token, answer, or "" for the encoder alone."""
        return {"encoder": "", "masked_lm": "masked_lm"}.get(self.part) or (
            self.checkpoint.head.kind if self.part == "head" else ""
        )

    @property
    def problem(self) -> str:
        """What a sequence head decides, of `models.task_heads.PROBLEMS`; "" for all others."""
        return self.checkpoint.head.problem if self.head == "sequence" else ""

    @property
    def sentence(self) -> SentenceFiles | None:
        """How sentence vectors are made, where they are among the outputs."""
        return self.checkpoint.sentence if self.part == "encoder" else None

    @property
    def pooler(self) -> bool:
        """Whether BERT's pooler is computed: below a sequence head alone."""
        return self.head == "sequence" and self.encoder.pooler

    @property
    def with_types(self) -> bool:
        """Whether token types are an input: where the model is given some."""
        return texts.with_types(self.words, self.encoder)

    @property
    def inputs(self) -> tuple[str, ...]:
        types = ("token_type_ids",) if self.with_types else ()
        return ("input_ids", "attention_mask", *types)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names as the field has them (transformers, optimum)."""
        if self.part == "encoder":
            vector = () if self.sentence is None else ("sentence_embedding",)
            return ("last_hidden_state", *vector)
        return ("start_logits", "end_logits") if self.head == "answer" else ("logits",)

    @property
    def params(self) -> dict:
        """The parameters that these outputs need, and no others."""
        given = self.checkpoint.params
        inner = {k: v for k, v in given["encoder"].items() if k != "pooler" or self.pooler}
        group = {"encoder": None, "masked_lm": "mlm_head", "head": "task_head"}[self.part]
        return {"encoder": inner} | ({} if group is None else {group: given[group]})

    def flat(self) -> dict[str, np.ndarray]:
        """`params` by path, `encoder/layers_0/ffn/up/kernel`, as float32 arrays."""
        flat = flatten_dict(self.params, sep="/")
        return {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in flat.items()}

    def settings(self) -> dict[str, Any]:
        """What the numpy model is told beside its weights; plain JSON values."""
        encoder, sentence = self.encoder, self.sentence or SentenceFiles()
        longest = sentence.max_seq_length if self.sentence else encoder.max_positions
        return {
            "num_layers": encoder.num_layers,
            "num_heads": encoder.num_heads,
            "hidden_act": encoder.hidden_act,
            "layer_norm_eps": encoder.layer_norm_eps,
            "max_positions": encoder.max_positions,
            "outputs": list(self.outputs),
            "pooling": sentence.pooling,
            "normalize": sentence.normalize,
            "prompt": sentence.prompt(),
            "max_length": min(longest, encoder.max_positions),
            "head": self.head,
            "pooler": self.pooler,
        }


def open_subject(path: str | Path, part: str = "auto") -> Subject:
    """The model at `path` and the part of it that is asked for.

    `auto` is the task head where there is one, else the sentence vector where there are files for
    it, else the masked-LM head, else the encoder alone.

    Raises:
      UserError: a run that has not finished, no such model, a tokenizer of another, or a part that
        the model does not have.
    """
    folder, run = find(path)
    checkpoint = weights.load(folder, with_task_head=True)
    words = tokenizer.load_for(checkpoint.folder, checkpoint.encoder.vocab_size)
    has = {
        "head": checkpoint.head is not None,
        "masked_lm": "mlm_head" in checkpoint.params,
        "encoder": True,
    }
    if part == "auto":
        first = "encoder" if checkpoint.sentence is not None else "masked_lm"
        part = next(p for p in ("head", first, "encoder") if has[p])
    if part not in has:
        raise UserError(f"--part is {part!r}; {choose_from(part, ('auto', *PARTS))}")
    if not has[part]:
        there = ", ".join(name for name, present in has.items() if present)
        raise UserError(f"{path} has no part {part!r} to export; it has: {there}.")
    return Subject(checkpoint, part, words, weights.short_name(path), run)


def find(path: str | Path) -> tuple[str | Path, Path | None]:
    """(what `weights.load` takes, the folder of the run's records or None).

    Raises:
      UserError: a workdir without a finished model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() or ((folder / hf_config.FILE).is_file() and _is_model(folder)):
        inside_run = folder.is_dir() and folder.name == _MODEL and _is_run(folder.parent)
        return path, folder.parent if inside_run else None
    if (folder / _MODEL).is_dir():
        return folder / _MODEL, folder
    seeds = sorted(one for one in folder.glob(_SEED) if (one / _MODEL).is_dir())
    if seeds:
        best = max(seeds, key=_score)
        return best / _MODEL, best
    main = folder / _MAIN_RUN
    if (main / _MODEL).is_dir():
        return main / _MODEL, main
    for unfinished in (folder, main, *sorted(folder.glob(_SEED))):
        if _is_run(unfinished):
            raise UserError(
                f"{unfinished} is a run that has not finished, so it has no model yet; start it "
                "again with its own command, and export it then."
            )
    return path, None


def _is_model(folder: Path) -> bool:
    """A run keeps its own settings in a file of the same name; a model's has a `model_type`."""
    try:
        return "model_type" in json.loads((folder / hf_config.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return True  # damaged: `weights.load` says how


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("checkpoints", "environment.jsonl"))


def _score(run: Path) -> float:
    """The figure on development data by which a fine-tuned run is judged."""
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return float(result["dev"][result["metric"]])
    except (OSError, ValueError, KeyError, TypeError):
        return float("-inf")


def forward(subject: Subject, compute: Compute | None = None) -> Callable[..., dict[str, Array]]:
    """The function of (params, input_ids, attention_mask, token_type_ids?) that is exported."""
    encoder, sentence = subject.encoder, subject.sentence
    compute = compute or Compute()

    def run(params, input_ids, attention_mask, token_type_ids=None):
        given = {"token_type_ids": token_type_ids}
        if subject.part == "head":
            head = subject.checkpoint.head
            logits = models.task_logits(
                encoder, compute, head, params, input_ids, attention_mask, **given
            )
            if subject.head == "answer":
                return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
            return {"logits": logits}
        out = models.encode(encoder, compute, params["encoder"], input_ids, attention_mask, **given)
        hidden = out["last_hidden_state"]
        if subject.part == "masked_lm":
            matrix, bias = models.decoder(params)
            return {
                "logits": models.mlm_transform(encoder, compute, params, hidden) @ matrix.T + bias
            }
        found = {"last_hidden_state": hidden}
        if sentence is not None:
            vector = models.pool(hidden, attention_mask, sentence.pooling)
            found["sentence_embedding"] = models.normalize(vector) if sentence.normalize else vector
        return found

    return run
