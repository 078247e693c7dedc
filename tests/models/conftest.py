import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, settings

# Every size is another number, so that a swapped axis cannot pass.
BERT = settings.Encoder(
    vocab_size=53,
    hidden_size=24,
    num_layers=2,
    num_heads=4,
    intermediate_size=40,
    max_positions=20,
)
DISTILBERT = settings.Encoder(**{**vars(BERT), "type_vocab_size": 0, "pooler": False})


@pytest.fixture(scope="session")
def make_params():
    """Parameters far from an initialisation's, biases and LayerNorms too, so that errors show."""

    def make(encoder, **kwargs):
        rng = np.random.default_rng(0)

        def lively(path, shape):
            unit = 1.0 if path[-1].key == "scale" else 0.0
            return jnp.asarray(unit + 0.2 * rng.normal(size=shape.shape), jnp.float32)

        return jax.tree_util.tree_map_with_path(lively, models.shapes(encoder, **kwargs))

    return make


ENCODERS = {"bert": BERT, "distilbert": DISTILBERT}


@pytest.fixture(scope="session", params=ENCODERS)
def encoder(request):
    return ENCODERS[request.param]


@pytest.fixture(scope="session")
def shallow(encoder):
    """Of one layer: what is no matter of depth needs no second one, which doubles the program."""
    return dataclasses.replace(encoder, num_layers=1)


@pytest.fixture(scope="session")
def bert():
    return BERT


@pytest.fixture(scope="session")
def shallow_bert():
    return dataclasses.replace(BERT, num_layers=1)


@pytest.fixture(scope="session")
def distilbert():
    return DISTILBERT


@pytest.fixture(scope="session")
def batch():
    """Ids and mask [3, 10]: rows of 10, 6 and 3 real tokens."""
    ids = np.random.default_rng(0).integers(1, BERT.vocab_size, (3, 10))
    mask = np.arange(10) < np.array([10, 6, 3])[:, None]
    return jnp.asarray(ids * mask, jnp.int32), jnp.asarray(mask, jnp.int32)
