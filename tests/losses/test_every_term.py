"""Every term of the registry, at its defaults and with its options set.

Values and gradients are held against plain formulas, one unit after the other, in float64 and on
the real tokens alone: that they agree says that padding changes nothing. A new term is met by all
of this as soon as it is in the registry; `FORMULAS` asks for its formula.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distilflax import losses, settings
from distilflax.batches.masking import Masked
from distilflax.settings import Term
from distilflax.train.sharding import make_mesh

LENGTHS = np.array([5, 4, 2, 5, 1, 3, 0, 5])  # a row of padding alone, and one of a single token
BATCH, LENGTH, WORDS, SLOTS, PROGRESS = 8, 5, 12, 2, 0.25
STUDENT = settings.Encoder(hidden_size=6, num_layers=2, num_heads=2)
TEACHER = settings.Encoder(hidden_size=6, num_layers=4, num_heads=2)
# As wide a teacher with as many heads as no term compares one by one.
WIDE = settings.Encoder(hidden_size=8, num_layers=4, num_heads=4)

DEFAULTS = {name: Term(weight=1.0) for name in losses.TERMS}
OPTIONS = {
    "kl": Term(1.0, temperature=3.0, temperature_by="confidence", positions="masked"),
    "reverse_kl": Term(1.0, temperature_schedule=((0.0, 4.0), (1.0, 2.0))),
    "jensen_shannon": Term(1.0, temperature=2.0, positions="masked"),
    "soft_cross_entropy": Term(
        1.0, temperature_schedule=((0.0, 2.0), (1.0, 4.0)), temperature_by="confidence"
    ),
    "dkd": Term(1.0, temperature=2.0, target_weight=0.5, non_target_weight=2.0),
    "mlm": Term(1.0, label_smoothing=0.1),
    "mse": Term(1.0, positions="masked"),
    "cosine": Term(1.0, positions="cls", layers="uniform_last", projection="per_layer"),
    "hidden_mse": Term(1.0, layers="embeddings,uniform_last", projection="shared"),
    "normalized_mse": Term(1.0, positions="pooled", layers="0:1", projection="shared"),
    "cka": Term(1.0, positions="masked", layers="0:1,final"),
    "attention_mse": Term(1.0, positions="masked", layers="uniform_last"),
    "attention_kl": Term(1.0, layers="0:2"),
    "attention_cosine": Term(1.0, layers="final:-2"),
    "relations": Term(1.0, layers="final:1", relation_heads=2, between=("queries", "values")),
    "sentence": Term(1.0, pooling="cls", projection="shared"),
    "similarity": Term(1.0, similarity="dot"),
    "info_nce": Term(1.0, temperature=0.5, projection="shared"),
    "margin_mse": Term(1.0, pooling="cls", similarity="dot"),
}
CHOICES = {"defaults": (DEFAULTS, TEACHER), "options": (OPTIONS, WIDE)}
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
EACH = [(choice, name) for choice, (chosen, _) in CHOICES.items() for name in chosen]


class Case(NamedTuple):
    student: dict
    teacher: dict
    ids: np.ndarray
    mask: np.ndarray
    masked: Masked


@cache
def case(choice):
    """Two models as arrays, in numpy and float32, and a batch."""
    rng = np.random.default_rng(0)
    chosen, teacher = CHOICES[choice]

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def model(encoder):
        width, heads, depth = encoder.hidden_size, encoder.num_heads, encoder.num_layers
        of_heads = (BATCH, LENGTH, heads, width // heads)
        return {
            "hidden_states": tuple(normal(BATCH, LENGTH, width) for _ in range(depth + 1)),
            # Two heads in every model: these terms compare head by head.
            "attention_scores": tuple(normal(BATCH, 2, LENGTH, LENGTH) for _ in range(depth)),
            **{
                name: tuple(normal(*of_heads) for _ in range(depth))
                for name in ("queries", "keys", "values")
            },
            "kernel": normal(width, width),
            "matrix": normal(WORDS, width),
            "bias": normal(WORDS),
        }

    student = model(STUDENT)
    projections = losses.init_projections(chosen, STUDENT, teacher, jax.random.key(0))
    student["projections"] = jax.tree.map(lambda x: normal(*x.shape), projections)
    mask = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.int32)
    ids = (rng.integers(1, WORDS, mask.shape) * mask).astype(np.int32)
    used = np.arange(SLOTS) < np.minimum(LENGTHS // 2, SLOTS)[:, None]
    positions = np.stack([rng.permutation(n)[:SLOTS] if n > 1 else [0, 0] for n in LENGTHS])
    positions = (positions * used).astype(np.int32)
    labels = np.take_along_axis(ids, positions, axis=1)
    masked = Masked(ids, positions, labels, used.astype(np.float32))
    return Case(student, model(teacher), ids, mask, masked)


def view(model):
    outputs = {k: v for k, v in model.items() if isinstance(v, tuple)}
    outputs["last_hidden_state"] = outputs["hidden_states"][-1]
    return losses.View(
        outputs,
        lambda hidden: jnp.tanh(hidden @ model["kernel"].astype(hidden.dtype)),
        model["matrix"],
        model["bias"],
        model.get("projections", {}),
    )


def step(choice):
    chosen, _ = CHOICES[choice]

    def gradient(case, normalizers):
        def loss(student):
            return losses.total_loss(
                chosen,
                view(student),
                view(case.teacher),
                *case[2:],
                progress=jnp.float32(PROGRESS),
                normalizers=normalizers,
                chunk_rows=7,
            )

        return jax.value_and_grad(loss, has_aux=True)(case.student)

    # Compiled in half the time: speed is not what is tested.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(gradient, compiler_options=quickly)


program = cache(step)


def run(choice, of_case, only=None):
    """((total, sums), gradient). The others' gradients are divided by infinity: one program
    serves every term alone."""
    chosen, _ = CHOICES[choice]
    arrays = jax.tree.map(jnp.asarray, of_case)
    counts = losses.counts(chosen, arrays.mask, arrays.masked)
    if only is not None:
        counts = {name: n if name == only else jnp.float32(jnp.inf) for name, n in counts.items()}
    return jax.tree.map(np.asarray, program(choice)(arrays, counts))


# --- the formulas


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
                temperature = np.interp(PROGRESS, *zip(*term.temperature_schedule, strict=True))
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
            for row, n in enumerate(LENGTHS)
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
                    formula(*(side[row, head, at, : LENGTHS[row]] for side in (s, t)))
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
                    x = x[row, : LENGTHS[row]].reshape(LENGTHS[row], heads, -1)
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
        both.append([last[row, : 1 if one else n].mean(0) for row, n in enumerate(LENGTHS) if n])
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


def plain(choice, name, student=None):
    """The values of all units of a term in float64."""
    float64 = case(choice)._replace(
        **{
            side: jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)
            for side, arrays in zip(
                ("student", "teacher"),
                (student or case(choice).student, case(choice).teacher),
                strict=True,
            )
        }
    )
    return list(FORMULAS[name](name, CHOICES[choice][0][name], float64))


def test_every_term_has_a_formula_and_options_to_be_tested_with():
    assert set(FORMULAS) == set(OPTIONS) == set(losses.TERMS)
    for chosen, teacher in CHOICES.values():
        losses.check(chosen, "lines")
    losses.check_models({k: v for k, v in OPTIONS.items() if "att" not in k}, STUDENT, WIDE)
    losses.check_models(DEFAULTS, STUDENT, TEACHER)


@pytest.mark.parametrize("choice, name", EACH)
def test_the_value_is_the_formula(choice, name):
    (_, sums), _ = run(choice, case(choice))
    expected = plain(choice, name)
    assert sums[name].count == len(expected)
    np.testing.assert_allclose(sums[name].sum, np.sum(expected), rtol=2e-5)


@pytest.mark.parametrize("choice, name", EACH)
def test_the_gradient_is_the_slope_of_the_formula(choice, name):
    (total, _), gradient = run(choice, case(choice), only=name)
    student = case(choice).student
    rng = np.random.default_rng(1)
    leaves, tree = jax.tree.flatten(student)
    for _ in range(2):
        direction = [rng.normal(size=leaf.shape) for leaf in leaves]
        ahead, behind = (
            np.mean(
                plain(
                    choice,
                    name,
                    tree.unflatten(
                        [
                            leaf.astype(np.float64) + h * d
                            for leaf, d in zip(leaves, direction, strict=True)
                        ]
                    ),
                )
            )
            for h in (1e-5, -1e-5)
        )
        slope = (ahead - behind) / 2e-5
        ours = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), direction, strict=True))
        np.testing.assert_allclose(ours, slope, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(total, np.mean(plain(choice, name)), rtol=2e-5)


# --- what must change nothing


def close(ours, expected):
    def equal(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * max(1.0, np.abs(b).max()))

    jax.tree.map(equal, ours, expected)


def each_token(function, model):
    """`model` with `function(array, axis)` for every axis that counts tokens."""
    changed = dict(model)
    for name in ("hidden_states", "queries", "keys", "values"):
        changed[name] = tuple(function(x, 1) for x in model[name])
    changed["attention_scores"] = tuple(
        function(function(x, 2), 3) for x in model["attention_scores"]
    )
    return changed


@pytest.mark.parametrize("choice", CHOICES)
def test_what_lies_at_padding_changes_nothing(choice):
    plain_case = case(choice)

    def spoilt(x, axis):
        shape = [1] * x.ndim
        shape[0], shape[axis] = plain_case.mask.shape
        return np.where(plain_case.mask.reshape(shape) > 0, x, np.float32(np.nan))

    garbage = plain_case._replace(
        student=each_token(spoilt, plain_case.student),
        teacher=each_token(spoilt, plain_case.teacher),
        ids=np.where(plain_case.mask > 0, plain_case.ids, 9),
    )
    expected, ours = run(choice, plain_case), run(choice, garbage)
    close(ours, expected)
    # Among it: nothing at padding has a gradient.
    assert not ours[1]["hidden_states"][-1][plain_case.mask == 0].any()


@pytest.mark.parametrize("choice", CHOICES)
def test_the_order_of_the_batch_changes_nothing(choice):
    order = np.random.default_rng(2).permutation(BATCH)
    shared = ("kernel", "matrix", "bias", "projections")

    def moved(model):
        return {
            name: part if name in shared else tuple(x[order] for x in part)
            for name, part in model.items()
        }

    here = case(choice)
    batch = jax.tree.map(lambda x: x[order], here[2:])
    (loss, sums), gradient = run(choice, here)
    close(
        run(choice, Case(moved(here.student), moved(here.teacher), *batch)),
        ((loss, sums), moved(gradient)),
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_the_mesh_changes_nothing(choice):
    expected = run(choice, case(choice))
    mesh = make_mesh(settings.Mesh(2, 2, 2))

    def placed(path, x):
        name = getattr(path[1], "key", "")
        spec = PartitionSpec(("data", "fsdp"))
        if path[0].name in ("student", "teacher") and not isinstance(path[-1], SEQUENCE):
            spec = PartitionSpec("tensor") if name == "matrix" else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        spread = jax.tree_util.tree_map_with_path(placed, case(choice))
        chosen, _ = CHOICES[choice]
        counts = losses.counts(chosen, spread.mask, spread.masked)
        close(jax.tree.map(np.asarray, step(choice)(spread, counts)), expected)


SEQUENCE = jax.tree_util.SequenceKey


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("choice", CHOICES)
def test_bfloat16_with_rows_of_padding_stays_finite(choice, rows):
    here, keep = case(choice), (np.arange(BATCH) < rows).astype(np.int32)[:, None]

    def half(path, x):
        exact = path[0].key in ("attention_scores", "kernel", "matrix", "bias", "projections")
        return x if exact else jnp.asarray(x, jnp.bfloat16)

    masked = here.masked._replace(
        positions=here.masked.positions * keep, weights=here.masked.weights * np.float32(keep)
    )
    halved = here._replace(
        student=jax.tree_util.tree_map_with_path(half, here.student),
        teacher=jax.tree_util.tree_map_with_path(half, here.teacher),
        mask=here.mask * keep,
        masked=masked,
    )
    (total, sums), gradient = run(choice, halved)
    assert total.dtype == np.float32
    assert np.isfinite(total)
    assert all(s.sum.dtype == np.float32 and np.isfinite(s.sum) for s in sums.values())
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
        assert rows or not np.asarray(leaf, np.float32).any()


@pytest.mark.parametrize("choice, name", EACH)
def test_a_perfect_student_has_nothing_to_learn(choice, name):
    if choice == "options" or name in ("mlm", "soft_cross_entropy", "info_nce"):
        pytest.skip("its least value is not zero")
    teacher = case(choice).teacher
    perfect = {
        key: tuple(part[j] for _, j in [(-1, 0), (0, 1), (1, 4)][: len(part)])
        if key == "hidden_states"
        else (part[1], part[3])
        if isinstance(part, tuple)
        else part
        for key, part in teacher.items()
    } | {"projections": {}}
    (total, _), gradient = run(choice, case(choice)._replace(student=perfect), only=name)
    np.testing.assert_allclose(total, 0, atol=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=2e-6)
