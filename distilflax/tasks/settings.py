"""What a fine-tuning run may say. The options of a task are the fields of its own dataclass."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from distilflax.errors import UserError, choose_from
from distilflax.losses import active
from distilflax.settings import INT8_RANGES, Compute, Mesh, Optimizer, Term, from_config
from distilflax.tasks import TASKS
from distilflax.tasks.task import Task


@dataclass(frozen=True)
class Model:
    """What is fine-tuned: an HF folder, a hub name, or package:NAME/SUBFOLDER.

    `keep_head` goes on from the head that the folder has, where it is one for the same labels.
    `int8_range` trains the model for the int8 file that an export with that `--int8_range` writes
    (`models/int8.py`); figures on development and test data are then those of such a file.
    """

    path: str = ""
    keep_head: bool = False
    int8_range: str = field(default="none", metadata={"choices": INT8_RANGES})


@dataclass(frozen=True)
class Data:
    """Files inside of `folder`; each name may be several, with commas between, or with `+` between
    files side by side of one record a line, whose columns `options.header` names.

    `test` and `unlabelled` may be empty. `fraction` of the training examples is used, drawn anew
    for each seed, each of a problem's single labels at least once. `on_fault`: a record that is not
    what it should be stops the run (`error`) or is left out and counted (`skip`). `max_examples`
    takes so many of every part, evenly spread, for trying things out; 0 takes all. Batches are
    padded to the shortest of `buckets` that holds their longest row; without any given, to the next
    multiple of 32.
    """

    folder: str = ""
    train: str = "train.tsv"
    dev: str = "dev.tsv"
    test: str = "test.tsv"
    unlabelled: str = ""
    fraction: float = field(default=1.0, metadata={"least": 1e-6, "most": 1.0})
    max_length: int = field(default=128, metadata={"least": 8})
    max_examples: int = field(default=0, metadata={"least": 0})
    on_fault: str = field(default="error", metadata={"choices": ("error", "skip")})
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Training:
    """`batch_size` counts rows a step, `epochs` passes over them.

    The development data is measured every `evaluate_epochs`; after `patience` times without a
    better figure the run ends (0: never early), and the best state is kept in any case. Where the
    epochs make fewer than `min_steps`, as of a small `data.fraction`, there are so many more of
    them, and as many evaluations, further apart (few examples want more than three passes over
    them: Mosbach et al. 2021, arXiv:2006.04884). `seeds` runs are made, from the experiment's seed
    on. `mode="probe"` trains no encoder: a linear model reads its frozen states, without a teacher.
    The loss is told every `log_every` steps, with `tensorboard` there too; `compilation_cache`
    keeps compiled programs beside the workdir.
    """

    batch_size: int = field(default=32, metadata={"least": 1})
    epochs: float = field(default=3.0, metadata={"least": 1e-6})
    evaluate_epochs: float = field(default=1.0, metadata={"least": 1e-6})
    min_steps: int = field(default=0, metadata={"least": 0})
    patience: int = field(default=0, metadata={"least": 0})
    seeds: int = field(default=1, metadata={"least": 1})
    mode: str = field(default="full", metadata={"choices": ("full", "probe")})
    log_every: int = field(default=20, metadata={"least": 1})
    tensorboard: bool = False
    compilation_cache: bool = True

    def steps(self, epoch: float) -> tuple[int, float]:
        """(steps in all, steps from one evaluation to the next) of epochs of so many steps."""
        own = self.epochs * epoch
        longer = max(1.0, self.min_steps / own)
        return max(1, round(longer * own)), longer * self.evaluate_epochs * epoch


@dataclass(frozen=True)
class Distillation:
    """Learning from a task teacher: a fine-tuned folder for the same task and labels.

    The loss is (1 - weight) x labels + weight x teacher; what has no label learns from the teacher
    alone. Empty `teacher`: from the labels alone.
    """

    teacher: str = ""
    weight: float = field(default=0.5, metadata={"least": 0.0, "most": 1.0})
    temperature: float = field(default=2.0, metadata={"least": 1e-3})


@dataclass(frozen=True)
class Augmentation:
    """More texts for the teacher to speak on, made of the training texts (`tasks/augmentation.py`).

    `model`: a model with a masked-LM head that proposes words; empty: no augmentation. Of every
    text at most `samples` are made, in each of which a word is replaced with `probability` by one
    of its `candidates` likeliest (TinyBERT's N, p and K). They are drawn from the first seed, are
    common to all, and are kept in `cache`.
    """

    model: str = ""
    samples: int = field(default=20, metadata={"least": 1})
    candidates: int = field(default=15, metadata={"least": 1})
    probability: float = field(default=0.4, metadata={"least": 0.0, "most": 1.0})
    cache: str = "~/.cache/distilflax"


def _optimizer() -> Optimizer:
    """What BERT is fine-tuned with (Devlin et al. 2019, appendix A.3)."""
    return Optimizer(
        learning_rate=5e-5,
        warmup_fraction=0.1,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=1.0,
    )


def _of_layers() -> Optimizer:
    """What TinyBERT's code trains this stage with; it clips each array's gradient to 1, we clip
    them together."""
    return Optimizer(
        learning_rate=5e-5,
        schedule="constant",
        warmup_fraction=0.0,
        b2=0.999,
        weight_decay=0.01,
        clip_norm=1.0,
    )


@dataclass(frozen=True)
class Intermediate:
    """A stage before: the student's layers learn from the task teacher's, on all training texts.

    `losses` are terms as in experiments.distill (`losses/README.md`), but for those over words;
    without any there is no such stage. `epochs` are passes over the texts, in batches of
    `training.batch_size`.
    """

    losses: dict[str, Term] = field(default_factory=dict)
    epochs: float = field(default=10.0, metadata={"least": 1e-6})
    optimizer: Optimizer = field(default_factory=_of_layers)


@dataclass(frozen=True)
class FineTuning:
    """Everything that a fine-tuning run is determined by.

    `reported` are the test figures that tables of results show, the first being the one that tasks
    are averaged by; empty: the one that models are chosen by. Named here they are named beforehand.
    """

    seed: int = field(default=0, metadata={"least": 0})
    task: str = "classification"
    reported: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=_optimizer)
    training: Training = field(default_factory=Training)
    distillation: Distillation = field(default_factory=Distillation)
    intermediate: Intermediate = field(default_factory=Intermediate)
    mesh: Mesh = field(default_factory=Mesh)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self):
        if self.task not in TASKS:
            raise UserError(f"config.task is {self.task!r}; {choose_from(self.task, TASKS)}")
        for name, given in (
            ("data.unlabelled", self.data.unlabelled),
            ("augmentation.model", self.augmentation.model),
        ):
            if given and not self.distillation.teacher:
                raise UserError(
                    f"config.{name} is of use to a teacher alone; give one as "
                    "config.distillation.teacher, or leave it out."
                )
        for name, given in (
            ("distillation.teacher", self.distillation.teacher),
            ("intermediate.losses", active(self.intermediate.losses)),
            ("model.int8_range", self.model.int8_range != "none"),
            ("model.keep_head", self.model.keep_head),
        ):
            if given and self.training.mode == "probe":
                raise UserError(
                    f"config.training.mode is 'probe', to which config.{name} means nothing; leave "
                    "one of them out."
                )
        if not self.intermediate.losses and self.intermediate != Intermediate():
            raise UserError(
                "config.intermediate says how layers are learned from, and its losses not by what; "
                "give a term, for example config.intermediate.losses.cosine.weight=1."
            )
        if self.data.unlabelled and self.task == "retrieval" and not self.intermediate.losses:
            raise UserError(
                "config.data.unlabelled of retrieval is texts with nothing that belongs to them, "
                "of which layers alone are learned; give config.intermediate.losses, or leave it "
                "out."
            )


def default_config(task: str) -> ml_collections.ConfigDict:
    """The defaults of `task`, to be filled in by a file under `configs/`."""
    if task not in TASKS:
        raise UserError(f"{task!r} is no task; {choose_from(task, TASKS)}")
    run = FineTuning(task=task, options=dataclasses.asdict(TASKS[task]()))
    return ml_collections.ConfigDict(dataclasses.asdict(run))


def from_values(config: Any) -> FineTuning:
    """The run that a config describes.

    Raises:
      UserError: an unknown key or a value that cannot be, in the options of the task too.
    """
    if "task" not in config:
        raise UserError("This config names no task; give it to experiments.distill.")
    run = from_config(config, FineTuning)
    task_of(run)
    return run


def task_of(run: FineTuning) -> Task:
    """The task with the options of `run`, before it has seen any data."""
    return from_config(run.options, TASKS[run.task], "config.options")
