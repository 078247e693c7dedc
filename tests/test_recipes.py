"""The published recipes among the configs: they say what they mean and fit their models."""

import runpy
from pathlib import Path

import pytest

from distilflax import losses
from distilflax.settings import Encoder, from_config
from distilflax.weights.surgery import student_encoder

CONFIGS = Path(__file__).parents[1] / "configs"
TERMS = {
    "distilbert_base": {"kl": 5.0, "mlm": 2.0, "cosine": 1.0},
    "tinybert_general": {"attention_mse": 6.0, "hidden_mse": 7.0},
    "minilm": {"attention_kl": 1.0, "relations": 1.0},
    "minilmv2": {"relations": 1.0},
    "pkd": {"mlm": 0.5, "kl": 0.5, "normalized_mse": 100 / 768},
    "well_read": {"soft_cross_entropy": 1.0},
    "new_words": {"mlm": 1.0},
    "mobilebert": {"normalized_mse": 100.0, "attention_kl": 1.0, "mlm": 0.5, "kl": 0.5},
}
BERT_BASE = Encoder()
MINILM_L6 = Encoder(hidden_size=384, num_layers=6, intermediate_size=1536)


@pytest.mark.parametrize("recipe", TERMS)
@pytest.mark.parametrize("variant, teacher", [("", BERT_BASE), ("runlocal", MINILM_L6)])
def test_a_recipe_can_run(recipe, variant, teacher):
    experiment = from_config(runpy.run_path(CONFIGS / f"{recipe}.py")["get_config"](variant))
    training = experiment.training
    losses.check(experiment.losses, experiment.data.layout, training.accumulate)
    student = student_encoder(teacher, experiment.student)
    losses.check_models(experiment.losses, student, teacher)
    weights = {name: term.weight for name, term in losses.active(experiment.losses).items()}
    assert set(weights) == set(TERMS[recipe])
    if not variant:
        assert weights == pytest.approx(TERMS[recipe])
    else:
        assert training.steps <= 4


@pytest.mark.parametrize(
    "variant, teacher, size", [("", BERT_BASE, 512), ("-runlocal", MINILM_L6, 192)]
)
def test_what_is_well_read_goes_on_as_it_was_pretrained(variant, teacher, size):
    get_config = runpy.run_path(CONFIGS / "well_read.py")["get_config"]
    first = from_config(get_config(f"pretrain{variant}"))
    assert set(losses.active(first.losses)) == {"mlm"}
    student = student_encoder(teacher, first.student)
    assert (student.hidden_size, student.intermediate_size) == (size, 4 * size)
    second = from_config(get_config(variant.removeprefix("-")))
    assert student_encoder(student, second.student) == student


def test_weights_that_stand_for_sums_count_their_layers():
    experiment = from_config(runpy.run_path(CONFIGS / "tinybert_general.py")["get_config"]())
    assert student_encoder(BERT_BASE, experiment.student).num_layers == 6
    terms = experiment.losses
    pairs = losses.layers.layer_pairs(terms["hidden_mse"].layers, 6, 12, "here")
    assert pairs == ((-1, -1), (0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11))
    assert terms["hidden_mse"].weight == len(pairs)
    assert terms["attention_mse"].weight == len(pairs) - 1
