"""Gradient accounting: how hard each loss term pulls, where, and whether terms pull together.

For every active term the gradient of its weighted share of the loss, by layer group (`embeddings`,
`layers_0`, ..., `mlm_head`, `projections`, and `all` of what trains): its norm, and the cosine
between any two terms' gradients. A term of small norm cannot earn its place; two terms with a
cosine near 1 are one term; a negative cosine is a conflict (Yu et al. 2020, PCGrad,
arXiv:2001.06782).

Made on demand, beside the training step: it costs a backward pass for each term, in the step's
micro-batches.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distilflax import losses
from distilflax.batches.masking import MaskTable
from distilflax.settings import Experiment
from distilflax.train import micro_batches, teachers
from distilflax.train.frozen import merged, trained
from distilflax.train.sharding import path_name
from distilflax.train.state import MASKING, purpose_key
from distilflax.train.teachers import Pair
from distilflax.train.views import Batch, loss_of, masked_at, taught_views

ALL = "all"


class Accounts(NamedTuple):
    """`products[group][t, u]`: scalar product of the gradients of terms t and u over a group."""

    terms: tuple[str, ...]
    products: dict[str, Float[np.ndarray, "T T"]]

    def norms(self, group: str = ALL) -> dict[str, float]:
        """The norm of each term's gradient."""
        norms = np.sqrt(np.maximum(np.diagonal(self.products[group]), 0.0))
        return dict(zip(self.terms, map(float, norms), strict=True))

    def cosines(self, group: str = ALL) -> dict[tuple[str, str], float]:
        """The cosine of each pair of terms; 0 where one of the two has no gradient."""
        norms, products = self.norms(group), self.products[group]
        found = {}
        for i, first in enumerate(self.terms):
            for j, second in enumerate(self.terms[:i]):
                size = norms[first] * norms[second]
                found[second, first] = float(products[i, j]) / size if size else 0.0
        return found

    def record(self) -> dict[str, float]:
        """Everything, flat, for a line of a log: `norm/GROUP/TERM`, `cosine/GROUP/TERM/TERM`."""
        flat = {}
        for group in self.products:
            flat |= {f"norm/{group}/{term}": norm for term, norm in self.norms(group).items()}
            flat |= {
                f"cosine/{group}/{first}/{second}": cosine
                for (first, second), cosine in self.cosines(group).items()
            }
        return flat


def make_accounting(
    experiment: Experiment, pair: Pair, total_steps: int
) -> Callable[[dict, dict, MaskTable, Batch, int], Accounts]:
    """The function (student params, teacher params, table, batch, step) to `Accounts`.

    The batch is masked as training masks it at `step`; dropout is off, so that what is seen is the
    terms and no noise.

    Raises:
      UserError: terms that do not fit the two models.
    """
    terms = losses.active(experiment.losses)
    for encoder in teachers.encoders(experiment, pair).values():
        losses.check_models(terms, pair.student, encoder)
    masking_key = purpose_key(experiment.seed, MASKING)

    def products(params: dict, teacher_params: dict, table: MaskTable, batch: Batch, step: Array):
        masked = masked_at(experiment, table, batch, masking_key, step)
        segment_ids = batch.get("segment_ids")
        counts = losses.counts(terms, batch["attention_mask"], masked, segment_ids)
        lessons = teachers.lessons(experiment, pair, teacher_params)

        def gradients(batch, masked, _):
            taught = taught_views(experiment, lessons, batch, masked)

            def gradient(chosen):
                """Of one term alone: the sums of the others are divided by infinity."""

                def loss(own):
                    return loss_of(
                        experiment,
                        terms,
                        pair,
                        merged(params, own),
                        batch,
                        masked,
                        taught,
                        progress=step / total_steps,
                        normalizers={
                            name: jnp.where(number == chosen, counts[name], jnp.inf)
                            for number, name in enumerate(terms)
                        },
                    )[0]

                return jax.grad(loss)(trained(experiment.student, params))

            # One after the other: only the gradients of all terms are kept, not what leads to them.
            return jax.lax.map(gradient, jnp.arange(len(terms)))

        parts = experiment.training.accumulate
        return _products(micro_batches.summed(gradients, (dict(batch), masked), parts))

    compiled = jax.jit(products)

    def accounts(params, teacher_params, table, batch, step):
        found = compiled(params, teacher_params, table, batch, jnp.int32(step))
        return Accounts(tuple(terms), jax.tree.map(np.asarray, found))

    return accounts


def group_of(name: str) -> str:
    """The layer group of a parameter: `encoder/layers_3/ffn/up/kernel` is of `layers_3`."""
    parts = name.split("/")
    return parts[1] if parts[0] == "encoder" else parts[0]


def _products(gradients: dict) -> dict[str, Float[Array, "T T"]]:
    """Scalar products [T, T] by group, of gradients whose leading axis is the term."""
    found: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        rest = tuple(range(1, leaf.ndim))
        own = jnp.tensordot(leaf, leaf, axes=(rest, rest), precision=jax.lax.Precision.HIGHEST)
        for group in (group_of(path_name(path)), ALL):
            found[group] = found.get(group, 0.0) + own
    return found
