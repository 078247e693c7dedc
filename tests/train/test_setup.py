"""Who teaches, and what is refused before the text is read."""

import pytest

from distilflax.errors import UserError
from distilflax.train.setup import new_student, prepare, with_projections

NARROWER = {"init": "random", "num_layers": 2, "hidden_size": 8}
AVERAGE = {"average_decay": 0.9}


def terms(**cosine):
    return {"kl": {"weight": 0.0}, "mlm": {"weight": 0.0}, "cosine": {"weight": 1.0} | cosine}


def test_a_student_may_be_of_another_width_than_a_teacher_that_does_not_teach(experiment):
    alone = experiment(
        teacher={"share": 0.0}, student=NARROWER, teaching=AVERAGE, losses=terms(layers="0:1")
    )
    materials = prepare(alone, [], print)
    encoder, params = new_student(alone, materials)
    assert encoder.hidden_size == 8
    assert with_projections(alone, materials, encoder, params) is params
    with pytest.raises(UserError, match=r"vectors of 8 numbers with vectors of 16"):
        prepare(experiment(student=NARROWER, losses=terms()), [], print)


def test_a_projection_has_one_width_to_lead_to(experiment):
    learned = terms(projection="shared")
    both = experiment(student=NARROWER, teaching=AVERAGE, losses=learned)
    with pytest.raises(UserError, match=r"cosine\.projection .* its teachers have 8, 16; set it"):
        prepare(both, [], print)
    itself = experiment(teacher={"share": 0.0}, student=NARROWER, teaching=AVERAGE, losses=learned)
    materials = prepare(itself, [], print)
    encoder, params = new_student(itself, materials)
    maps = with_projections(itself, materials, encoder, params)["projections"]["cosine"]
    assert maps["shared"]["kernel"].shape == (8, 8)


def test_another_teacher_without_a_path_is_named(experiment):
    with pytest.raises(UserError, match=r"config\.teachers\.large\.path is empty"):
        prepare(experiment(teachers={"large": {"share": 2.0}}), [], print)


def test_a_layer_that_the_average_lacks_is_named(experiment):
    deeper = experiment(teaching=AVERAGE, losses=terms(layers="1:3"))
    with pytest.raises(UserError, match=r"cosine\.layers: the teacher has no layer 3; .* 0 to 1"):
        prepare(deeper, [], print)
