import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from distilflax import losses
from distilflax.errors import UserError
from distilflax.losses import terms
from distilflax.settings import Term


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
    ({"kl": Term(), "mlm": Term()}, r"no term of positive weight; give one of kl, "),
    ({}, r"no term of positive weight"),
]


@pytest.mark.parametrize("chosen, message", MISTAKES)
def test_a_choice_that_cannot_run_is_refused(chosen, message):
    with pytest.raises(UserError, match=message):
        losses.check(chosen, "lines")


def test_sentence_vectors_of_packed_passages_are_refused():
    with pytest.raises(UserError, match=r"'packed' puts several .* set data.layout='lines'"):
        losses.check({"sentence": Term(weight=1.0)}, "packed")


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
