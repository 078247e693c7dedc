from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distilflax import losses
from distilflax.batches.masking import Masked
from distilflax.losses.total import multiplier
from distilflax.settings import Term

EVERY = {
    "kl": Term(weight=5.0, temperature=2.0),
    "mlm": Term(weight=2.0),
    "mse": Term(weight=0.01, positions="masked"),
    "cosine": Term(weight=1.0),
    "sentence": Term(weight=0.5),
}
MASKED_ONLY = {
    "kl": Term(weight=5.0, temperature=2.0, positions="masked"),
    "mlm": Term(weight=2.0),
    "cosine": Term(weight=1.0, positions="masked"),
}


def assert_trees_close(ours, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, expected)


def rows_of(case, rows):
    """The batch that these rows of `case` are."""

    def select(x):
        return jnp.asarray(np.asarray(x)[rows])

    student, teacher = (m | {"hidden": select(m["hidden"])} for m in case[:2])
    return type(case)(student, teacher, *jax.tree.map(select, case[2:]))


# --- the values, against loops in float64


def reference(chosen, case):
    """{name: (sum, count)}, one unit after the other."""
    float64 = jax.tree.map(lambda x: np.asarray(x, np.float64), case)
    student, teacher = float64.student, float64.teacher
    positions, weights = np.asarray(case.masked.positions), np.asarray(case.masked.weights)

    def log_softmax(x):
        return x - np.log(np.sum(np.exp(x)))

    def logits(model, row, at):
        return (
            np.tanh(model["hidden"][row, at] @ model["kernel"]) @ model["matrix"].T + model["bias"]
        )

    def cosine_distance(a, b):
        return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    rows = range(len(case.ids))
    real = [(row, at) for row in rows for at in np.flatnonzero(case.mask[row])]
    masked = [(row, at) for row in rows for at in positions[row][weights[row] > 0]]
    found = {}
    for name, term in chosen.items():
        units = masked if term.positions == "masked" or name == "mlm" else real
        if name == "sentence":
            means = [
                [model["hidden"][row][np.asarray(case.mask[row]) > 0].mean(0) for row in rows]
                for model in (student, teacher)
            ]
            values = [cosine_distance(a, b) for a, b in zip(*means, strict=True)]
        elif name == "cosine":
            values = [cosine_distance(student["hidden"][u], teacher["hidden"][u]) for u in units]
        elif name == "mlm":
            values = [-log_softmax(logits(student, *u))[int(case.ids[u])] for u in units]
        elif name == "mse":
            values = [np.sum((logits(student, *u) - logits(teacher, *u)) ** 2) for u in units]
        else:
            t = term.temperature
            pairs = [
                (log_softmax(logits(student, *u) / t), log_softmax(logits(teacher, *u) / t))
                for u in units
            ]
            values = [t * t * np.sum(np.exp(p) * (p - q)) for q, p in pairs]
        found[name] = (np.sum(values), len(values))
    return found


@pytest.mark.parametrize("chosen", [EVERY, MASKED_ONLY], ids=["every", "masked only"])
def test_sums_counts_and_the_one_division(case, gradient, chosen):
    (total, sums), _ = gradient(chosen, case)
    expected = reference(chosen, case)
    for name, (value, count) in expected.items():
        np.testing.assert_allclose(sums[name].sum, value, rtol=1e-5, err_msg=name)
        assert sums[name].count == count
    weighted = sum(chosen[name].weight * s / n for name, (s, n) in expected.items())
    np.testing.assert_allclose(total, weighted, rtol=1e-5)
    assert losses.counts(chosen, case.mask, case.masked) == {
        name: count for name, (_, count) in expected.items()
    }


# --- what must change nothing


def padded_with(case, value, extra=3):
    """`case` with longer rows, `value` in both models' padding and garbage in its ids."""

    def pad(x, garbage):
        longer = np.pad(np.asarray(x), ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
        longer[real == 0] = garbage
        return jnp.asarray(longer)

    real = np.pad(np.asarray(case.mask), ((0, 0), (0, extra)))
    student, teacher = (m | {"hidden": pad(m["hidden"], value)} for m in case[:2])
    return type(case)(student, teacher, pad(case.ids, 9), jnp.asarray(real), case.masked)


@pytest.mark.parametrize("value", [0.0, 1e4, jnp.nan], ids=str)
def test_padding_changes_nothing(case, gradient, value):
    (total, sums), grads = gradient(EVERY, case)
    (padded_total, padded_sums), padded = gradient(EVERY, padded_with(case, value))
    assert_trees_close((padded_total, padded_sums), (total, sums))
    at_padding = np.asarray(padded.pop("hidden"))
    hidden = grads.pop("hidden")
    assert_trees_close(padded, grads)
    np.testing.assert_allclose(at_padding[:, :6], hidden, rtol=1e-5, atol=1e-6)
    assert not at_padding[:, 6:].any() and not at_padding[:, :6][np.asarray(case.mask) == 0].any()


def test_unused_slots_change_nothing(case, gradient):
    expected = gradient(MASKED_ONLY, case)
    unused = case.masked.weights == 0
    # Position 0 is a real token of every row, with a label of its own.
    moved = case.masked._replace(labels=jnp.where(unused, 10, case.masked.labels))
    assert_trees_close(gradient(MASKED_ONLY, case._replace(masked=moved)), expected)
    wider = Masked(
        case.masked.input_ids,
        *(jnp.pad(x, ((0, 0), (0, 3))) for x in case.masked[1:]),
    )
    assert_trees_close(gradient(MASKED_ONLY, case._replace(masked=wider)), expected)


def test_the_order_of_the_rows_changes_nothing(case, gradient):
    (total, sums), grads = gradient(EVERY, case)
    order = np.random.default_rng(0).permutation(len(case.ids))
    (moved_total, moved_sums), moved_grads = gradient(EVERY, rows_of(case, order))
    grads["hidden"] = grads["hidden"][order]
    assert_trees_close(((moved_total, moved_sums), moved_grads), ((total, sums), grads))


def test_terms_together_are_the_sum_of_the_terms_alone(case, gradient):
    # Among them KL over real and masked-LM over masked positions, in one pass over all rows, and
    # masked-LM alone, which gathers its rows first.
    (total, sums), grads = gradient(EVERY, case)
    alone = [gradient({name: term}, case) for name, term in EVERY.items()]
    np.testing.assert_allclose(total, sum(t for (t, _), _ in alone), rtol=1e-5)
    for (_, its_sums), _ in alone:
        for name, its_sum in its_sums.items():
            assert_trees_close(sums[name], its_sum)
    added = jax.tree.map(lambda *leaves: sum(leaves), *(g for _, g in alone))
    assert_trees_close(grads, added, atol=1e-5)


def test_gathered_rows_equal_all_rows_with_zero_weights(case, gradient):
    everywhere = MASKED_ONLY | {"mse": Term(weight=1e-30)}
    assert_trees_close(
        gradient(everywhere, case)[1], gradient(MASKED_ONLY, case)[1], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("chunk_rows", [1, 1000])
def test_the_chunk_size_changes_nothing(case, gradient, chunk_rows):
    chosen = {"kl": EVERY["kl"], "mlm": EVERY["mlm"]}
    assert_trees_close(gradient(chosen, case, chunk_rows=chunk_rows), gradient(chosen, case))


# --- accumulation


def test_micro_batches_add_up_to_the_batch(case, gradient):
    (total, sums), whole = gradient(EVERY, case)
    normalizers = losses.counts(EVERY, case.mask, case.masked)
    exact, averaged = [], []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)):
        micro = rows_of(case, rows)
        exact.append(gradient(EVERY, micro, normalizers=normalizers))
        own = losses.counts(EVERY, micro.mask, micro.masked)
        averaged.append(gradient(EVERY, micro, normalizers=own))

    def added(micro_batches):
        parts = [grads for _, grads in micro_batches]
        rows = np.concatenate([g["hidden"] for g in parts])
        rest = [{k: v for k, v in g.items() if k != "hidden"} for g in parts]
        return jax.tree.map(lambda *x: sum(x), *rest) | {"hidden": rows}

    assert_trees_close(added(exact), whole, atol=2e-6)
    np.testing.assert_allclose(sum(t for (t, _), _ in exact), total, rtol=1e-5)
    together = jax.tree.map(lambda *x: sum(x), *(s for (_, s), _ in exact))
    assert_trees_close(together, sums)
    # The trap: the average of the micro-batches' averages is another gradient.
    mean = jax.tree.map(lambda x: x / 4, added(averaged))
    assert np.abs(mean["matrix"] - whole["matrix"]).max() > 0.01


# --- schedules and weights


def test_a_schedule_multiplies_the_weight(case, gradient):
    schedule = ((0.25, 0.0), (0.5, 2.0), (1.0, 1.0))
    term = Term(weight=2.0, schedule=schedule)
    at = [0.0, 0.25, 0.375, 0.5, 0.75, 1.0]
    expected = [0.0, 0.0, 1.0, 2.0, 1.5, 1.0]
    values = jax.jit(jax.vmap(partial(multiplier, term)))(jnp.asarray(at))
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert multiplier(Term(weight=3.0), jnp.asarray(0.3)) == 1

    constant, _ = gradient({"mlm": Term(weight=2.0)}, case)
    scheduled, grads = gradient({"mlm": term}, case, progress=0.75)
    np.testing.assert_allclose(scheduled[0], 1.5 * constant[0], rtol=1e-6)
    # The sum is the term's own: neither weight nor schedule enters a metric.
    np.testing.assert_allclose(scheduled[1]["mlm"].sum, constant[1]["mlm"].sum, rtol=1e-6)
    (_, off), grads = gradient({"mlm": term}, case)
    assert off["mlm"].sum > 0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_weights_scale_and_a_term_of_weight_zero_is_absent(case, gradient):
    (total, _), grads = gradient({"kl": Term(weight=1.0)}, case)
    (triple, sums), triple_grads = gradient(
        {"kl": Term(weight=3.0), "cosine": Term(weight=0.0)}, case
    )
    assert set(sums) == {"kl"}
    np.testing.assert_allclose(triple, 3 * total, rtol=1e-6)
    assert_trees_close(triple_grads, jax.tree.map(lambda g: 3 * g, grads))


def test_masked_lm_alone_needs_no_teacher(case, gradient):
    chosen = {"mlm": Term(weight=1.0), "kl": Term(weight=0.0)}
    assert_trees_close(gradient(chosen, case._replace(teacher=None)), gradient(chosen, case))


# --- gradients


def test_a_perfect_student_has_nothing_to_learn(case, gradient):
    chosen = {name: term for name, term in EVERY.items() if name != "mlm"}
    (total, _), grads = gradient(chosen, case._replace(student=case.teacher))
    np.testing.assert_allclose(total, 0, atol=1e-6)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-6), grads)


@pytest.mark.parametrize("name", EVERY)
def test_the_teacher_gets_no_gradient(case, make_view, name):
    def loss(student, teacher):
        return losses.total_loss(
            {name: EVERY[name]},
            make_view(student),
            make_view(teacher),
            *case[2:],
            progress=jnp.zeros(()),
        )[0]

    student, teacher = jax.jit(jax.grad(loss, (0, 1)))(case.student, case.teacher)
    assert any(np.asarray(g).any() for g in jax.tree.leaves(student))
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(teacher))


def test_the_gradient_is_the_slope(case, make_view):
    small = rows_of(case, slice(0, 2))
    teacher = small.teacher

    @jax.jit
    def loss(hidden, matrix):
        student = case.student | {"hidden": hidden, "matrix": matrix}
        return losses.total_loss(
            EVERY, make_view(student), make_view(teacher), *small[2:], progress=jnp.zeros(())
        )[0]

    check_grads(
        loss,
        (small.student["hidden"], small.student["matrix"]),
        order=1,
        modes=("rev",),
        eps=1e-2,
        atol=2e-2,
        rtol=2e-2,
    )


# --- numbers at the edge


@pytest.mark.parametrize("rows_left", [0, 3])
def test_bfloat16_with_rows_of_padding_stays_finite(case, gradient, rows_left):
    keep = jnp.asarray(np.arange(8) < rows_left, jnp.int32)[:, None]

    def half(model):
        return model | {"hidden": model["hidden"].astype(jnp.bfloat16)}

    masked = case.masked._replace(
        positions=case.masked.positions * keep, weights=case.masked.weights * keep
    )
    batch = case._replace(
        student=half(case.student),
        teacher=half(case.teacher),
        mask=case.mask * keep,
        masked=masked,
    )
    (total, sums), grads = gradient(EVERY, batch)
    assert total.dtype == jnp.float32
    assert all(s.sum.dtype == s.count.dtype == jnp.float32 for s in sums.values())
    assert np.isfinite(total)
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
    if not rows_left:
        assert total == 0
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_no_slots_at_all(case, gradient):
    none = Masked(case.masked.input_ids, *(x[:, :0] for x in case.masked[1:]))
    for chosen in (EVERY, MASKED_ONLY):
        (total, sums), grads = gradient(chosen, case._replace(masked=none))
        assert sums["mlm"] == (0, 0)
        assert np.isfinite(total)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
