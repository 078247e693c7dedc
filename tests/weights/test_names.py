"""The table of names against the models that it names, and the counts that the papers state."""

import math

import jax
import pytest

from distilflax import models
from distilflax.settings import Encoder
from distilflax.weights import names

BERT = Encoder()
DISTILBERT = Encoder(num_layers=6, type_vocab_size=0, pooler=False)
TINY = {"vocab_size": 20, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12}


def count(encoder, model_type, mlm_head):
    tensors = names.tensors(encoder, model_type, mlm_head=mlm_head)
    return sum(math.prod(tensor.shape) for tensor in tensors)


@pytest.mark.parametrize(
    ("encoder", "model_type", "mlm_head", "parameters"),
    [
        (DISTILBERT, "distilbert", False, 66_362_880),
        (DISTILBERT, "distilbert", True, 66_985_530),
        (BERT, "bert", False, 109_482_240),
    ],
)
def test_parameter_counts_are_the_papers(encoder, model_type, mlm_head, parameters):
    assert count(encoder, model_type, mlm_head) == parameters


@pytest.mark.parametrize("mlm_head", [False, True])
@pytest.mark.parametrize(("types", "pooler"), [(2, True), (2, False), (0, False), (0, True)])
def test_the_table_names_exactly_the_parameters_of_the_model(types, pooler, mlm_head):
    encoder = Encoder(**TINY, num_layers=2, type_vocab_size=types, pooler=pooler)
    leaves = jax.tree_util.tree_leaves_with_path(models.shapes(encoder, mlm_head=mlm_head))
    in_model = {tuple(step.key for step in path): leaf.shape for path, leaf in leaves}
    in_table = {
        tensor.path: tensor.shape[::-1] if tensor.transposed else tensor.shape
        for tensor in names.tensors(encoder, "bert", mlm_head=mlm_head)
    }
    assert in_table == in_model


def test_no_name_is_given_twice():
    for model_type, encoder in (("bert", BERT), ("distilbert", DISTILBERT)):
        tensors = list(names.tensors(encoder, model_type, mlm_head=True, decoder=True))
        assert len({tensor.name for tensor in tensors}) == len(tensors)
        assert len({tensor.path for tensor in tensors}) == len(tensors)


def test_an_absurd_depth_costs_nothing_until_it_is_walked():
    tensors = names.tensors(Encoder(num_layers=10**12), "bert", mlm_head=True)
    assert next(tensors).path == ("encoder", "embeddings", "word")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("a.LayerNorm.beta", "a.LayerNorm.bias"),
        ("pooler.dense.weight", "pooler.dense.weight"),
    ],
)
def test_old_names_of_layer_norm(old, new):
    assert names.modern(old) == new
