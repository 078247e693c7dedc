"""A checkpoint through mteb's interface: its own toy tasks, beside what we compute ourselves."""

import json
import shutil
import sys

import numpy as np
import pytest

import distilflax
from distilflax import weights
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


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_it_compares_as_the_models_files_say(mteb, models_by_kind, tmp_path, similarity):
    folder = shutil.copytree(models_by_kind["none"], tmp_path / "model")
    sentence = weights.SentenceFiles(normalize=False, similarity=similarity)
    for name, content in weights.sentence.files(sentence, 16).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    encoder = Encoder(folder)
    first, second = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    expected = first @ second.T
    if similarity == "cosine":
        lengths = [np.linalg.norm(rows, axis=1) for rows in (first, second)]
        expected /= np.outer(*lengths)
    np.testing.assert_allclose(encoder.similarity(first, second), expected, atol=1e-5)
    pairs = encoder.similarity_pairwise(first, second)
    np.testing.assert_allclose(pairs, np.diag(expected), atol=1e-5)
    assert encoder.mteb_model_meta.similarity_fn_name.value == similarity


def test_mteb_is_asked_for(models_by_kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    with pytest.raises(UserError, match="mteb is not installed; pip install"):
        Encoder(models_by_kind["none"])
