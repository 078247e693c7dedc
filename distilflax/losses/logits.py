"""Terms on logits: one value for each row, a row being one position's distribution over words.

Each is a pure function of student logits [N, V], teacher logits [N, V], labels [N] and the term's
settings. The algebra (`rows.py`) sums over the rows that the term's positions select and divides
by their number, so that "batchmean" over tokens is what every one of them comes to.

No function knows of a temperature: for those that may have one, the algebra takes

    T^2 f(student / T, teacher / T)                                        (`at_temperature`)

T^2 keeps the gradient's size independent of T (Hinton et al. 2015, section 2.1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distilflax.settings import Term


def kl(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """KL divergence of the student from the teacher (Hinton et al. 2015, arXiv:1503.02531).

        sum_v p_v (log p_v - log q_v),  p = softmax(teacher), q = softmax(student)

    With the algebra's temperature it is DistilBERT's `loss_ce`
    (`KLDivLoss(reduction="batchmean") * T**2` over the selected tokens). Elsewhere: without T^2
    (TextBrewer) multiply their weight by 1 / T^2; `reduction="mean"` divides by V as well.
    """
    del labels, term
    # The two maxima and normalisers are the only reductions: the rest of the row stays one loop.
    log_ratio_constant = jax.nn.logsumexp(student, axis=-1) - jax.nn.logsumexp(teacher, axis=-1)
    probabilities = jax.nn.softmax(teacher, axis=-1)
    return jnp.sum(probabilities * (teacher - student), axis=-1) + log_ratio_constant


def reverse_kl(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """KL divergence of the teacher from the student, sum_v q_v (log q_v - log p_v).

    It seeks modes where `kl` covers them (Gu et al. 2023, MiniLLM, arXiv:2306.08543, section 2).
    """
    return kl(teacher, student, labels, term)


def jensen_shannon(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """Jensen-Shannon divergence, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2.

    Symmetric, and at most log 2 (Lin 1991; for distillation Wen et al. 2023, arXiv:2307.15190).
    """
    del labels, term
    log_p, log_q = jax.nn.log_softmax(teacher, axis=-1), jax.nn.log_softmax(student, axis=-1)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    divergences = jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)
    return 0.5 * jnp.sum(divergences, axis=-1)


def soft_cross_entropy(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """Cross-entropy with the teacher's distribution, -sum_v p_v log q_v (Hinton et al. 2015).

    Its gradient is that of `kl`; the value is larger by the teacher's entropy. TextBrewer's
    `kd_ce_loss` has no T^2; TinyBERT's `soft_cross_entropy` has none and averages over the words.
    """
    del labels, term
    expected = jnp.sum(jax.nn.softmax(teacher, axis=-1) * student, axis=-1)
    return jax.nn.logsumexp(student, axis=-1) - expected


def decoupled(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """Decoupled distillation (Zhao et al. 2022, DKD, arXiv:2203.08679, equation 7).

        alpha KL([p_t, 1 - p_t] || [q_t, 1 - q_t]) + beta KL(p without t || q without t)

    with t the true word and both distributions of the second part renormalised; alpha is
    `target_weight`, beta `non_target_weight`. With alpha 1 and beta 1 - p_t it would be `kl`.
    """
    is_label = jnp.arange(student.shape[-1]) == labels[:, None]
    (log_p, log_not_p, rest_p), (log_q, log_not_q, rest_q) = (
        _split_off(logits, labels, is_label) for logits in (teacher, student)
    )
    target = jnp.exp(log_p) * (log_p - log_q) + jnp.exp(log_not_p) * (log_not_p - log_not_q)
    others = jnp.sum(jnp.where(is_label, 0.0, jnp.exp(rest_p) * (rest_p - rest_q)), axis=-1)
    return term.target_weight * target + term.non_target_weight * others


def _split_off(logits, labels, is_label):
    """log p(label), log(1 - p(label)), and the log of the distribution over the other words."""
    others = jnp.where(is_label, jnp.finfo(logits.dtype).min, logits)
    all_words, all_others = (jax.nn.logsumexp(x, axis=-1) for x in (logits, others))
    label = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return label - all_words, all_others - all_words, others - all_others[:, None]


def cross_entropy(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"] | None,
    labels: Int[Array, " N"],
    term: Term | None = None,
) -> Float[Array, " N"]:
    """Masked-LM cross-entropy in nats (Devlin et al. 2018), with e = `label_smoothing`.

        -(1 - e) log q_label - e / V sum_v log q_v,  q = softmax(student)

    Smoothing as in Szegedy et al. 2016 (arXiv:1512.00567, section 7) and torch's
    `CrossEntropyLoss(label_smoothing=e)`.
    """
    del teacher
    chosen = jnp.take_along_axis(student, labels[:, None], axis=-1)[:, 0]
    smoothing = 0.0 if term is None else term.label_smoothing
    if smoothing:
        chosen = (1.0 - smoothing) * chosen + smoothing * jnp.mean(student, axis=-1)
    return jax.nn.logsumexp(student, axis=-1) - chosen


def squared_error(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """sum_v (student - teacher)^2, the sum over words as in DistilBERT's `alpha_mse`.

    Implementations that average over the words (`MSELoss()` of the logits) give 1/V of this.
    """
    del labels, term
    return jnp.sum(jnp.square(student - teacher), axis=-1)


def at_temperature(
    function: Callable,
    temperature: float | Float[Array, ""],
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"],
    labels: Int[Array, " N"],
    term: Term,
) -> Float[Array, " N"]:
    """T^2 f(student / T, teacher / T), with T one number or, by confidence, one for each row.

    By confidence T_n = 1 + (T - 1) max_v p_nv, p = softmax(teacher): only where the teacher is sure
    is there anything to be brought out by softening. (A temperature for each sample: NormKD, Chi
    et al. 2023, arXiv:2308.00520, which takes it from the spread of the teacher's logits.)
    """
    if term.temperature_by == "confidence":
        sure = jnp.max(jax.nn.softmax(teacher, axis=-1), axis=-1)
        temperature = jax.lax.stop_gradient(1.0 + (temperature - 1.0) * sure)[:, None]
    values = function(student / temperature, teacher / temperature, labels, term)
    return jnp.reshape(jnp.square(temperature), -1) * values


def correct(
    student: Float[Array, "N V"],
    teacher: Float[Array, "N V"] | None,
    labels: Int[Array, " N"],
) -> Float[Array, " N"]:
    """1 where the likeliest word is the label: a metric, without a gradient."""
    del teacher
    return (jnp.argmax(student, axis=-1) == labels).astype(jnp.float32)


def agreement(
    student: Float[Array, "N V"], teacher: Float[Array, "N V"], labels: Int[Array, " N"]
) -> Float[Array, " N"]:
    """1 where student and teacher have the same likeliest word: a metric, without a gradient."""
    del labels
    return (jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)).astype(jnp.float32)
