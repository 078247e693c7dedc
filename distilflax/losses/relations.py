"""Self-attention relations (MiniLM and MiniLMv2): how each token's vectors relate to the others'.

Nothing of a relation depends on the width or the number of heads that it came from, so a student
of any width learns from any teacher, without a projection.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distilflax.losses.attention import probabilities_kl
from distilflax.models.attention import attention_scores
from distilflax.settings import Term


def relation_kl(
    student: Float[Array, "B L H K"],
    teacher: Float[Array, "B L G J"],
    visible: Bool[Array, "B 1 L L"],
    term: Term,
) -> Float[Array, "B L"]:
    """KL of the student's relation from the teacher's, mean over the relation heads.

        R = softmax(x x^T / sqrt(d)) for each relation head's vectors x [L, d]

    over the visible keys, where x are queries, keys or values; the algebra adds up those that the
    term names in `between`. MiniLM's value relation (Wang et al. 2020, arXiv:2002.10957, equations
    7 to 9) is `between=("values",)` with the models' own heads. MiniLMv2 (Wang et al. 2021,
    arXiv:2012.15828, equations 4 to 7, alpha 1 each) is all three, with `relation_heads` of its own
    (48 for a 12-head teacher) into which the heads, side by side, are cut anew.
    """
    scores = [_relation_scores(x, term.relation_heads) for x in (student, teacher)]
    return probabilities_kl(*scores, visible, term)


def _relation_scores(vectors, heads):
    if heads:
        vectors = vectors.reshape(*vectors.shape[:2], heads, -1)
    vectors = vectors.astype(jnp.float32)
    return attention_scores(vectors, vectors)
