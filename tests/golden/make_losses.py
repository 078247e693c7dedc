"""Makes losses.npz: two models' outputs as small arrays, and what published losses make of them.

    pip install torch sentence-transformers textbrewer
    python tests/golden/make_losses.py

Made with torch 2.13, sentence-transformers 6.2 and textbrewer 0.2.1, in an environment of its own.
TextBrewer and sentence-transformers are called; what others publish as scripts is stated here in
torch, as their code calls it: DistilBERT (huggingface/transformers, research-projects,
distillation/distiller.py), TinyBERT (huawei-noah/Pretrained-Language-Model, general_distill.py and
task_distill.py), PKD (intersun/PKD-for-BERT-Model-Compression), DKD (megvii-research/mdistiller),
and MiniLMv2 as reimplemented in bloomberg/minilmv2.bb.

    student/..., teacher/...    hidden_states [layers + 1, 4, 6, width], attention_scores
                                [layers, 4, 2, 6, 6], queries, keys, values [layers, 4, 6, 2, 4],
                                logits [4, 6, 11]; 2 and 4 layers, both 8 wide
    projection/kernel, bias     [8, 8], [8]
    attention_mask, labels      [4, 6]: four real tokens in each row, because the others' averages
                                over padded squares weigh rows of unequal length in other ways
    theirs/NAME                 the number that NAME returns
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as st
from textbrewer import losses as tb

HERE = Path(__file__).parent
BATCH, LENGTH, REAL, WIDTH, HEADS, WORDS = 4, 6, 4, 8, 2, 11
TEMPERATURE, RELATION_HEADS = 2.0, 4
# TinyBERT's and uniform_last's: the last layer of each block of two.
PAIRS = ((0, 1), (1, 3))


def main():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def model(layers):
        return SimpleNamespace(
            hidden_states=normal(layers + 1, BATCH, LENGTH, WIDTH),
            attention_scores=normal(layers, BATCH, HEADS, LENGTH, LENGTH),
            logits=2 * normal(BATCH, LENGTH, WORDS),
        )

    student, teacher = model(2), model(4)
    kernel, bias = normal(WIDTH, WIDTH), normal(WIDTH)
    mask = (torch.arange(LENGTH) < REAL).long().expand(BATCH, LENGTH).contiguous()
    labels = torch.randint(0, WORDS, (BATCH, LENGTH), generator=generator)
    for outputs in (student, teacher):
        layers = len(outputs.attention_scores)
        for vectors in ("queries", "keys", "values"):
            setattr(outputs, vectors, normal(layers, BATCH, LENGTH, HEADS, WIDTH // HEADS))

    theirs = {
        **on_logits(student, teacher, mask, labels),
        **on_states(student, teacher, mask, kernel, bias),
        **on_attention(student, teacher, mask),
        "minilmv2.bb loss": on_relations(student, teacher),
        **on_sentences(student, teacher, mask),
    }
    arrays = {"attention_mask": mask, "labels": labels}
    arrays |= {"projection/kernel": kernel, "projection/bias": bias}
    for whose, outputs in (("student", student), ("teacher", teacher)):
        arrays |= {f"{whose}/{name}": array for name, array in vars(outputs).items()}
    arrays |= {f"theirs/{name}": value for name, value in theirs.items()}
    np.savez_compressed(HERE / "losses.npz", **{k: np.asarray(v) for k, v in arrays.items()})


def on_logits(student, teacher, mask, labels):
    s, t, labels = (x[mask > 0] for x in (student.logits, teacher.logits, labels))
    log_q, p = F.log_softmax(s / TEMPERATURE, -1), F.softmax(t / TEMPERATURE, -1)
    batchmean = torch.nn.KLDivLoss(reduction="batchmean")
    return {
        "distilbert loss_ce": batchmean(log_q, p) * TEMPERATURE**2,
        "distilbert loss_mlm": torch.nn.CrossEntropyLoss()(s, labels),
        "distilbert loss_mse": torch.nn.MSELoss(reduction="sum")(s, t) / len(s),
        "torch CrossEntropyLoss(label_smoothing)": torch.nn.CrossEntropyLoss(label_smoothing=0.1)(
            s, labels
        ),
        "torch KLDivLoss, reversed": batchmean(F.log_softmax(t, -1), F.softmax(s, -1)),
        "textbrewer kd_ce_loss": tb.kd_ce_loss(s, t, TEMPERATURE),
        "textbrewer kd_mse_loss": tb.kd_mse_loss(s, t, TEMPERATURE),
        "tinybert soft_cross_entropy": torch.mean(-p * log_q),
        "pkd distillation_loss": torch.nn.KLDivLoss(reduction="mean")(log_q, p) * TEMPERATURE**2,
        "mdistiller dkd_loss": decoupled(s, t, labels, alpha=1.0, beta=8.0),
    }


def decoupled(s, t, labels, alpha, beta):
    """mdistiller's: the target is taken out of the others by lowering its logit by 1000."""
    target = F.one_hot(labels, WORDS)

    def binary(logits):
        q = F.softmax(logits / TEMPERATURE, dim=1)
        return torch.stack([(q * target).sum(1), (q * (1 - target)).sum(1)], dim=1)

    target_part = F.kl_div(torch.log(binary(s)), binary(t), reduction="sum")
    other_part = F.kl_div(
        F.log_softmax(s / TEMPERATURE - 1000.0 * target, dim=1),
        F.softmax(t / TEMPERATURE - 1000.0 * target, dim=1),
        reduction="sum",
    )
    return (alpha * target_part + beta * other_part) * TEMPERATURE**2 / len(labels)


def on_states(student, teacher, mask, kernel, bias):
    last_s, last_t = student.hidden_states[-1], teacher.hidden_states[-1]
    s, t = last_s[mask > 0], last_t[mask > 0]
    cls_s, cls_t = (F.normalize(x[:, 0], p=2, dim=1) for x in (last_s, last_t))
    # TinyBERT's index 0 is the embeddings; without padding, over whose squares it would average.
    fitted = student.hidden_states[:, :, :REAL] @ kernel + bias
    other = teacher.hidden_states[:, :, :REAL]
    pairs = [(0, 0), *((i + 1, j + 1) for i, j in PAIRS)]
    return {
        "distilbert loss_cos": torch.nn.CosineEmbeddingLoss()(s, t, torch.ones(len(s))),
        "textbrewer cos_loss": tb.cos_loss(last_s, last_t, mask),
        "textbrewer hid_mse_loss": tb.hid_mse_loss(last_s, last_t, mask),
        "textbrewer pkd_loss": tb.pkd_loss(last_s, last_t, mask),
        "pkd patience_loss": F.mse_loss(cls_t, cls_s),
        "tinybert rep_loss": sum(F.mse_loss(fitted[i], other[j]) for i, j in pairs),
    }


def on_attention(student, teacher, mask):
    s, t = student.attention_scores, teacher.attention_scores
    # As BERT's code hands them out: a large negative number at the keys that are padding.
    seen = (1.0 - mask[:, None, None, :]) * -10000.0
    ce = tb.att_ce_loss(s[-1] + seen, t[-1] + seen, mask)
    return {
        "textbrewer att_mse_loss": tb.att_mse_loss(s[-1], t[-1], mask),
        "textbrewer att_ce_loss": ce,
        "textbrewer att_ce_loss, of the teacher with itself": tb.att_ce_loss(
            t[-1] + seen, t[-1] + seen, mask
        ),
        "tinybert att_loss": sum(
            F.mse_loss(s[i, ..., :REAL, :REAL], t[j, ..., :REAL, :REAL]) for i, j in PAIRS
        ),
    }


def on_relations(student, teacher):
    """In 4 relation heads, each relation weighed 1/3 as the reimplementation's notes have it."""

    def relations(outputs, vectors):
        x = getattr(outputs, vectors)[-1][:, :REAL].reshape(BATCH, REAL, RELATION_HEADS, -1)
        x = x.permute(0, 2, 1, 3)
        return x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5

    total = 0.0
    for vectors in ("queries", "keys", "values"):
        s, t = (relations(outputs, vectors) for outputs in (student, teacher))
        divergence = F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="sum")
        total += divergence / (RELATION_HEADS * REAL * BATCH) / 3
    return total


def on_sentences(student, teacher, mask):
    real = mask[..., None] / mask.sum(1)[:, None, None]
    s, t = (torch.sum(x.hidden_states[-1] * real, dim=1) for x in (student, teacher))
    ranking = st.MultipleNegativesRankingLoss(model=torch.nn.Identity(), scale=20.0)
    margin = st.MarginMSELoss(model=torch.nn.Identity())
    # Every triple of an anchor, the other that the teacher finds nearest, and any third.
    nearest = (t @ t.T).fill_diagonal_(-torch.inf).argmax(1).tolist()
    triples = [(i, p, n) for i, p in enumerate(nearest) for n in range(len(s)) if n not in (i, p)]
    anchors, positives, negatives = (list(column) for column in zip(*triples, strict=True))
    labels = (t[anchors] * (t[positives] - t[negatives])).sum(1)
    columns = [s[anchors], s[positives], s[negatives]]

    def distance(metric):
        loss = st.EmbedDistillLoss(model=torch.nn.Identity(), distance_metric=metric)
        return loss.compute_loss_from_embeddings([s], [t])

    return {
        "sentence-transformers MultipleNegativesRankingLoss": ranking.compute_loss_from_embeddings(
            [s, t], None
        ),
        "sentence-transformers MarginMSELoss": margin.compute_loss_from_embeddings(columns, labels),
        "sentence-transformers MSELoss": distance("mse"),
        "sentence-transformers EmbedDistillLoss(cosine)": distance("cosine"),
    }


if __name__ == "__main__":
    main()
