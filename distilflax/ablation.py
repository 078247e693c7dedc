"""What a config may say of an ablation."""

from dataclasses import dataclass, field

from distilflax.bounds import choice, number
from distilflax.errors import UserError


@dataclass(frozen=True)
class Ablation:
    """What `experiments/ablate.py` makes of an experiment and its arms.

    Its arms are the experiment itself, called `full`, each entry of `config.arms`, and each
    combination of `grid`: nested settings whose values are tuples of what to try, such as
    `{"optimizer": {"learning_rate": (1e-4, 3e-4)}}`. Every arm is trained under every seed.

    `metric` is the one that counts, named before anything runs; the table shows the others beside
    it. `arms_at_once` limits how many arms share a program (0: all whose shapes agree), and so its
    memory. `save_students` keeps a model folder for each arm and seed.

    Data of one's own that every student is measured on beside the held-out text, and never trained
    on: `sts`, a TSV of sentence1, sentence2 and score or a folder of such; `beir`, a folder of that
    format; `probe`, a folder of TSV files with sentence and label, read off the frozen encoder by a
    linear model. Each is then a metric of that name, its test split's.
    """

    metric: str = choice(
        "mrr@10", "mrr@10", "ndcg@10", "mlm_accuracy", "agreement", "sts", "beir", "probe"
    )
    sts: str = ""
    beir: str = ""
    probe: str = ""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    grid: dict = field(default_factory=dict)
    arms_at_once: int = number(0, 0)
    save_students: bool = False

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(
                f"config.ablation.seeds is {self.seeds}; give different numbers of at least 0."
            )
        if self.metric in ("sts", "beir", "probe") and not getattr(self, self.metric):
            raise UserError(
                f"config.ablation.metric is {self.metric!r}, but config.ablation.{self.metric} "
                "names no data; give its folder, or choose mrr@10."
            )
