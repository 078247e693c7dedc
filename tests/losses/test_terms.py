import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from distilflax import losses, settings
from distilflax.errors import UserError
from distilflax.losses import terms
from distilflax.losses.layers import layer_pairs
from distilflax.settings import Encoder, Term


def test_active_terms_are_those_of_positive_weight_in_order():
    chosen = {"mlm": Term(weight=2.0), "kl": Term(weight=0.0), "cosine": Term(weight=1.0)}
    assert list(losses.active(chosen)) == ["mlm", "cosine"]


@pytest.mark.parametrize(
    "chosen, teacher, heads",
    [
        (("mlm",), False, (True, False)),
        (("kl", "mlm"), True, (True, True)),
        (("cosine", "sentence"), True, (False, False)),
        (("mlm", "cosine"), True, (True, False)),
        (("mse",), True, (True, True)),
    ],
)
def test_who_is_needed_for_what(chosen, teacher, heads):
    chosen = {name: Term(weight=1.0) for name in chosen}
    idle = {name: Term() for name in losses.TERMS if name not in chosen}
    assert losses.needs_teacher(chosen | idle) == teacher
    assert losses.needs_head(chosen | idle) == heads


def test_the_papers_losses_pass():
    paper = {
        "kl": Term(weight=5.0, temperature=2.0),
        "mlm": Term(weight=2.0),
        "cosine": Term(weight=1.0, schedule=((0.0, 1.0), (1.0, 0.0))),
        "sentence": Term(weight=0.0),
    }
    losses.check(paper, "packed")
    losses.check(paper | {"sentence": Term(weight=1.0, pooling="cls")}, "lines")


MISTAKES = [
    ({"klx": Term(weight=1.0)}, r"config\.losses\.klx is not a term; .*did you mean 'kl'\?"),
    (
        {"mlm": Term(weight=1.0, temperature=2.0)},
        r"config\.losses\.mlm\.temperature is set, but mlm does not read it; .* weight, schedule",
    ),
    ({"mlm": Term(weight=1.0, positions="masked")}, r"config\.losses\.mlm\.positions is set"),
    ({"kl": Term(weight=1.0, pooling="cls")}, r"its options are .*temperature, .*positions"),
    ({"kl": Term(weight=1.0, schedule=((0.5, 1.0), (0.1, 1.0)))}, r"kl\.schedule .* rising"),
    ({"kl": Term(weight=1.0, schedule=((0.0, -1.0),))}, r"kl\.schedule .* no multiplier below 0"),
    ({"kl": Term(1.0, schedule=((0.0, 1.0), (1000.0, 0.0)))}, r"none below 0 or above 1, and no"),
    ({"kl": Term(), "mlm": Term()}, r"no term of positive weight; give one of kl, "),
    ({}, r"no term of positive weight"),
    ({"kl": Term(1.0, positions="cls")}, r"kl\.positions is 'cls'; choose from real, masked"),
    ({"kl": Term(1.0, layers="0:1")}, r"kl\.layers is set, but kl does not read it"),
    ({"attention_kl": Term(1.0, projection="shared")}, r"attention_kl\.projection is set, but"),
    ({"relations": Term(1.0, between=("query",))}, r"between names 'query'; .*'queries'\?"),
    ({"relations": Term(1.0, between=())}, r"between names nothing; choose from queries, keys"),
    (
        {"kl": Term(1.0, temperature_schedule=((0.0, 0.0),))},
        r"kl\.temperature_schedule .* no temperature below 0\.001",
    ),
]


@pytest.mark.parametrize("chosen, message", MISTAKES)
def test_a_choice_that_cannot_run_is_refused(chosen, message):
    with pytest.raises(UserError, match=message):
        losses.check(chosen, "lines")


def test_terms_over_masked_positions_are_refused_where_none_are_masked():
    whole, masked = settings.Masking(sequences=0.0), Term(1.0, positions="masked")
    losses.check_masking({"kl": Term(1.0), "cosine": replace(masked, weight=0.0)}, whole)
    losses.check_masking({"mlm": Term(1.0), "cosine": masked}, settings.Masking(sequences=0.1))
    with pytest.raises(UserError, match=r"mlm covers masked .* is 0 .* or set its weight to 0"):
        losses.check_masking({"mlm": Term(1.0)}, whole)
    with pytest.raises(UserError, match=r"cosine covers masked .* or set its positions to 'real'"):
        losses.check_masking({"cosine": masked}, whole)


@pytest.mark.parametrize("name", ["similarity", "info_nce", "margin_mse"])
def test_pairs_of_packed_passages_are_refused(name):
    with pytest.raises(UserError, match=r"'packed' leaves open .* set data.layout='lines'"):
        losses.check({name: Term(1.0)}, "packed")
    losses.check({name: Term(0.0), "mlm": Term(1.0)}, "packed")


def test_vectors_of_packed_passages_are_not():
    losses.check({"sentence": Term(1.0), "cosine": Term(1.0, positions="cls")}, "packed")


@pytest.mark.parametrize("name", ["cka", "similarity", "info_nce", "margin_mse"])
def test_terms_across_the_batch_are_refused_where_it_is_torn_apart(name):
    losses.check({name: Term(1.0)}, "lines", 1)
    with pytest.raises(UserError, match=rf"{name} compares .*accumulate=2 .* set accumulate=1"):
        losses.check({name: Term(1.0)}, "lines", 2)


@pytest.mark.parametrize("name, least", [("similarity", 2), ("info_nce", 2), ("margin_mse", 3)])
def test_a_batch_without_company_is_refused(name, least):
    losses.check({name: Term(1.0)}, "lines", batch_size=least)
    said = rf"always the same with .*batch_size=.*; set it to {least}"
    with pytest.raises(UserError, match=said):
        losses.check({name: Term(1.0)}, "lines", batch_size=least - 1)


def test_states_of_whole_sequences_are_alike_with_few_others():
    losses.check({"cka": Term(1.0)}, "lines", batch_size=1)
    losses.check({"cka": Term(1.0, positions="pooled")}, "lines", batch_size=3)
    with pytest.raises(UserError, match=r"cka .* is always the same with .*; set it to 3"):
        losses.check({"cka": Term(1.0, positions="cls")}, "lines", batch_size=2)


def test_a_relation_is_named_once():
    with pytest.raises(UserError, match=r"relations\.between names values, values; name each once"):
        losses.check({"relations": Term(1.0, between=("values", "values"))}, "lines")


# --- against the models

STUDENT = Encoder(vocab_size=50, hidden_size=24, num_heads=4, num_layers=3)
WIDER = Encoder(vocab_size=50, hidden_size=36, num_heads=6, num_layers=6)
DO_NOT_FIT = [
    ("cosine", Term(1.0), WIDER, r"vectors of 24 numbers .* of 36; set projection='shared'"),
    ("info_nce", Term(1.0), WIDER, r"vectors of 24 numbers .* set projection='shared'"),
    ("attention_kl", Term(1.0), WIDER, r"4 heads and the teacher 6; use relations"),
    ("relations", Term(1.0), WIDER, r"relation_heads is 0, .* has 4 and the teacher 6; .* 24 and"),
    (
        "relations",
        Term(1.0, relation_heads=9),
        WIDER,
        r"relation_heads is 9, which does not divide the student's width 24",
    ),
    ("kl", Term(1.0), replace(STUDENT, vocab_size=60), r"student has 50 words and the teacher 60"),
    ("cka", Term(1.0, layers="3:0"), WIDER, r"cka\.layers: the student has no layer 3; .* 0 to 2"),
    ("cka", Term(1.0, layers="0:-7"), WIDER, r"cka\.layers: the teacher has no layer -7"),
    ("cka", Term(1.0, layers="evry_other"), WIDER, r"cka\.layers is .* mean 'every_other'\?"),
    ("cka", Term(1.0, layers="0:last"), WIDER, r"'last' is no layer; choose from final, emb"),
    ("cka", Term(1.0, layers="--1:0"), WIDER, r"'--1' is no layer; choose from final, emb"),
    ("cka", Term(1.0, layers="first"), replace(WIDER, num_layers=2), r"3 layers and the teacher 2"),
    ("relations", Term(1.0, layers="embeddings"), STUDENT, r"the embeddings have no attention"),
]


@pytest.mark.parametrize("name, term, teacher, message", DO_NOT_FIT)
def test_models_that_do_not_fit_are_refused(name, term, teacher, message):
    losses.check({name: term}, "lines")
    with pytest.raises(UserError, match=message):
        losses.check_models({name: term}, STUDENT, teacher)
    losses.check_models({name: replace(term, weight=0.0)}, STUDENT, teacher)


def test_twelve_heads_may_teach_eight():
    eight = Encoder(vocab_size=50, hidden_size=64, num_heads=8, num_layers=2)
    twelve = Encoder(vocab_size=50, hidden_size=96, num_heads=12, num_layers=2)
    losses.check_models({"relations": Term(1.0, relation_heads=16)}, eight, twelve)


@pytest.mark.parametrize(
    "layers, pairs",
    [
        ("final", ((2, 5),)),
        ("embeddings, uniform_last", ((-1, -1), (0, 1), (1, 3), (2, 5))),
        ("every_other", ((0, 0), (1, 2), (2, 5))),
        ("0:-1,final:embeddings", ((0, 5), (2, -1))),
    ],
)
def test_a_layer_map_is_pairs_counted_from_zero(layers, pairs):
    assert layer_pairs(layers, 3, 6, "here") == pairs


def test_only_what_active_terms_compare_is_asked_of_the_models():
    chosen = {
        "cosine": Term(1.0),
        "relations": Term(1.0, between=("values", "keys")),
        "attention_mse": Term(0.0),
        "sentence": Term(1.0),
    }
    assert losses.outputs(chosen) == ("keys", "values")
    chosen |= {"attention_mse": Term(1.0), "cka": Term(1.0, layers="first")}
    assert losses.outputs(chosen) == ("hidden_states", "attention_scores", "keys", "values")


def test_an_output_or_a_head_that_is_not_there_is_named(case, make_view):
    student, teacher = make_view(case.student), make_view(case.teacher)

    def total(name, student, teacher):
        return losses.total_loss(
            {"mlm": Term(1.0), name: Term(1.0)},
            student,
            teacher,
            *case[2:],
            progress=jnp.zeros(()),
        )

    with pytest.raises(UserError, match=r"attention_kl compares attention_scores, which the model"):
        total("attention_kl", student, teacher)
    with pytest.raises(UserError, match=r"mlm compares .* the student has no masked-LM head; set"):
        total("kl", student._replace(transform=None), teacher)
    with pytest.raises(UserError, match=r"losses.kl compares .* the teacher has no masked-LM head"):
        total("kl", student, student._replace(transform=None))
    with pytest.raises(UserError, match=r"losses.cosine compares with a teacher, and there is n"):
        total("cosine", student, None)


# --- projections


def test_a_projection_is_drawn_from_its_own_name():
    chosen = {
        "cosine": Term(1.0, layers="0:1,final", projection="per_layer"),
        "sentence": Term(1.0, projection="shared"),
        "hidden_mse": Term(0.0, projection="shared"),
        "cka": Term(1.0),
    }
    key = jax.random.key(0)
    drawn = losses.init_projections(chosen, STUDENT, WIDER, key)
    shapes = jax.tree.map(lambda x: x.shape, drawn)
    learned = {"kernel": (24, 36), "bias": (36,)}
    assert shapes == {
        "cosine": {"pair_0": learned, "pair_1": learned},
        "sentence": {"shared": learned},
    }
    kernels = [drawn["cosine"][f"pair_{i}"]["kernel"] for i in (0, 1)]
    assert jnp.abs(kernels[0] - kernels[1]).max() > 0.01
    assert 0.015 < kernels[0].std() < 0.025
    alone = losses.init_projections({"cosine": chosen["cosine"]}, STUDENT, WIDER, key)
    assert (alone["cosine"]["pair_1"]["kernel"] == kernels[1]).all()
    assert not losses.init_projections({"cka": Term(1.0)}, STUDENT, WIDER, key)


README = (Path(losses.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_term_with_its_options():
    table = README.split("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", table, re.MULTILINE))
    assert set(listed) == set(losses.TERMS)
    for name, options in listed.items():
        assert tuple(re.findall(r"`(\w+)`", options)) == losses.TERMS[name].options


def test_the_readmes_example_is_a_term(monkeypatch, case, gradient):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    added = {}
    exec(example, {"jnp": jnp, "TERMS": added, "Kind": terms.Kind})
    ((name, kind),) = added.items()
    monkeypatch.setitem(terms.TERMS, name, kind)

    chosen = {name: Term(weight=1.0)}
    losses.check(chosen, "lines")
    (total, sums), grads = gradient(chosen, case)
    assert total > 0
    assert sums[name].count == case.mask.sum()
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
