"""A checkpoint through mteb's interface: its own toy tasks, beside what we compute ourselves."""

import sys

import numpy as np
import pytest

import distilflax
from distilflax.errors import UserError
from distilflax.evaluate import sts
from distilflax.predict.mteb import Encoder


@pytest.fixture
def mteb():
    return pytest.importorskip("mteb", reason="the extra `mteb`", exc_type=ImportError)


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_its_similarity_task_gives_our_figure(mteb, models_by_kind):
    from datasets import Dataset, DatasetDict
    from mteb.mocks.mock_tasks import MockSTSTask

    words = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "while", "birds", "sang"]
    rng = np.random.default_rng(0)
    first, second = ([" ".join(rng.choice(words, 6)) for _ in range(40)] for _ in range(2))
    scores = rng.uniform(size=40)

    class Task(MockSTSTask):
        def load_data(self, **options):
            rows = {"sentence1": first, "sentence2": second, "score": scores}
            self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
            self.data_loaded = True

    encoder = Encoder(models_by_kind["none"])
    assert isinstance(encoder, mteb.EncoderProtocol)
    result = mteb.evaluate(encoder, Task(), cache=None)
    theirs = result.task_results[0].scores["test"][0]["cosine_spearman"]
    model = distilflax.load(models_by_kind["none"])
    ours = sts.spearman(sts.cosines(model.encode(first), model.encode(second)), scores)
    assert theirs == pytest.approx(ours, abs=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_its_retrieval_task_runs(mteb, models_by_kind):
    from mteb.mocks.mock_tasks import MockRetrievalTask

    result = mteb.evaluate(Encoder(models_by_kind["none"]), MockRetrievalTask(), cache=None)
    assert 0 < result.task_results[0].scores["test"][0]["ndcg_at_10"] <= 1


def test_mteb_is_asked_for(models_by_kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    with pytest.raises(UserError, match="mteb is not installed; pip install"):
        Encoder(models_by_kind["none"])
