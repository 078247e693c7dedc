"""Values and gradients of every term against plain formulas.

One unit after the other, in float64, and on the real tokens alone: that they agree says that
padding changes nothing. `FORMULAS` asks for the formula of every term that the registry has.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from distilflax import losses

# What the layer maps of the tests mean, student of 2 layers and teacher of 4; -1 the embeddings.
PAIRS = {
    "final": [(1, 3)],
    "uniform_last": [(0, 1), (1, 3)],
    "embeddings,uniform_last": [(-1, -1), (0, 1), (1, 3)],
    "0:1": [(0, 1)],
    "0:1,final": [(0, 1), (1, 3)],
    "0:2": [(0, 2)],
    "final:-2": [(1, 2)],
    "final:1": [(1, 1)],
}


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def kl(p, q):
    return np.sum(p * np.log(p / q))


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def decoupled(p, q, label, term):
    def halves(p):
        return np.array([p[label], 1 - p[label]]), np.delete(p, label) / (1 - p[label])

    (target_p, rest_p), (target_q, rest_q) = halves(p), halves(q)
    return term.target_weight * kl(target_p, target_q) + term.non_target_weight * kl(rest_p, rest_q)


def soft(formula):
    """A term on the distributions p (teacher) and q (student) of one position."""

    def values(name, term, case):
        for row, at in tokens(name, term, case):
            t, s = (logits(model, row, at) for model in (case.teacher, case.student))
            temperature = term.temperature
            if term.temperature_schedule:
                temperature = np.interp(
                    case.progress, *zip(*term.temperature_schedule, strict=True)
                )
            if term.temperature_by == "confidence":
                temperature = 1 + (temperature - 1) * softmax(t).max()
            p, q = softmax(t / temperature), softmax(s / temperature)
            yield temperature**2 * formula(p, q, case.ids[row, at], term)

    return values


def logits(model, row, at):
    hidden = model["hidden_states"][-1][row, at]
    return np.tanh(hidden @ model["kernel"]) @ model["matrix"].T + model["bias"]


def tokens(name, term, case):
    """(row, position) of every token that counts."""
    if name == "mlm" or term.positions == "masked":
        rows, slots = np.nonzero(case.masked.weights)
        return list(zip(rows, case.masked.positions[rows, slots], strict=True))
    return list(zip(*np.nonzero(case.mask), strict=True))


def hard(name, term, case):
    e = term.label_smoothing
    for row, at in tokens(name, term, case):
        log_q = np.log(softmax(logits(case.student, row, at)))
        yield -(1 - e) * log_q[case.ids[row, at]] - e * log_q.mean()


def squared_logits(name, term, case):
    for row, at in tokens(name, term, case):
        yield np.sum((logits(case.student, row, at) - logits(case.teacher, row, at)) ** 2)


def states(name, term, case):
    """For each unit the pairs of vectors, one for each pair of layers."""
    if term.positions in ("cls", "pooled"):
        at = {
            row: slice(0, 1) if term.positions == "cls" else slice(0, n)
            for row, n in enumerate(case.lengths)
            if n
        }
    else:
        at = [(row, slice(i, i + 1)) for row, i in tokens(name, term, case)]
    for row, which in dict(at).items() if isinstance(at, dict) else at:
        yield [
            (
                projected(
                    case.student["hidden_states"][i + 1][row, which].mean(0), name, term, case, k
                ),
                case.teacher["hidden_states"][j + 1][row, which].mean(0),
            )
            for k, (i, j) in enumerate(PAIRS[term.layers])
        ]


def projected(vector, name, term, case, pair):
    if term.projection == "none":
        return vector
    learned = case.student["projections"][name]
    learned = learned["shared" if term.projection == "shared" else f"pair_{pair}"]
    return vector @ learned["kernel"] + learned["bias"]


def on_states(formula):
    def values(name, term, case):
        for pairs in states(name, term, case):
            yield np.mean([formula(s, t) for s, t in pairs])

    return values


def cka(name, term, case):
    distances = []
    for pair in zip(*states(name, term, case), strict=True):
        x, y = (np.stack(side) - np.mean(side, axis=0) for side in zip(*pair, strict=True))
        cross, own = np.sum((x.T @ y) ** 2), np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2)
        distances.append(1 - cross / np.sqrt(own))
    yield np.mean(distances)


def on_attention(formula):
    """A term on what one head of one query makes of the real keys."""

    def values(name, term, case):
        for row, at in tokens(name, term, case):
            yield np.mean(
                [
                    formula(*(side[row, head, at, : case.lengths[row]] for side in (s, t)))
                    for i, j in PAIRS[term.layers]
                    for s, t in [
                        (case.student["attention_scores"][i], case.teacher["attention_scores"][j])
                    ]
                    for head in range(2)
                ]
            )

    return values


def relation(name, term, case):
    heads = term.relation_heads or 2
    for row, at in tokens(name, term, case):
        total = 0.0
        for vectors in term.between:
            for i, j in PAIRS[term.layers]:
                related = []
                for x in (case.teacher[vectors][j], case.student[vectors][i]):
                    x = x[row, : case.lengths[row]].reshape(case.lengths[row], heads, -1)
                    scores = np.einsum("hk,mhk->hm", x[at], x) / np.sqrt(x.shape[-1])
                    related.append([softmax(head) for head in scores])
                total += np.mean([kl(p, q) for p, q in zip(*related, strict=True)])
        yield total / len(PAIRS[term.layers])


def sentences(name, term, case):
    """[S, D] vectors of the sequences that are there: the student's and the teacher's."""
    both = []
    for model in (case.student, case.teacher):
        last = model["hidden_states"][-1]
        one = term.pooling == "cls"
        both.append(
            [last[row, : 1 if one else n].mean(0) for row, n in enumerate(case.lengths) if n]
        )
    return [projected(s, name, term, case, 0) for s in both[0]], both[1]


def in_batch(formula):
    """A term on the matrices of similarities: of the student, of the teacher, and across."""

    def values(name, term, case):
        similar = cosine if term.similarity == "cosine" else np.dot
        student, teacher = sentences(name, term, case)
        matrices = [
            np.array([[similar(x, y) for y in b] for x in a])
            for a, b in ((student, student), (teacher, teacher), (student, teacher))
            if len(a[0]) == len(b[0])
        ]
        for i in range(len(student)):
            yield formula(i, matrices, term)

    return values


def structure(i, matrices, term):
    return np.mean(np.delete((matrices[0] - matrices[1])[i] ** 2, i))


def contrast(i, matrices, term):
    return -np.log(softmax(matrices[2][i] / term.temperature)[i])


def margins(i, matrices, term):
    student, teacher = (matrix[i] for matrix in matrices[:2])
    positive = max((j for j in range(len(teacher)) if j != i), key=lambda j: teacher[j])
    return np.mean(
        [
            ((student[positive] - student[n]) - (teacher[positive] - teacher[n])) ** 2
            for n in range(len(teacher))
            if n not in (i, positive)
        ]
    )


def sentence(name, term, case):
    for s, t in zip(*sentences(name, term, case), strict=True):
        yield 1 - cosine(s, t)


def unit_length(x):
    return x / np.linalg.norm(x)


FORMULAS = {
    "kl": soft(lambda p, q, *_: kl(p, q)),
    "reverse_kl": soft(lambda p, q, *_: kl(q, p)),
    "jensen_shannon": soft(lambda p, q, *_: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2),
    "soft_cross_entropy": soft(lambda p, q, *_: -np.sum(p * np.log(q))),
    "dkd": soft(decoupled),
    "mlm": hard,
    "mse": squared_logits,
    "cosine": on_states(lambda s, t: 1 - cosine(s, t)),
    "hidden_mse": on_states(lambda s, t: np.mean((s - t) ** 2)),
    "normalized_mse": on_states(lambda s, t: np.sum((unit_length(s) - unit_length(t)) ** 2)),
    "cka": cka,
    "attention_mse": on_attention(lambda s, t: np.mean((s - t) ** 2)),
    "attention_kl": on_attention(lambda s, t: kl(softmax(t), softmax(s))),
    "attention_cosine": on_attention(lambda s, t: 1 - cosine(softmax(s), softmax(t))),
    "relations": relation,
    "sentence": sentence,
    "similarity": in_batch(structure),
    "info_nce": in_batch(contrast),
    "margin_mse": in_batch(margins),
}


def plain(every, choice, name, student=None):
    """The values of all units of a term in float64; `student` instead of the case's own."""
    case = every.case(choice)
    exact = jax.tree.map(
        lambda x: np.asarray(x, np.float64),
        {"student": student or case.student, "teacher": case.teacher},
    )
    seen = SimpleNamespace(**case._asdict() | exact, lengths=every.lengths, progress=every.progress)
    return list(FORMULAS[name](name, every.choices[choice][0][name], seen))


def test_every_term_has_a_formula_and_options_to_be_tested_with(every):
    (defaults, teacher), (options, wide) = every.choices.values()
    assert set(FORMULAS) == set(options) == set(losses.TERMS)
    losses.check(options, "lines")
    losses.check_models(defaults, every.student, teacher)
    by_head = {name for name, kind in losses.TERMS.items() if kind.over == "scores"}
    losses.check_models({n: t for n, t in options.items() if n not in by_head}, every.student, wide)


each = pytest.mark.parametrize("name", losses.TERMS)
both = pytest.mark.parametrize("choice", ["defaults", "options"])


@each
@both
def test_the_value_is_the_formula(every, choice, name):
    (_, sums), _ = every.run(choice, every.case(choice))
    expected = plain(every, choice, name)
    assert sums[name].count == len(expected)
    np.testing.assert_allclose(sums[name].sum, np.sum(expected), rtol=2e-5)


@each
@both
def test_the_gradient_is_the_slope_of_the_formula(every, choice, name):
    case = every.case(choice)
    (total, _), gradient = every.run(choice, case, only=name)
    np.testing.assert_allclose(total, np.mean(plain(every, choice, name)), rtol=2e-5)
    rng = np.random.default_rng(1)
    for _ in range(2):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), case.student)

        def along(h, direction=direction):
            moved = jax.tree.map(lambda x, d: x.astype(np.float64) + h * d, case.student, direction)
            return np.mean(plain(every, choice, name, moved))

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        products = jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=2e-4, atol=2e-5)


LEAST_IS_NOT_ZERO = ("mlm", "soft_cross_entropy", "info_nce")


@pytest.mark.parametrize("name", [name for name in losses.TERMS if name not in LEAST_IS_NOT_ZERO])
def test_a_perfect_student_has_nothing_to_learn(every, name):
    case = every.case("defaults")
    perfect = dict(case.teacher)
    for output, layers in case.teacher.items():
        if isinstance(layers, tuple):
            # As many layers as the student has, the teacher's last one last.
            perfect[output] = layers[-len(case.student[output]) :]
    perfect["projections"] = {}
    (total, _), gradient = every.run("defaults", case._replace(student=perfect), only=name)
    np.testing.assert_allclose(total, 0, atol=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=2e-6)
