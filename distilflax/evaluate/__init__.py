"""How good a model is, alone and beside its teacher, and the report that says so.

From the data to the page:

    model.py        a model with its name and role
    held_out.py     the batches, and the masks, that every model is measured on
    masked_lm.py    masked words filled in: accuracy, perplexity, agreement with the teacher
    vectors.py      texts to sentence vectors
    retrieval.py    documentation to be searched
    sts.py          semantic similarity, STS-B
    intervals.py    bootstrap intervals of differences and ratios, and those over seeds
    fine_tuned.py   models with a head on data of their task
    classic.py      the baselines that a user would try first
    task_table.py   models on several tasks under several seeds; task_plot.py draws it
    speed.py        latency and throughput, side by side
    measure.py      all of it for some models, as plain dicts
    report.py       those dicts to report.json, report.md and the terminal
    tables.py, plots.py, gradient_plot.py    what reports are made of
    ablation.py     arms under several seeds: paired differences and their intervals;
                    ablation_plot.py draws it
    outside.py      students on data of one's own
    grid.py         those arms trained and measured
    tokens.py       one sentence token by token, a student beside its teacher
    similarity.py   layers of two models by CKA
    heat_maps.py    pictures of these two
    seeds.py        several reports of one experiment: means and spread over seeds
"""

from distilflax.evaluate import report
from distilflax.evaluate.held_out import held_out_batches, mask_batches
from distilflax.evaluate.measure import measure
from distilflax.evaluate.model import ROLES, Model
from distilflax.evaluate.seeds import across_seeds
from distilflax.evaluate.vectors import embed

__all__ = [
    "ROLES",
    "Model",
    "across_seeds",
    "embed",
    "held_out_batches",
    "mask_batches",
    "measure",
    "report",
]
