"""What an experiment may say: frozen dataclasses, built and checked from an ml_collections config.

A config file fills a `ConfigDict` (`default_config`), the command line overrides it, and
`from_config` turns it into an `Experiment` or answers with one sentence. Everything below this
module receives these dataclasses and never a `ConfigDict`, so a typing mistake cannot travel.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from distilflax.ablation import Ablation
from distilflax.bounds import build, group_of
from distilflax.bounds import choice as _choice
from distilflax.bounds import number as _number
from distilflax.errors import UserError
from distilflax.teacher_cache import TeacherCache
from distilflax.term import Term

# How an int8 file keeps its weights that a model is trained for: `--int8_range` of the export.
INT8_RANGES = ("none", "portable", "full")
# DistilBERT's code has this constant where BERT has a setting.
DISTILBERT_EPS = 1e-12


@dataclass(frozen=True)
class Encoder:
    """The architecture of one encoder: BERT or DistilBERT by its settings.

    `type_vocab_size=0` leaves out token types and `pooler=False` the pooler, which together make a
    BERT a DistilBERT (Sanh et al. 2019, arXiv:1910.01108, section 3). Defaults: BERT-base.

    `int8_range`, of training as dropout is: compute as an int8 file would (`models/int8.py`).
    """

    vocab_size: int = _number(30522, 1)
    hidden_size: int = _number(768, 1)
    num_layers: int = _number(12, 1)
    num_heads: int = _number(12, 1)
    intermediate_size: int = _number(3072, 1)
    max_positions: int = _number(512, 1)
    type_vocab_size: int = _number(2, 0)
    pooler: bool = True
    hidden_act: str = _choice("gelu", "gelu", "gelu_new", "relu")
    dropout: float = _number(0.1, 0.0, 0.99)
    attention_dropout: float = _number(0.1, 0.0, 0.99)
    layer_norm_eps: float = _number(1e-12, 0.0)
    initializer_range: float = _number(0.02, 0.0)
    pad_token_id: int = _number(0, 0)
    int8_range: str = _choice("none", *INT8_RANGES)

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_heads} heads; "
                "choose num_heads that divides it."
            )

    @property
    def family(self) -> str:
        """`distilbert` where that computes the same: it has neither token types nor a pooler, one
        LayerNorm epsilon, and drops nothing of what attention adds (transformers'
        `TransformerBlock`). Otherwise `bert`."""
        fits = not self.type_vocab_size and not self.pooler
        return "distilbert" if fits and self.layer_norm_eps == DISTILBERT_EPS else "bert"


@dataclass(frozen=True)
class Compute:
    """How the arithmetic is done; nothing here changes what is computed beyond rounding.

    Parameters are always float32. `attention="auto"` takes the device's fused kernel where that is
    fast and the plain path elsewhere; `remat` recomputes each layer in the backward pass.
    """

    dtype: str = _choice("float32", "float32", "bfloat16")
    attention: str = _choice("auto", "auto", "plain", "fused")
    remat: bool = False


@dataclass(frozen=True)
class Teacher:
    """Where the teacher comes from.

    `path` is an HF folder, a hub name, or `package:NAME/SUBFOLDER` for weights that a Python
    package ships. `mlm_head`: `own` (must be in the checkpoint), `fit` (fit one, encoder frozen),
    `auto` (own if there, otherwise fit), `none`. `share` weighs it among several teachers; one
    of share 0 does not teach (the student is cut out of it all the same).
    """

    path: str = ""
    mlm_head: str = _choice("auto", "auto", "own", "fit", "none")
    share: float = _number(1.0, 0.0)


@dataclass(frozen=True)
class Teaching:
    """How the student learns from several teachers: `config.teacher`, `config.teachers`, itself.

    `several`: `sum` adds every term up over the teachers, each at its share; `draw` asks one of
    them for each batch, drawn with its share for a probability, and runs no other.
    `average_decay` d above 0 makes a teacher of the student's own moving average, a = d a +
    (1 - d) p after every update, with `average_share`; with `teacher.share=0` it is the only one.
    """

    several: str = _choice("sum", "sum", "draw")
    average_decay: float = _number(0.0, 0.0, 1.0)
    average_share: float = _number(1.0, 0.0)


@dataclass(frozen=True)
class Student:
    """The student, cut out of the teacher: fewer layers and, if asked for, a smaller width.

    `path`: cut it out of this model instead (a folder or a hub name), with the teacher's words: a
    student that was trained before goes on with `num_layers` as many as it has.

    `layer_map` names the teacher layers to copy: `every_other` (the paper's 0,2,4,7,9,11 for 12 to
    6), `uniform_last`, `first`, `last`, or a comma-separated list such as `0,2,5`.

    `init`: `teacher` copies them, `random` draws everything anew, and `regressed` copies them and
    then makes each stand in for the left-out ones that follow it, by ridge regression on
    `regression_tokens` tokens of the text (`train/regression.py`).

    `hidden_size`, `num_heads`, `intermediate_size`: 0 keeps the teacher's. Of a smaller hidden size
    alone follow as many heads of the teacher's size as fit (or, if none do, its number of heads)
    and neurons in proportion. What is kept, and how the rest is stood in for, is fitted on
    `regression_tokens` tokens (`weights/width.py`); a `random` student may have any size.

    `freeze_embeddings` leaves embeddings (and a tied decoder) as they were copied: in a small
    student they are most of the parameters, and on a CPU their update is a good part of a step.

    `int8_range` trains it for the int8 file that an export with that `--int8_range` writes (all but
    the decoder, see `models/int8.py`), and the report's figures are those of such a file.
    """

    path: str = ""
    num_layers: int = _number(6, 1)
    hidden_size: int = _number(0, 0)
    num_heads: int = _number(0, 0)
    intermediate_size: int = _number(0, 0)
    layer_map: str = "every_other"
    init: str = _choice("teacher", "teacher", "random", "regressed")
    regression_tokens: int = _number(30_000, 1)
    copy_head: bool = True
    freeze_embeddings: bool = False
    int8_range: str = _choice("none", *INT8_RANGES)
    dropout: float = _number(0.1, 0.0, 0.99)
    attention_dropout: float = _number(0.1, 0.0, 0.99)


@dataclass(frozen=True)
class Data:
    """Text, from where it lies to sequences of ids.

    `sources`: comma-separated files, folders, globs, HF data-set names (`hf:NAME[:CONFIG]@SPLIT`),
    or `documentation`. `layout`: `lines` keeps every passage a sequence of its own, `packed` fills
    each sequence with whole passages and keeps them apart with segment-aware attention.
    `passages` says what is put together into a passage, up to `max_length`: the paragraphs of a
    `document`, its first paragraph and the others (`title`), or each `paragraph` alone. A sentence
    encoder should meet texts as short as those it will be asked about. `document_tokens` keeps the
    beginning of each document alone (0: all of it): what an encoder of that length will ever read.
    """

    sources: str = "documentation"
    column: str = "text"
    cache: str = "~/.cache/distilflax"
    layout: str = _choice("lines", "lines", "packed")
    passages: str = _choice("document", "document", "title", "paragraph")
    document_tokens: int = _number(0, 0)
    max_length: int = _number(128, 8)
    min_tokens: int = _number(3, 1)
    buckets: tuple[int, ...] = ()
    validation_fraction: float = _number(0.05, 0.0, 0.5)
    max_documents: int = _number(0, 0)


@dataclass(frozen=True)
class Masking:
    """BERT's masking: `rate` of the real tokens, of which mask / keep / random.

    `weighting="rarity"` draws positions with probability proportional to count ** -`power`
    (DistilBERT's, 0.7); `uniform` is BERT's. Special tokens and padding are never drawn.
    `sequences` is the share of sequences that are masked at all, drawn anew at every step; terms
    over real tokens and on sentence vectors then see the others as they are used: whole.
    """

    sequences: float = _number(1.0, 0.0, 1.0)
    rate: float = _number(0.15, 0.01, 0.9)
    mask: float = _number(0.8, 0.0, 1.0)
    keep: float = _number(0.1, 0.0, 1.0)
    random: float = _number(0.1, 0.0, 1.0)
    weighting: str = _choice("rarity", "rarity", "uniform")
    power: float = _number(0.7, 0.0)
    whole_word: bool = False

    def __post_init__(self):
        total = self.mask + self.keep + self.random
        if abs(total - 1.0) > 1e-6:
            raise UserError(f"masking.mask + keep + random is {total:g}; they must add up to 1.")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up; the paper's values are in `configs/distilbert_base.py`."""

    learning_rate: float = _number(5e-4, 0.0)
    schedule: str = _choice("linear", "linear", "cosine", "constant")
    warmup_fraction: float = _number(0.05, 0.0, 1.0)
    b1: float = _number(0.9, 0.0, 1.0)
    b2: float = _number(0.98, 0.0, 1.0)
    eps: float = _number(1e-6, 0.0)
    weight_decay: float = _number(0.0, 0.0)
    clip_norm: float = _number(5.0, 0.0)


@dataclass(frozen=True)
class Training:
    """How long, how large a step, and what is written while it runs.

    `batch_size` counts sequences a step over all devices; `accumulate` splits it into that many
    micro-batches without changing the gradient. Give `steps`, or leave it 0 and give `epochs`.
    `gradients_every` so many steps the terms' gradients are weighed against each other and logged
    (`train/gradients.py`); it costs a backward pass for each term. `arms_at_once` of the arms of
    `experiments.distill` are trained side by side, which a CPU's cores are better used by; on one
    host only (`train/side_by_side.py`).
    """

    batch_size: int = _number(32, 1)
    steps: int = _number(0, 0)
    epochs: float = _number(1.0, 0.0)
    accumulate: int = _number(1, 1)
    log_every: int = _number(10, 1)
    evaluate_every: int = _number(0, 0)
    evaluate_batches: int = _number(8, 1)
    gradients_every: int = _number(0, 0)
    checkpoint_every: int = _number(500, 1)
    keep_checkpoints: int = _number(3, 1)
    arms_at_once: int = _number(1, 1)
    tensorboard: bool = False
    profile: bool = False
    compilation_cache: bool = True


@dataclass(frozen=True)
class HeadFit:
    """Fitting a masked-LM head on a frozen teacher that has none.

    The encoder runs once over `tokens` tokens of text; the head then learns from the states at the
    masked positions, `passes` times over, `batch_rows` positions a step.
    """

    tokens: int = _number(2_000_000, 1)
    passes: int = _number(2, 1)
    batch_rows: int = _number(512, 1)
    learning_rate: float = _number(3e-4, 0.0)


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 for `data` takes what the others leave."""

    data: int = _number(-1, -1)
    fsdp: int = _number(1, 1)
    tensor: int = _number(1, 1)


@dataclass(frozen=True)
class Evaluation:
    """What the report measures. Lengths in tokens, `retrieval_entries` 0 for all held out."""

    batch_size: int = _number(32, 1)
    masked_lm_batches: int = _number(32, 1)
    retrieval_length: int = _number(128, 8)
    retrieval_entries: int = _number(0, 0)
    latency_length: int = _number(128, 8)
    latency_batch: int = _number(32, 1)
    latency_repeats: int = _number(30, 3)


# Who teaches beside `Experiment.teachers`, by the names that these must not have.
FIRST_TEACHER, AVERAGE = "teacher", "average"
TAUGHT_BY = {FIRST_TEACHER: "config.teacher", AVERAGE: "the student average"}


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is determined by; `arms` are the same run with a few values changed."""

    seed: int = _number(0, 0)
    teacher: Teacher = field(default_factory=Teacher)
    teachers: dict[str, Teacher] = field(default_factory=dict)
    teaching: Teaching = field(default_factory=Teaching)
    teacher_cache: TeacherCache = field(default_factory=TeacherCache)
    student: Student = field(default_factory=Student)
    data: Data = field(default_factory=Data)
    masking: Masking = field(default_factory=Masking)
    losses: dict[str, Term] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    head_fit: HeadFit = field(default_factory=HeadFit)
    mesh: Mesh = field(default_factory=Mesh)
    compute: Compute = field(default_factory=Compute)
    evaluation: Evaluation = field(default_factory=Evaluation)
    arms: dict[str, dict] = field(default_factory=dict)
    ablation: Ablation = field(default_factory=Ablation)

    def __post_init__(self):
        if self.data.buckets and min(self.data.buckets) < 1:
            raise UserError(
                f"config.data.buckets holds {min(self.data.buckets)}; every bucket is a length of "
                "at least 1."
            )
        if self.data.buckets and max(self.data.buckets) < self.data.max_length:
            raise UserError(
                f"config.data.buckets: the largest is {max(self.data.buckets)} but max_length is "
                f"{self.data.max_length}; add a bucket of at least max_length."
            )
        if self.training.batch_size % self.training.accumulate:
            raise UserError(
                f"config.training: batch_size {self.training.batch_size} does not divide into "
                f"accumulate={self.training.accumulate} micro-batches."
            )
        if self.training.evaluate_every and not self.data.validation_fraction:
            raise UserError(
                "config.training.evaluate_every measures on held-out text, and "
                "data.validation_fraction is 0; set one of them otherwise."
            )
        if self.training.profile and self.training.arms_at_once > 1:
            raise UserError(
                "config.training.profile traces all that runs in the process, so one arm at a time "
                "must run; set training.arms_at_once to 1."
            )
        for taken, whose in TAUGHT_BY.items():
            if taken in self.teachers:
                raise UserError(
                    f"config.teachers.{taken}: {taken!r} is the name of {whose}; give this one "
                    "another."
                )
        average = self.teaching.average_decay and self.teaching.average_share
        shares = [one.share for one in (self.teacher, *self.teachers.values())]
        if not average and not sum(shares):
            raise UserError("config.teacher.share is 0 and nobody else teaches; give it a share.")
        if average and self.teaching.several == "draw":
            raise UserError(
                "config.teaching.several='draw' draws among models that do not change; set it to "
                "'sum' to learn from the student's average."
            )
        if not self.training.steps and not self.training.epochs:
            raise UserError("config.training: steps and epochs are both 0; give one of them.")


def default_config() -> ml_collections.ConfigDict:
    """The defaults as a `ConfigDict`, to be filled in by a file under `configs/`."""
    config = ml_collections.ConfigDict(dataclasses.asdict(Experiment()))
    config.losses = ml_collections.ConfigDict()
    config.arms = ml_collections.ConfigDict()
    config.teachers = ml_collections.ConfigDict()
    return config


def term(**values) -> ml_collections.ConfigDict:
    """One loss term as a config value: `config.losses.kl = term(weight=5.0, temperature=2.0)`."""
    return ml_collections.ConfigDict(dataclasses.asdict(build(Term, values, "term")))


def from_config(
    config: Mapping | ml_collections.ConfigDict, kind: type = Experiment, place: str = "config"
) -> Any:
    """The experiment, or other settings dataclass of `kind`, that `config` describes.

    Raises:
      UserError: an unknown key (with the valid ones), a value of the wrong type or out of range,
        or a combination that cannot run.
    """
    return build(kind, config, place)


def with_overrides(experiment: Experiment, overrides: Mapping, name: str) -> Experiment:
    """`experiment` with the nested values of `overrides` put in: one arm of an ablation."""
    place = f"config.arms.{name}"
    merged = _merge(dataclasses.asdict(experiment), group_of(overrides, place))
    return dataclasses.replace(build(Experiment, merged, place), arms={})


def to_json(settings: Any) -> str:
    """A stable text of any settings dataclass: for fingerprints and for the run's records."""
    return json.dumps(dataclasses.asdict(settings), sort_keys=True, indent=1)


def _merge(base: Mapping, overrides: Mapping) -> dict:
    out = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if nested else value
    return out
