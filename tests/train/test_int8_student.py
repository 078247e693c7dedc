"""A student that is trained for its int8 file: who rounds, and from where it starts."""

import dataclasses

import jax
import numpy as np

from distilflax.train.setup import new_student, prepare


def test_only_the_student_rounds_and_it_starts_as_a_float_one_does(experiment):
    plain = experiment(student={"init": "regressed", "regression_tokens": 200})
    rounding = dataclasses.replace(
        plain, student=dataclasses.replace(plain.student, int8_range="portable")
    )
    materials = prepare(plain, [rounding], lambda _: None)
    (exact, start), (rounded, same) = (new_student(e, materials) for e in (plain, rounding))
    assert rounded == dataclasses.replace(exact, int8_range="portable") != exact
    assert materials.teacher.encoder.int8_range == "none"
    jax.tree.map(np.testing.assert_array_equal, start, same)
