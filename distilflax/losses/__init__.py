"""What "distil" means: terms by name, and the algebra that makes one loss of them.

`README.md` beside this file shows how to add a term.
"""

from distilflax.losses.checks import check, check_accumulation, check_masking, check_models
from distilflax.losses.projections import PROJECTIONS, init_projections
from distilflax.losses.several import Taught, taught_loss
from distilflax.losses.terms import (
    TERMS,
    active,
    formula,
    needs_head,
    needs_teacher,
    only_masked,
    outputs,
)
from distilflax.losses.total import CHUNK_ROWS, counts, total_loss
from distilflax.losses.view import Dial, Sum, View
from distilflax.losses.words import Words

__all__ = [
    "CHUNK_ROWS",
    "PROJECTIONS",
    "TERMS",
    "Dial",
    "Sum",
    "Taught",
    "View",
    "Words",
    "active",
    "check",
    "check_accumulation",
    "check_masking",
    "check_models",
    "counts",
    "formula",
    "init_projections",
    "needs_head",
    "needs_teacher",
    "only_masked",
    "outputs",
    "taught_loss",
    "total_loss",
]
