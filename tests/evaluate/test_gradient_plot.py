import numpy as np
import pytest

from distilflax.evaluate import gradient_plot

TERMS = ("kl", "mlm")
GROUPS = ("all", "layers_10", "mlm_head", "layers_2", "embeddings")


def accounts(steps=(1, 2), terms=TERMS):
    """As `metrics.jsonl` has them: null for what was not finite."""
    found = []
    for step in steps:
        one = {"kind": "gradients", "step": step}
        for i, group in enumerate(GROUPS):
            one |= {f"norm/{group}/{term}": step * (i + 1.0) for term in terms}
            if len(terms) > 1:
                one[f"cosine/{group}/kl/mlm"] = None if step == 2 else 0.1 * i
        found.append(one)
    return found


@pytest.fixture(autouse=True)
def _drawing():
    pytest.importorskip("matplotlib")


def test_layers_come_in_order_with_their_means():
    norms, along, cosines, _ = gradient_plot.figure(accounts()).get_axes()
    shown = [label.get_text() for label in norms.get_xticklabels()]
    assert shown == ["embeddings", "layer 2", "layer 10", "mlm head"]
    lines = {line.get_label(): list(line.get_ydata()) for line in norms.get_lines()}
    assert lines == {term: [7.5, 6.0, 3.0, 4.5] for term in TERMS}
    assert list(along.get_lines()[0].get_ydata()) == [1.0, 2.0]
    between = norms.yaxis.get_minor_formatter()
    assert [between(value, 0) for value in (0.2, 0.3, 5.0, 20.0)] == ["0.2", "", "5", "20"]
    (line,) = [line for line in cosines.get_lines() if line.get_label() == "kl · mlm"]
    assert list(line.get_ydata()) == pytest.approx([0.4, 0.3, 0.1, 0.2])


def test_there_is_no_cosine_where_a_term_has_no_gradient():
    found = accounts(steps=(1,))
    found[0] |= {"norm/mlm_head/kl": 0.0, "cosine/mlm_head/kl/mlm": 0.0}
    *_, cosines, _ = gradient_plot.figure(found).get_axes()
    (line,) = [line for line in cosines.get_lines() if line.get_label() == "kl · mlm"]
    assert list(line.get_ydata()) == pytest.approx([0.4, 0.3, 0.1, np.nan], nan_ok=True)


def test_one_term_has_no_cosines():
    assert len(gradient_plot.figure(accounts(terms=("kl",))).get_axes()) == 2


def test_each_model_with_accounts_has_a_figure(tmp_path):
    models = [{"name": "teacher", "training": None}, {"name": "a", "training": {}}]
    models.append({"name": "b", "training": {"gradients": accounts()}})
    drawn = gradient_plot.draw({"models": models}, tmp_path)
    assert set(drawn) == {"gradients-b.png"}
    assert (tmp_path / "gradients-b.png").read_bytes()[:4] == b"\x89PNG"
