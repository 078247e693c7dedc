"""How far an export is from the model: numbers, vectors, decisions, and what is refused."""

import tracemalloc

import numpy as np
import pytest

from distilflax import export
from distilflax.errors import UserError
from distilflax.export import parity, samples


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", [0, 1])
def test_numbers_that_are_none_are_refused_in_whichever_batch(exact, bad):
    rows = np.ones((2, 3), np.int64)
    batches = [samples.Batch(rows + i, rows, 0 * rows) for i in range(2)]
    vectors = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

    def run(batch):
        first = int(batch.input_ids[0, 0]) - 1
        return {"last_hidden_state": np.full_like(vectors, np.nan) if first == bad else vectors}

    figures = parity.compare(lambda _: {"last_hidden_state": vectors}, run, batches)
    assert all(np.isnan(list(figures["last_hidden_state"].values())))
    with pytest.raises(UserError, match="last_hidden_state has values that are not finite"):
        parity.check(figures, "numpy", exact=exact, cosine=0.95, agreement=0.0)


def test_zeros_are_like_zeros_alone():
    rows = np.ones((1, 2), np.int64)
    wanted = np.array([[[0.0, 0.0], [3.0, 4.0]]], np.float32)

    def cosines(found):
        given = ({"last_hidden_state": array} for array in (wanted, found))
        runs = [lambda _, outputs=outputs: outputs for outputs in given]
        figure = parity.compare(*runs, [samples.Batch(rows, rows, 0 * rows)])["last_hidden_state"]
        return figure["least_cosine"], figure["mean_cosine"]

    assert cosines(wanted) == (1.0, 1.0)
    assert cosines(0 * wanted) == (0.0, 0.5)


def of_logits(wanted, found, **more):
    """The figures of logits [B, N], in batches of two."""
    ids = np.arange(len(wanted))[:, None]
    batches = [samples.Batch(ids[at : at + 2], 1 + 0 * ids[at : at + 2], 0 * ids) for at in (0, 2)]
    wanted, found = np.array(wanted, np.float32), np.array(found, np.float32)
    runs = [
        lambda batch, a=array: {"logits": a[batch.input_ids[:, 0]]} for array in (wanted, found)
    ]
    return parity.compare(*runs, batches, **more)


def refused(figures, **least):
    try:
        parity.check(
            figures, "onnx-int8", exact=False, **{"cosine": 0.95, "agreement": 0.9} | least
        )
    except UserError as error:
        return str(error)


def test_one_number_is_held_against_the_spread_of_all_texts():
    scores = np.array([[1.8], [2.6], [2.0], [2.5]])

    def alike(wanted, found):
        return of_logits(wanted, found)["logits"]["mean_cosine"]

    assert alike(scores, scores) == 1.0
    assert "cosine of logits is 0.000" in refused(of_logits(scores, 0 * scores + 400))
    assert alike(scores, 0 * scores + 2.225) == pytest.approx(0.0, abs=1e-6)  # their mean
    assert alike(scores, 4.45 - scores) == pytest.approx(-1.0)
    # Correlation sees neither of these.
    assert "cosine of logits" in refused(of_logits(scores, scores + 0.5))
    assert "cosine of logits" in refused(of_logits(scores, 2.225 + 3 * (scores - 2.225)))
    # Signs say nothing: a median of 0 and all scores off by a hundredth of their spread.
    assert refused(of_logits(scores - 2.2501, scores - 2.2501 - 0.008)) is None
    assert not refused(of_logits(scores, 0 * scores + 400), cosine=0.0)


def test_scores_that_are_all_the_same_are_held_against_their_size():
    same = np.full((4, 1), 2.5)
    assert refused(of_logits(same, same + 0.01)) is None
    assert "cosine of logits" in refused(of_logits(same, same + 400))
    assert refused(of_logits(0 * same, 0 * same + 5e-5)) is None
    assert "cosine of logits" in refused(of_logits(0 * same, same))
    assert refused(of_logits(same[:3], same[:3] + np.float32(1e-5) * np.arange(3)[:, None])) is None
    assert "not finite" in refused(of_logits(same, same * np.nan))


def test_of_several_labels_each_is_decided_alone():
    logits = np.array([[4, 0.2], [4, -0.2], [4, 0.5], [4, 5e-5]])
    found = logits - [[0, 0.3], [0, 0], [0, 0.3], [0, 1e-4]]
    assert of_logits(logits, found)["logits"]["agreement"] == 1.0  # of the greatest
    figure = of_logits(logits, found, problem="multi")["logits"]
    assert (figure["agreement"], figure["close_agreement"]) == (0.5, 0.75)
    assert "alike in 50.0% of the cases" in refused({"logits": figure})
    alone = of_logits(logits[:, 1:], found[:, 1:], problem="multi")["logits"]
    assert alone["agreement"] == 0.5


def test_the_head_says_how_its_logits_are_read(folder_of):
    """Only a sequence head's problem is one: a tagger of a single label is no regression."""
    wanted = {"sequence": "single", "token": "", "masked_lm": ""}
    found = {kind: export.open_subject(folder_of("distilbert", kind)).problem for kind in wanted}
    assert found == wanted


@pytest.mark.parametrize("lost", ["mean_cosine", "agreement", "close_agreement"])
def test_a_figure_that_is_no_number_is_no_pass(lost):
    figure = {"max_difference": 0.0, "mean_cosine": 1.0, "agreement": 1.0, "close_agreement": 1.0}
    least = {"exact": lost == "close_agreement", "cosine": 0.95, "agreement": 0.9}
    parity.check({"logits": figure}, "numpy", **least)
    with pytest.raises(UserError, match="does not compute what the model does"):
        parity.check({"logits": figure | {lost: np.nan}}, "numpy", **least)


def test_a_comparison_of_many_texts_takes_the_memory_of_a_few():
    rows = np.ones((2, 8), np.int64)
    batch = samples.Batch(rows, rows, 0 * rows)

    def run(_):
        return {"logits": np.ones((2, 8, 2000), np.float32)}

    def peak(batches):
        tracemalloc.start()
        parity.compare(run, run, batches * [batch])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40) < 1.5 * peak(2)
