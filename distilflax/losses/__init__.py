"""What "distil" means: terms by name, and the algebra that makes one loss of them.

`README.md` beside this file shows how to add a term.
"""

from distilflax.losses.checks import check, check_accumulation, check_models
from distilflax.losses.projections import PROJECTIONS, init_projections
from distilflax.losses.terms import (
    TERMS,
    active,
    needs_head,
    needs_teacher,
    outputs,
    uses_masked,
)
from distilflax.losses.total import counts, total_loss
from distilflax.losses.view import Sum, View

__all__ = [
    "PROJECTIONS",
    "TERMS",
    "Sum",
    "View",
    "active",
    "check",
    "check_accumulation",
    "check_models",
    "counts",
    "init_projections",
    "needs_head",
    "needs_teacher",
    "outputs",
    "total_loss",
    "uses_masked",
]
