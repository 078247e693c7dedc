"""A query is told from texts of all lengths; rows of other losses have little padding."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.tasks import finetune
from distilflax.tasks.data import prepare, training_rows
from distilflax.tasks.retrieval import Retrieval
from distilflax.train import sharding


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("loss", "taught", "mixed"),
    [
        ("contrastive", False, True),
        ("cosent", False, False),  # which was measured
        ("cosent", True, False),
        ("margin_mse", False, False),
        ("margin_mse", True, True),  # by every query's distribution over the texts of the batch
    ],
)
def test_which_losses_mix_lengths(settings_of, write, loss, taught, mixed):
    longer = [" ".join(["cat", "dog", "sang"][i % 3 : i % 3 + 1] * (i % 13)) for i in range(104)]
    rows = [
        {"query": f"who {words}", "positive": f"Anna {i}", "negative": "dog", "score": [i, 0]}
        for i, words in enumerate(longer)
    ]
    if loss == "cosent":
        rows = [row | {"score": row["score"][0]} for row in rows]
    folder = write("t.jsonl", rows).parent
    given = {"data": {"train": "t.jsonl", "dev": "t.jsonl"}, "options": {"loss_name": loss}}
    run = settings_of("retrieval", folder, **given)
    materials = prepare(run, lambda _: None)
    lengths = materials.train.features.lengths
    stage = finetune._Run(
        run,
        materials,
        [np.ones(4, np.float32)] * len(lengths) if taught else None,
        finetune.starting_model(run, materials),
        training_rows(materials, 1.0, 0),
        sharding.make_mesh(run.mesh, 8),
    ).stage
    longest = lengths.reshape(-1, materials.task.together).max(axis=1)
    spread = np.mean([np.ptp(longest[stage.batch_at(step).indices]) for step in range(13)])
    assert spread > 6 if mixed else spread < 3


@pytest.mark.parametrize("loss", ["contrastive", "cosent"])
def test_a_teacher_teaches_the_first_coordinates_too(loss):
    """Its own vectors stay whole: they may be of another width."""
    rng = np.random.default_rng(0)
    ours, theirs = (jnp.array(rng.normal(size=(4, 2, width)), jnp.float32) for width in (8, 6))
    batch = {"text": jnp.arange(8).reshape(4, 2)}
    task = Retrieval(loss_name=loss)

    def taught(vectors, dims=()):
        return replace(task, dims=dims).distil(vectors, theirs, batch, 1.0)

    found = taught(ours, (2, 8))
    parts = [taught(ours[..., :2]), taught(ours)]
    assert float(found.sum) == pytest.approx(float(sum(part.sum for part in parts)) / 2)
    assert float(found.count) == float(parts[0].count)
