"""What is asked of the accounting for students at hand; what it answers is test_gradients.py's."""

import inspect

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.train import account
from distilflax.train.gradients import Accounts
from distilflax.train.setup import new_student, prepare


def test_each_student_is_weighed_on_the_first_batches_of_its_run(
    experiment, monkeypatch, one_device
):
    # Without terms over words, for which the teacher would need a head.
    which = experiment(losses={"kl": {"weight": 0.0}, "mlm": {"weight": 0.0}})
    materials = prepare(which, [which], lambda _: None)
    _, first = new_student(which, materials)
    asked = []

    def accounting(*about):
        assert about[0] is which and about[2] == 6

        def accounts(params, teacher, table, batch, step):
            scale = float(params["encoder"]["embeddings"]["norm"]["scale"][0])
            asked.append((scale, step, np.asarray(batch["input_ids"])))
            return Accounts(("cosine",), {"all": np.array([[float(len(asked)) ** 2]])})

        return accounts

    monkeypatch.setattr(account, "make_accounting", accounting)
    norm = {"scale": np.full(16, 3.0, np.float32), "bias": np.zeros(16, np.float32)}
    embeddings = first["encoder"]["embeddings"] | {"norm": norm}
    later = first | {"encoder": first["encoder"] | {"embeddings": embeddings}}
    found = account.account(which, materials, {6: later}, batches=2)
    # Norms 1 and 2, then 3 and 4; the schedules have no step after the last one.
    assert found == [{"step": 0, "norm/all/cosine": 1.5}, {"step": 6, "norm/all/cosine": 3.5}]
    assert [(scale, step) for scale, step, _ in asked] == [(1.0, 0)] * 2 + [(3.0, 5)] * 2
    ids = [seen for *_, seen in asked]
    assert np.array_equal(ids[0], ids[2]) and np.array_equal(ids[1], ids[3])
    assert not np.array_equal(ids[0], ids[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"teaching": {"average_decay": 0.9}},
        {"losses": {"hidden_mse": {"weight": 1.0, "projection": "shared"}}},
    ],
)
def test_what_a_saved_student_has_not_is_refused(experiment, changes):
    with pytest.raises(UserError, match=r"cannot be weighed .* set training\.gradients_every"):
        inspect.unwrap(account.account)(experiment(**changes), None, {})
