"""Layer maps with the properties that they promise, and students that equal their teachers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.settings import Compute, Encoder, Student
from distilflax.weights.surgery import LAYER_MAPS, layer_indices, make_student

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("layer_map", "teacher", "student", "layers"),
    [
        # The script that started the released DistilBERT copies these.
        ("every_other", 12, 6, (0, 2, 4, 7, 9, 11)),
        ("every_other", 6, 3, (0, 2, 5)),
        ("every_other", 12, 4, (0, 4, 7, 11)),
        ("every_other", 12, 2, (0, 11)),
        ("every_other", 12, 1, (0,)),
        ("uniform_last", 12, 6, (1, 3, 5, 7, 9, 11)),
        ("uniform_last", 6, 3, (1, 3, 5)),
        ("uniform_last", 12, 4, (2, 5, 8, 11)),
        ("uniform_last", 12, 5, (1, 3, 6, 8, 11)),
        ("first", 6, 3, (0, 1, 2)),
        ("last", 6, 3, (3, 4, 5)),
        ("0,2,5", 6, 3, (0, 2, 5)),
        (" 1, 3,5 ", 6, 3, (1, 3, 5)),
        ("4", 6, 1, (4,)),
    ],
)
def test_layer_maps(layer_map, teacher, student, layers):
    assert layer_indices(layer_map, teacher, student) == layers


@pytest.mark.parametrize("layer_map", LAYER_MAPS)
def test_every_map_is_increasing_in_range_and_whole_at_full_depth(layer_map):
    for teacher in range(1, 30):
        for student in range(1, teacher + 1):
            layers = layer_indices(layer_map, teacher, student)
            assert len(layers) == student
            assert list(layers) == sorted(set(layers))
            assert set(layers) <= set(range(teacher))
        assert layers == tuple(range(teacher))


def test_every_other_is_the_nearest_to_even_spacing():
    for teacher in range(2, 40):
        for student in range(2, teacher + 1):
            even = np.linspace(0, teacher - 1, student)
            layers = layer_indices("every_other", teacher, student)
            assert np.abs(np.array(layers) - even).max() <= 0.5 + 1e-9
            assert (layers[0], layers[-1]) == (0, teacher - 1)


@pytest.mark.parametrize(
    ("layer_map", "teacher", "student", "says"),
    [
        ("every_other", 6, 7, "student.num_layers is 7 but the teacher has 6 layers"),
        ("0,1,2", 2, 3, "choose 1 to 2"),
        ("every_othr", 6, 3, "choose from every_other, .*did you mean 'every_other'"),
        ("", 6, 3, "layer_map is ''; choose from"),
        ("0,2,x", 6, 3, "choose from"),
        ("0,2", 6, 3, "names 2 layers but student.num_layers is 3"),
        ("0,2,6", 6, 3, "has no layer 6; choose from 0 to 5"),
        ("-1,2,3", 6, 3, "has no layer -1"),
        ("0,2,2", 6, 3, "must increase"),
        ("0,4,2", 6, 3, "must increase"),
    ],
)
def test_layer_maps_that_cannot_be(layer_map, teacher, student, says):
    with pytest.raises(UserError, match=says):
        layer_indices(layer_map, teacher, student)


@pytest.fixture
def teacher(golden, family):
    return weights.load(golden(family)[0])


def hidden_and_logits(encoder, params, arrays):
    params = jax.tree.map(jnp.asarray, params)
    mask = jnp.asarray(arrays["attention_mask"])
    out = models.encode(
        encoder, Compute(), params["encoder"], jnp.asarray(arrays["input_ids"]), mask
    )
    hidden = out["last_hidden_state"]
    matrix, bias = models.decoder(params)
    logits = models.mlm_transform(encoder, Compute(), params, hidden) @ matrix.T + bias
    real = np.asarray(mask) > 0
    return [np.asarray(x)[real] for x in (hidden, logits)]


def test_a_student_with_all_layers_equals_its_teacher(golden, family, teacher):
    _, arrays = golden(family)
    encoder, params = make_student(teacher.encoder, teacher.params, Student(num_layers=3), KEY)
    expected = hidden_and_logits(teacher.encoder, teacher.params, arrays)
    for ours, theirs in zip(hidden_and_logits(encoder, params, arrays), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_a_trained_student_is_left_with_its_teachers_dropout(teacher):
    student = Student(num_layers=2, dropout=0.0, attention_dropout=0.0)
    encoder, _ = make_student(teacher.encoder, teacher.params, student, KEY)
    left = weights.surgery.as_left(encoder, teacher.encoder)
    assert left.dropout == teacher.encoder.dropout > 0
    assert left.attention_dropout == teacher.encoder.attention_dropout > 0
    assert replace(left, dropout=0.0, attention_dropout=0.0) == encoder


def test_a_student_has_its_layers_no_token_types_and_no_pooler(teacher):
    student = Student(num_layers=2, layer_map="0,2", dropout=0.3, attention_dropout=0.2)
    encoder, params = make_student(teacher.encoder, teacher.params, student, KEY)
    assert encoder == replace(
        teacher.encoder,
        num_layers=2,
        type_vocab_size=0,
        pooler=False,
        dropout=0.3,
        attention_dropout=0.2,
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, models.shapes(encoder, mlm_head=True)
    )
    old, new = teacher.params["encoder"], params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, new["layers_1"], old["layers_2"])
    folded = old["embeddings"]["position"]
    if "token_type" in old["embeddings"]:
        folded = folded + old["embeddings"]["token_type"][0]
    np.testing.assert_array_equal(new["embeddings"]["position"], folded)


def test_a_student_shares_no_memory_with_its_teacher(teacher):
    for tree in (teacher.params, jax.tree.map(jnp.asarray, teacher.params)):
        _, params = make_student(teacher.encoder, tree, Student(num_layers=3), KEY)
        pointers = [
            {leaf.unsafe_buffer_pointer() if isinstance(leaf, jax.Array) else leaf.ctypes.data}
            for leaf in jax.tree.leaves(tree)
        ]
        for leaf in jax.tree.leaves(params):
            own = leaf.unsafe_buffer_pointer() if isinstance(leaf, jax.Array) else leaf.ctypes.data
            assert {own} not in pointers


def test_a_head_that_is_not_copied_starts_anew_and_tied(golden, damaged):
    def untie(tensors):
        tensors["vocab_projector.weight"] = np.ones((64, 16), np.float32)

    teacher = weights.load(damaged("distilbert", untie))
    copied = make_student(teacher.encoder, teacher.params, Student(num_layers=2), KEY)[1]
    jax.tree.map(np.testing.assert_array_equal, copied["mlm_head"], teacher.params["mlm_head"])
    student = Student(num_layers=2, copy_head=False)
    encoder, params = make_student(teacher.encoder, teacher.params, student, KEY)
    assert "decoder" not in params["mlm_head"]
    assert not params["mlm_head"]["bias"].any()
    np.testing.assert_allclose(np.std(params["mlm_head"]["transform"]["kernel"]), 0.02, rtol=0.3)
    assert jax.tree.structure(params) == jax.tree.structure(models.shapes(encoder, mlm_head=True))


def test_a_teacher_without_a_head_gives_none(teacher):
    params = {"encoder": teacher.params["encoder"]}
    for student in (Student(num_layers=1), Student(num_layers=1, init="random")):
        assert set(make_student(teacher.encoder, params, student, KEY)[1]) == {"encoder"}


def test_random_init_is_berts_and_takes_nothing_of_the_teacher(teacher):
    student = Student(num_layers=2, init="random")
    _, params = make_student(teacher.encoder, teacher.params, student, KEY)
    word = np.asarray(params["encoder"]["embeddings"]["word"])
    np.testing.assert_allclose(word.std(), 0.02, rtol=0.1)
    assert (np.asarray(params["encoder"]["layers_0"]["ffn_norm"]["scale"]) == 1).all()
    taken = {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(teacher.params)}
    assert not taken & {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)}
    other = make_student(teacher.encoder, teacher.params, student, jax.random.key(1))[1]
    assert (np.asarray(other["encoder"]["embeddings"]["word"]) != word).any()


def test_a_random_student_may_not_be_deeper_either(teacher):
    with pytest.raises(UserError, match="teacher has 3 layers"):
        make_student(teacher.encoder, teacher.params, Student(num_layers=4, init="random"), KEY)


def test_the_papers_student_has_the_papers_size():
    # Shapes only: the full models are never made.
    def cut(params):
        return make_student(Encoder(), params, Student(num_layers=6), KEY)[1]

    shapes = jax.eval_shape(cut, models.shapes(Encoder(), mlm_head=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 66_985_530
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["encoder"])) == 66_362_880
