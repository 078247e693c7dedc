import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import losses, settings
from distilflax.batches.masking import mask_table, mask_tokens
from distilflax.train import gradients
from distilflax.train.state import MASKING, purpose_key
from distilflax.train.teachers import Lesson, Pair
from distilflax.train.views import taught_views, view_of

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TEACHER = settings.Encoder(
    vocab_size=32, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=8, max_positions=8
)
STUDENT = settings.Encoder(**vars(TEACHER) | {"num_layers": 1, "type_vocab_size": 0})
TERMS = {
    "kl": {"weight": 5.0, "temperature": 2.0},
    "mlm": {"weight": 2.0},
    "cosine": {"weight": 1.0, "schedule": ((0.0, 1.0), (1.0, 0.0))},
}
STEP, STEPS = 2, 8


@pytest.fixture(scope="module")
def world(drawn):
    experiment = settings.from_config({"losses": TERMS, "training": {"batch_size": 4}})
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < np.array([8, 5, 2, 7])[:, None]).astype(np.int32)
    batch = {"input_ids": rng.integers(5, 32, mask.shape).astype(np.int32) * mask}
    batch = jax.tree.map(jnp.asarray, batch | {"attention_mask": mask})
    table = mask_table(
        np.arange(32) < 5, np.arange(32) < 0, 4, np.ones(32, np.int64), experiment.masking
    )
    student, teacher = (
        drawn(encoder, seed, mlm_head=True) for seed, encoder in enumerate((STUDENT, TEACHER))
    )
    return experiment, Pair(STUDENT, TEACHER), (student, teacher, table, batch)


@pytest.fixture(scope="module")
def accounts(world):
    experiment, pair, inputs = world
    return gradients.make_accounting(experiment, pair, STEPS)(*inputs, STEP)


def test_they_are_the_gradients_of_the_weighted_terms(world, accounts):
    experiment, pair, inputs = world

    @jax.jit
    def of_total(student, teacher, table, batch):
        masked = mask_tokens(
            jax.random.fold_in(purpose_key(0, MASKING), STEP),
            batch["input_ids"],
            batch["attention_mask"],
            table,
            experiment.masking,
        )

        def loss(student):
            return losses.total_loss(
                experiment.losses,
                view_of(experiment, pair.student, student, batch, masked, None),
                taught_views(experiment, [Lesson(1.0, pair.teacher, teacher)], batch, masked)[
                    0
                ].view,
                batch["input_ids"],
                batch["attention_mask"],
                masked,
                progress=jnp.float32(STEP / STEPS),
            )[0]

        return jax.grad(loss)(student)

    # The terms' gradients add up to the loss's, so their products add up to its squared norm.
    total = of_total(*inputs)
    parts = {
        "all": total,
        "embeddings": total["encoder"]["embeddings"],
        "layers_0": total["encoder"]["layers_0"],
        "mlm_head": total["mlm_head"],
    }
    for group, part in parts.items():
        squared = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(part))
        np.testing.assert_allclose(accounts.products[group].sum(), squared, rtol=1e-4)


def test_groups_add_up_and_cosines_are_cosines(accounts):
    assert accounts.terms == tuple(TERMS)
    groups = [group for group in accounts.products if group != "all"]
    assert set(groups) == {"embeddings", "layers_0", "mlm_head", "pooler"}
    together = sum(accounts.products[group] for group in groups)
    np.testing.assert_allclose(together, accounts.products["all"], rtol=1e-5, atol=1e-9)
    assert accounts.norms("layers_0")["kl"] > 0
    # No masked-LM head, no gradient there, and no direction to compare.
    assert accounts.norms("mlm_head")["cosine"] == 0
    assert accounts.cosines("mlm_head")["mlm", "cosine"] == 0
    assert set(accounts.cosines()) == {("kl", "mlm"), ("kl", "cosine"), ("mlm", "cosine")}
    assert all(-1 <= cosine <= 1 for cosine in accounts.cosines().values())


def test_micro_batches_have_the_gradients_of_the_whole(world, accounts):
    experiment, pair, inputs = world
    training = dataclasses.replace(experiment.training, accumulate=2)
    in_parts = dataclasses.replace(experiment, training=training)
    found = gradients.make_accounting(in_parts, pair, STEPS)(*inputs, STEP)
    for group, products in accounts.products.items():
        np.testing.assert_allclose(found.products[group], products, rtol=1e-4, atol=1e-9)


def test_the_record_is_flat(accounts):
    record = accounts.record()
    assert record["norm/all/kl"] == accounts.norms()["kl"]
    assert record["cosine/layers_0/kl/mlm"] == accounts.cosines("layers_0")["kl", "mlm"]
    assert all(isinstance(value, float) for value in record.values())
