"""BERT's masking as a pure function of (key, ids), drawn on the device at every step.

Nothing here is stored: a mask is recomputed from its key, so every epoch sees new masks and a
resumed run sees the old ones. Row i draws from fold_in(key, i), one counter a position, hence the
result depends neither on how many devices hold the batch nor on how far a row is padded.

Source: Devlin et al. 2018 (arXiv:1810.04805, section 3.1) for 15% and 80/10/10; Sanh et al. 2019
(arXiv:1910.01108) and its training code for positions drawn by rarity, count ** -0.7, with every
special token, [UNK] among them, at probability zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt32

from distilflax.errors import UserError
from distilflax.settings import Masking


class MaskTable(NamedTuple):
    """What masking must know of a vocabulary of V words, of which W are ordinary (not special).

    log_weight: log of how eagerly a position holding this word is drawn; -inf for special tokens.
    continuation: whether the word continues the one before it.
    ordinary: the ids from which random replacements are drawn, uniformly.
    mask_id: the id of [MASK].
    """

    log_weight: Float[Array, "V"]
    continuation: Bool[Array, "V"]
    ordinary: Int[Array, "W"]
    mask_id: Int[Array, ""]


class Masked(NamedTuple):
    """A masked batch; K slots a row, of which the first `weights.sum(1)` are in use.

    An unused slot has weight 0, position 0 and the label found there, so that it may be gathered
    and embedded like any other.
    """

    input_ids: Int[Array, "B L"]
    positions: Int[Array, "B K"]
    labels: Int[Array, "B K"]
    weights: Float[Array, "B K"]


def mask_table(
    special: Bool[np.ndarray, "V"],
    continuation: Bool[np.ndarray, "V"],
    mask_id: int,
    token_counts: Int[np.ndarray, "counted"],
    masking: Masking,
) -> MaskTable:
    """The table of a tokenizer's vocabulary, weighted by `token_counts` over the corpus.

    A word that the corpus does not hold weighs as one seen once, as in DistilBERT's code.

    Raises:
      UserError: counts of another vocabulary, no ordinary word at all, or whole-word masking with
        a vocabulary that does not mark continuations.
    """
    size = len(special)
    if len(token_counts) != size:
        raise UserError(
            f"the corpus counts {len(token_counts)} words but the tokenizer has {size}; prepare "
            "the corpus again with this tokenizer."
        )
    if special.all():
        raise UserError(
            f"all {size} words of the tokenizer's vocabulary are special tokens, which masking "
            "never draws; give a tokenizer that was trained on text."
        )
    if masking.whole_word and not continuation.any():
        raise UserError(
            "config.masking.whole_word needs a vocabulary that marks which pieces continue a word "
            "and this tokenizer's has none; set it to False."
        )
    # In logarithms, because count ** -power underflows to "never" where power is large.
    power = masking.power if masking.weighting == "rarity" else 0.0
    log_weight = -power * np.log(np.maximum(token_counts, 1))
    return MaskTable(
        log_weight=jnp.asarray(np.where(special, -np.inf, log_weight), jnp.float32),
        continuation=jnp.asarray(continuation),
        ordinary=jnp.asarray(np.flatnonzero(~special), jnp.int32),
        mask_id=jnp.asarray(mask_id, jnp.int32),
    )


def budget(tokens: int, rate: float) -> int:
    """How many of `tokens` ordinary tokens are drawn: rounded, at least 1 where there is any."""
    return max(1, round(rate * tokens)) if tokens and rate else 0


def mask_tokens(
    key: PRNGKeyArray,
    input_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
    table: MaskTable,
    masking: Masking,
) -> Masked:
    """Draws `budget` positions of a row without replacement, then masks, keeps or replaces them.

    Each row is masked with probability `masking.sequences`; the others stay whole.

    Pure and jittable with `masking` static; K = budget(L, rate). With `whole_word`, words are
    drawn and all their pieces go together; a word too long for what is left of the budget is
    passed over, so a row may stay below its budget but never above.

    `key` must be a threefry key (JAX's default): other generators' bits depend on the length.
    """
    length = input_ids.shape[1]
    slots = budget(length, masking.rate)
    budgets = jnp.asarray([budget(n, masking.rate) for n in range(length + 1)], jnp.int32)

    def mask_row(row, ids_L, real_L):
        # Three words of bits a position, from one counter: a longer row only adds to them.
        row_key = jax.random.fold_in(key, row)
        bits_Lx3 = jax.random.bits(row_key, (3 * length,), jnp.uint32).reshape(length, 3)
        noise_bits_L, action_bits_L, word_bits_L = bits_Lx3.T

        log_weight_L = jnp.where(real_L > 0, table.log_weight[ids_L], -jnp.inf)
        chosen = jax.random.uniform(jax.random.fold_in(row_key, 0)) < masking.sequences
        number = jnp.where(chosen, budgets[jnp.isfinite(log_weight_L).sum()], 0)
        # Gumbel top-k: the order of log w + Gumbel is that of successive draws, each in proportion
        # to the w that are left (Efraimidis & Spirakis 2006, in logarithms).
        noise_L = -jnp.log(-jnp.log(_uniform(noise_bits_L)))
        if masking.whole_word:
            continues_L = table.continuation[ids_L]
            score_L, number = _draw_words(log_weight_L, noise_L, continues_L, number)
        else:
            score_L = log_weight_L + noise_L
        # A sort, not top_k: XLA gathers the whole batch onto every device for a top_k.
        drawn_K = jnp.argsort(-score_L)[:slots]
        used_K = jnp.arange(slots) < number
        labels_K = ids_L[jnp.where(used_K, drawn_K, 0)]

        action_K = _uniform(action_bits_L)[drawn_K]
        # The remainder favours low ids by W / 2**32, some millionths: below any that could be seen.
        word_K = table.ordinary[word_bits_L[drawn_K] % table.ordinary.shape[0]]
        new_K = jnp.select(
            [action_K < masking.mask, action_K < masking.mask + masking.random],
            [table.mask_id, word_K],
            labels_K,
        )
        # Unused slots write beyond the row, where "drop" forgets them.
        masked_L = ids_L.at[jnp.where(used_K, drawn_K, length)].set(new_K, mode="drop")
        return Masked(masked_L, jnp.where(used_K, drawn_K, 0), labels_K, used_K.astype(jnp.float32))

    return jax.vmap(mask_row)(jnp.arange(input_ids.shape[0]), input_ids, attention_mask)


def at_positions(
    x: Shaped[Array, "B L *rest"], positions: Int[Array, "B K"]
) -> Shaped[Array, "B K *rest"]:
    """`x` at the drawn positions of each row: what a masked-only loss gathers before the head."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="clip"))(x, positions)


def _uniform(bits: UInt32[Array, "L"]) -> Float[Array, "L"]:
    """Uniform in the open interval (0, 1): the middles of 2**23 steps, all exact in float32."""
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def _draw_words(
    log_weight_L: Float[Array, "L"],
    noise_L: Float[Array, "L"],
    continues_L: Bool[Array, "L"],
    number: Int[Array, ""],
) -> tuple[Float[Array, "L"], Int[Array, ""]]:
    """Scores that are finite on the pieces of drawn words alone, and how many pieces those are.

    A word lives at the position of its first piece and is as rare as its rarest one. Words are
    visited in the order of their scores and taken where all pieces still fit in `number`.
    """
    length = log_weight_L.shape[0]
    at_L = jnp.arange(length)
    piece_L = jnp.isfinite(log_weight_L)
    # A continuation after a special token begins a word: its true beginning was cut away.
    follows_L = jnp.pad(piece_L[:-1], (1, 0))
    start_L = jax.lax.cummax(jnp.where(continues_L & follows_L, 0, at_L))
    pieces_L = jnp.zeros(length, jnp.int32).at[start_L].add(piece_L.astype(jnp.int32))
    rarest_L = jnp.full(length, -jnp.inf).at[start_L].max(log_weight_L)
    order_L = jnp.argsort(-(rarest_L + noise_L))

    def visit(left, pieces):
        taken = (pieces > 0) & (pieces <= left)
        return left - jnp.where(taken, pieces, 0), taken

    # A visit is a subtraction: unrolled, because it is the loop's own overhead that costs.
    left, taken_L = jax.lax.scan(visit, number, pieces_L[order_L], unroll=8)
    taken_L = jnp.zeros(length, bool).at[order_L].set(taken_L)
    drawn_L = taken_L[start_L] & piece_L
    # Scores fall from left to right: slots then fill in the same order however long the row is.
    return jnp.where(drawn_L, -at_L.astype(jnp.float32), -jnp.inf), number - left
