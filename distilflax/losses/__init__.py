"""What "distil" means: terms by name, and the algebra that makes one loss of them.

`README.md` beside this file shows how to add a term.
"""

from distilflax.losses.terms import TERMS, active, check, needs_head, needs_teacher, uses_masked
from distilflax.losses.total import Sum, View, counts, total_loss

__all__ = [
    "TERMS",
    "Sum",
    "View",
    "active",
    "check",
    "counts",
    "needs_head",
    "needs_teacher",
    "total_loss",
    "uses_masked",
]
