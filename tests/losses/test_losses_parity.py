"""Against torch's losses, as the code that trained DistilBERT calls them."""

import numpy as np
import pytest

from distilflax.settings import Term

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")


def as_torch(array):
    return torch.tensor(np.array(array))


@pytest.fixture(scope="module")
def theirs(case):
    """Their inputs: hidden states and logits of the selected tokens alone."""
    mask = np.asarray(case.mask) > 0
    rows, slots = np.nonzero(np.asarray(case.masked.weights))
    positions = np.asarray(case.masked.positions)[rows, slots]

    def model(arrays):
        hidden = as_torch(arrays["hidden"])
        transformed = torch.tanh(hidden @ as_torch(arrays["kernel"]))
        return hidden, transformed @ as_torch(arrays["matrix"]).T + as_torch(arrays["bias"])

    student, teacher = model(case.student), model(case.teacher)
    return {
        "hidden": [h[mask] for h, _ in (student, teacher)],
        "real": [logits[mask] for _, logits in (student, teacher)],
        "masked": [logits[rows, positions] for _, logits in (student, teacher)],
        "labels": as_torch(np.asarray(case.ids)[rows, positions]).long(),
    }


@pytest.mark.parametrize("positions", ["real", "masked"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_kldivloss_batchmean_times_t_squared(case, gradient, theirs, positions, temperature):
    student, teacher = theirs[positions]
    expected = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(student / temperature, -1), torch.softmax(teacher / temperature, -1)
    )
    term = Term(weight=1.0, temperature=temperature, positions=positions)
    (total, _), _ = gradient({"kl": term}, case)
    np.testing.assert_allclose(total, expected * temperature**2, rtol=1e-5)


def test_mlm_is_crossentropyloss(case, gradient, theirs):
    expected = torch.nn.CrossEntropyLoss()(theirs["masked"][0], theirs["labels"])
    (total, _), _ = gradient({"mlm": Term(weight=1.0)}, case)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_cosine_is_cosineembeddingloss(case, gradient, theirs):
    student, teacher = theirs["hidden"]
    expected = torch.nn.CosineEmbeddingLoss()(student, teacher, torch.ones(len(student)))
    (total, _), _ = gradient({"cosine": Term(weight=1.0)}, case)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_mse_is_mselosss_sum_over_the_tokens(case, gradient, theirs):
    student, teacher = theirs["real"]
    expected = torch.nn.MSELoss(reduction="sum")(student, teacher) / len(student)
    (total, _), _ = gradient({"mse": Term(weight=1.0)}, case)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
