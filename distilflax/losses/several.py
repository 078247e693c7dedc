"""One student, several teachers: what compares with a teacher is added up over them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from distilflax.losses.terms import TERMS, active
from distilflax.losses.total import total_loss
from distilflax.losses.view import Dial, Sum, View
from distilflax.settings import Term


class Taught(NamedTuple):
    """A teacher's outputs on a batch, and its share of the lesson (all shares add up to 1)."""

    share: float
    view: View


def taught_loss(
    losses: Mapping[str, Term],
    student: View,
    teachers: Sequence[Taught],
    *batch: Any,
    dials: Mapping[str, Dial] | None = None,
    **options: Any,
) -> tuple[Float[Array, ""], dict[str, Sum]]:
    """`total_loss` with no teacher, one, or several.

        loss of a term = sum over teachers of  share * (its loss against that teacher)

    For terms whose gradient is linear in the target (KL, cross-entropy, squared errors) that is the
    gradient of the term against the shares' mean of the teachers' distributions or vectors; for the
    others it is a sum of lessons. It needs neither equal depths nor equal widths. (You et al. 2017,
    KDD, average the soft targets of several teachers; Hinton et al. 2015 those of an ensemble.)
    Terms without a teacher are counted once.
    """
    if len(teachers) < 2:
        view = teachers[0].view if teachers else None
        return total_loss(losses, student, view, *batch, dials=dials, **options)
    total, sums = 0.0, {}
    for number, teacher in enumerate(teachers):
        shares = {
            name: teacher.share if TERMS[name].needs_teacher else 1.0
            for name in active(losses)
            if TERMS[name].needs_teacher or number == 0
        }
        own_total, own = total_loss(
            {
                name: replace(losses[name], weight=losses[name].weight * share)
                for name, share in shares.items()
            },
            student,
            teacher.view,
            *batch,
            dials=dials
            and {n: dials[n]._replace(weight=dials[n].weight * shares[n]) for n in shares},
            **options,
        )
        total += own_total
        for name, (value, count) in own.items():
            before = sums[name].sum if name in sums else 0.0
            sums[name] = Sum(before + shares[name] * value, count)
    return total, {name: sums[name] for name in active(losses)}
