"""A teacher kept as a few of its words: what is unbiased, what is not, and by the plain formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.losses import Words, logits, total_loss, words
from distilflax.settings import Term

VOCABULARY, DRAWS, NUMBER = 11, 4000, 5


@pytest.fixture(scope="module")
def pair():
    """(student, teacher) logits of one position."""
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(2 * rng.normal(size=VOCABULARY), jnp.float32) for _ in range(2))


def loss_on(words_of_teacher, student):
    """KL of one position against words [n]."""
    one = jax.tree.map(lambda x: x[None], words_of_teacher)
    return words.kl(student[None], one, jnp.zeros(1, jnp.int32), Term())[0]


@pytest.fixture(scope="module")
def exact(pair):
    """(value, gradient) with the whole distribution, and with the likeliest words and one bucket.

    One program for both: operation by operation, compiling them would take most of the time.
    """

    @jax.jit
    def both(student, teacher):
        def dense(student):
            return logits.kl(student[None], teacher[None], jnp.zeros(1, jnp.int32), Term())[0]

        kept = words.of_likeliest(*words.likeliest(teacher, NUMBER))
        return tuple(jax.value_and_grad(loss)(student) for loss in (dense, partial(loss_on, kept)))

    return jax.tree.map(np.asarray, both(*pair))


@pytest.fixture(scope="module")
def draws(pair):
    """{systematic: (values [DRAWS], gradients [DRAWS, V])} of many independent draws."""
    student, teacher = pair

    @partial(jax.jit, static_argnums=1)
    def drawn(keys, systematic):
        def one(key):
            kept = words.of_samples(*words.sampled(key, teacher, NUMBER, systematic))
            return jax.value_and_grad(partial(loss_on, kept))(student)

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(0), DRAWS)
    return {s: jax.tree.map(np.asarray, drawn(keys, s)) for s in (False, True)}


def standard_errors(sample, expected):
    """How many of them the mean is from what is expected."""
    error = sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
    return np.abs(sample.mean(axis=0) - expected) / np.maximum(error, 1e-7)


@pytest.mark.parametrize("systematic", [False, True])
def test_drawn_words_give_the_loss_and_its_gradient_in_expectation(exact, draws, systematic):
    (value, gradient), _ = exact
    values, gradients = draws[systematic]
    assert standard_errors(values, value) < 4
    # Eleven components: four standard errors are left by chance once in a thousand times.
    assert standard_errors(gradients, gradient).max() < 4.5
    assert gradients.std(axis=0).max() > 0.01, "no draw differs from another"


def test_draws_that_are_spread_evenly_are_less_noisy(draws):
    apart, spread = (draws[s][1].var(axis=0).sum() for s in (False, True))
    assert spread < 0.5 * apart


def test_the_likeliest_words_and_one_bucket_are_biased(exact, draws):
    (dense_value, dense_gradient), (value, gradient) = exact
    # Not by chance: as a draw, it would be far outside of what an unbiased one's mean may be.
    assert standard_errors(draws[False][1], gradient).max() > 10
    assert np.abs(gradient - dense_gradient).max() > 0.01
    assert value < dense_value, "fewer outcomes, and yet no less to tell them apart by"


def test_the_likeliest_words_and_one_bucket_are_what_they_say(pair, exact):
    student, teacher = (np.asarray(x, np.float64) for x in pair)
    p, q = (np.exp(x) / np.exp(x).sum() for x in (teacher, student))
    top = np.argsort(-p)[:NUMBER]
    p, q = (np.append(x[top], 1 - x[top].sum()) for x in (p, q))
    np.testing.assert_allclose(exact[1][0], np.sum(p * np.log(p / q)), rtol=1e-5)


def test_probabilities_that_were_rounded_add_up_again(pair):
    ids, p, rest = words.likeliest(pair[1], NUMBER)
    kept = words.of_likeliest(ids, p.astype(jnp.float16).astype(jnp.float32), rest)
    np.testing.assert_allclose(kept.weights.sum() + kept.rest, 1.0, atol=1e-6)


def test_a_word_of_no_probability_is_never_drawn():
    some = jnp.where(jnp.arange(VOCABULARY) % 2, 0.0, -jnp.inf)
    for systematic in (False, True):
        ids, _ = words.sampled(jax.random.key(1), some, 64, systematic)
        assert set(np.asarray(ids) % 2) == {1}


@pytest.mark.parametrize("positions", ["masked", "real"])
def test_all_words_are_the_whole_distribution(case, make_view, positions):
    """Through the algebra: rows, chunks, temperature, and a term without a teacher beside it."""
    terms = {
        "kl": Term(weight=2.0, temperature=3.0, positions=positions),
        "soft_cross_entropy": Term(weight=0.5, temperature=3.0, positions=positions),
        "mlm": Term(weight=1.0),
    }
    view = make_view(case.teacher)
    their_logits = (view.transform(case.teacher["hidden"]) @ view.matrix.T + view.bias) / 3.0
    p = jax.nn.softmax(their_logits)
    if positions == "masked":
        p = jax.vmap(lambda row, at: row[at])(p, case.masked.positions)
    ids = jnp.broadcast_to(jnp.arange(p.shape[-1]), p.shape)
    kept = Words(ids, p, jnp.sum(p * jnp.log(p), axis=-1))

    def loss(student, teacher):
        return total_loss(
            terms,
            make_view(student),
            teacher,
            case.ids,
            case.mask,
            case.masked,
            progress=jnp.zeros(()),
            chunk_rows=7,
        )

    run = jax.value_and_grad(loss, has_aux=True)
    whole, few = (
        jax.jit(lambda student, t=teacher: run(student, t))(case.student)
        for teacher in (view, view._replace(transform=None, words=kept))
    )
    # Sums over other orders: a softmax here, its logarithm there.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), few, whole)
