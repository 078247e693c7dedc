import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from distilflax import settings, weights
from distilflax.evaluate import held_out_batches, mask_batches, measure, report, retrieval
from distilflax.evaluate.measure import ranking_scores, size
from distilflax.evaluate.vectors import tokenize
from distilflax.models import parameter_count


@pytest.fixture(scope="module")
def measured(teacher, student, make_model, words, sentences, table):
    evaluation = settings.Evaluation(
        batch_size=4,
        masked_lm_batches=2,
        retrieval_length=16,
        latency_length=16,
        latency_batch=2,
        latency_repeats=3,
    )
    data = settings.Data(max_length=32, buckets=(32,))
    host_batches = held_out_batches(tokenize(words, sentences, 32), data, evaluation)
    entries = [f"{text}\n{text} {other}" for text, other in itertools.pairwise(sentences)]
    # Without its head, but of the student's architecture, so that it is compiled once.
    headless = make_model("headless", 1, mlm_head=False, type_vocab_size=0, pooler=False)
    return measure(
        [teacher, student, headless],
        words,
        batches=mask_batches(host_batches, jax.random.key(0), table, settings.Masking(rate=0.3)),
        collection=retrieval.documentation(entries),
        evaluation=evaluation,
        compute=settings.Compute(),
        sentence=weights.SentenceFiles(),
    )


def test_every_model_has_every_figure(measured):
    first, second, headless = measured
    assert first["agreement"] is None
    assert first["about"] == "the model that was distilled"
    assert "retention" not in first["retrieval"]["mrr@10"]
    assert set(second["agreement"]) >= {"kl", "top_1", "cosines", "layers"}
    assert set(second["retrieval"]["mrr@10"]) == {"mean", "difference", "retention"}
    assert first["speed"]["latency"]["speed_up"] == 1.0
    assert second["speed"]["throughput"]["batch"] == 2
    assert headless["masked_lm"] is None
    assert headless["agreement"]["kl"] is None


def test_differences_are_those_of_the_means(measured):
    first, second, _ = (model["retrieval"]["mrr@10"] for model in measured)
    difference, retention = second["difference"], second["retention"]
    assert difference["value"] == pytest.approx(second["mean"] - first["mean"])
    assert retention["value"] == pytest.approx(second["mean"] / first["mean"])
    kept = measured[1]["retrieval"]["per_query"]["mrr@10"]
    assert sum(kept) / len(kept) == pytest.approx(second["mean"], abs=1e-5)


def test_it_becomes_a_report(measured, tmp_path):
    built = report.build(measured, title="T", command="c", config={"seed": 0}, text={})
    report.write(tmp_path, built)
    assert report.read(tmp_path) == json.loads(json.dumps(built))


def test_size_is_that_of_the_saved_tensors(student, tmp_path, words):
    words.fast.save(str(tmp_path / "tokenizer.json"))
    params = {"encoder": student.params["encoder"]}
    saved = weights.save(tmp_path / "out", student.encoder, params, tokenizer_folder=tmp_path)
    file = (saved / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    found = size(student)
    assert found["megabytes"] * 1e6 == len(file) - header
    assert found["parameters"] == parameter_count(params)


def test_a_collection_is_asked_as_the_teacher_is(teacher, words, sentences):
    """With its prompts, and with vectors made as its files say."""
    evaluation, compute = settings.Evaluation(retrieval_length=16, batch_size=4), settings.Compute()
    pairs = list(itertools.pairwise(sentences))
    plain = retrieval.documentation([f"{text}\n{text} {other}" for text, other in pairs])
    prompts = {"query": sentences[0] + " ", "passage": sentences[1] + " "}
    own = weights.SentenceFiles(pooling="cls", prompts=prompts)
    found = ranking_scores(teacher, words, plain, evaluation, compute, own)["mrr@10"]
    written = dataclasses.replace(
        plain,
        queries=tuple(prompts["query"] + text for text in plain.queries),
        documents=tuple(prompts["passage"] + text for text in plain.documents),
    )
    for sentence, same in (
        (weights.SentenceFiles(pooling="cls"), True),
        (weights.SentenceFiles(), False),
    ):
        expected = ranking_scores(teacher, words, written, evaluation, compute, sentence)["mrr@10"]
        assert np.array_equal(found, expected) == same
