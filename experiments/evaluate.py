"""Sentence vectors of any models, measured on data of your own.

    python -m experiments.evaluate --model=TEACHER --model=STUDENT \\
        --stsb=FOLDER --beir=FOLDER --documentation --json=out.json

A model is a Hugging Face folder, a hub name or package:NAME/SUBFOLDER, and is used as its
sentence-transformers files say (pooling, longest text, prompts), or with mean pooling where it has
none. The others are held against the first one.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from rich.console import Console

from distilflax import evaluate, weights
from distilflax.errors import UserError
from distilflax.evaluate import intervals, machine, retrieval, sts, tables
from distilflax.settings import Compute, Data
from distilflax.text import tokenizer
from experiments import command

_MODEL = flags.DEFINE_multi_string("model", [], "A model; give the flag again for each more.")
_STSB = flags.DEFINE_string("stsb", "", "TSV of sentence1, sentence2, score, or a folder of it.")
_BEIR = flags.DEFINE_multi_string("beir", [], "Folder with corpus.jsonl, queries.jsonl, qrels/.")
_DOCUMENTATION = flags.DEFINE_bool(
    "documentation", False, "Retrieve held-out entries of the installed documentation."
)
_SPLIT = flags.DEFINE_string("split", "test", "Which split of --stsb and --beir.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Cut texts to it; 0 as the model says.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Texts run at once.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "Write every figure there.")

# Sentence encoders without files of their own are mostly trained so; 512 tokens can be far more
# than they ever saw, but cutting a text short by default would be worse.
_DEFAULT = weights.SentenceFiles()


class Subject(NamedTuple):
    """A model and how to make vectors with it."""

    name: str
    model: evaluate.Model
    words: tokenizer.Tokenizer
    sentence: weights.SentenceFiles
    fingerprint: str

    def vectors(self, texts: tuple[str, ...], *prompts: str) -> np.ndarray:
        """Unit vectors, with the first of `prompts` that the model has put before each text."""
        known = {name: text for name, text in self.sentence.prompts.items() if text}
        prompt = next((known[name] for name in prompts if name in known), None)
        if prompt is None:
            prompt = known.get(self.sentence.default_prompt, "")
        return evaluate.embed(
            self.model,
            self.words,
            [prompt + text for text in texts],
            compute=Compute(),
            max_length=self.sentence.max_seq_length,
            batch_size=_BATCH.value,
            pooling=self.sentence.pooling,
        )


def run() -> None:
    console = Console()
    tasks = _tasks()
    if not _MODEL.value or not tasks:
        raise UserError(
            "Give at least one --model and one of --stsb, --beir and --documentation; see --help."
        )
    subjects = [_subject(path, _MODEL.value[:i]) for i, path in enumerate(_MODEL.value)]
    figures = {}
    for name, task in tasks.items():
        with console.status(name):
            note, metrics = task(subjects)
        table = tables.relative(name, [subject.name for subject in subjects], metrics, note)
        console.print(tables.terminal(table))
        figures[name] = {"note": note, "metrics": metrics}
    if _JSON.value:
        _write_json(Path(_JSON.value), subjects, figures)


def _tasks() -> dict[str, Callable]:
    """Every task that the flags ask for, its data read before any model is."""
    tasks = {}
    if _STSB.value:
        pairs = sts.read_pairs(_STSB.value, _SPLIT.value)
        tasks[f"STS {_STSB.value}"] = lambda subjects: _similarity(subjects, pairs)
    for folder in _BEIR.value:
        collection = retrieval.read_beir(folder, _SPLIT.value)
        tasks[f"Retrieval {folder}"] = lambda subjects, c=collection: _retrieval(subjects, c)
    if _DOCUMENTATION.value:
        tasks["Retrieval documentation"] = _documentation
    return tasks


def _subject(path: str, before: list[str]) -> Subject:
    checkpoint = weights.load(path)
    words = tokenizer.load(checkpoint.folder)
    tokenizer.check_vocabulary(words, checkpoint.encoder.vocab_size, str(checkpoint.folder))
    sentence = checkpoint.sentence or _DEFAULT
    longest = _MAX_LENGTH.value or min(sentence.max_seq_length, checkpoint.encoder.max_positions)
    name = Path(path).name or path
    name = path if any(Path(other).name == name for other in before) else name
    return Subject(
        name,
        evaluate.Model(name, checkpoint.encoder, checkpoint.params),
        words,
        dataclasses.replace(sentence, max_seq_length=longest),
        checkpoint.fingerprint,
    )


def _similarity(subjects: list[Subject], pairs: sts.Pairs) -> tuple[str, dict]:
    cosines = [sts.cosines(s.vectors(pairs.first), s.vectors(pairs.second)) for s in subjects]
    metrics = {"Spearman": [], "Pearson": []}
    for cosine in cosines:
        kept = None
        if cosine is not cosines[0]:
            kept = sts.compare_spearman(cosine, cosines[0], pairs.scores).retention._asdict()
        metrics["Spearman"].append((sts.spearman(cosine, pairs.scores), kept))
        metrics["Pearson"].append((sts.pearson(cosine, pairs.scores), None))
    return f"{len(pairs.scores):,} pairs.", metrics


def _retrieval(subjects: list[Subject], collection: retrieval.Collection) -> tuple[str, dict]:
    scores = [
        retrieval.retrieve(
            subject.vectors(collection.queries, "query"),
            subject.vectors(collection.documents, "document", "passage", "corpus"),
            collection.relevance,
        )
        for subject in subjects
    ]
    metrics = {}
    for label in ("nDCG@10", "MRR@10", "Recall@100"):
        own = [found[label.lower()] for found in scores]
        metrics[label] = [
            (
                float(values.mean()),
                None
                if values is own[0]
                else intervals.compare_means(values, own[0]).retention._asdict(),
            )
            for values in own
        ]
    return f"{len(collection.queries):,} queries, {len(collection.documents):,} documents.", metrics


def _documentation(subjects: list[Subject]) -> tuple[str, dict]:
    # Which entries are held out is decided by the text alone, so one tokenizer speaks for all.
    from distilflax.text import corpus

    held_out = corpus.prepare(Data(), subjects[0].words).validation_documents
    return _retrieval(subjects, retrieval.documentation(held_out))


def _write_json(path: Path, subjects: list[Subject], figures: dict) -> None:
    record = {
        "command": " ".join(["python -m experiments.evaluate", *sys.argv[1:]]),
        "models": [
            {
                "name": subject.name,
                "fingerprint": subject.fingerprint,
                "pooling": subject.sentence.pooling,
                "max_length": subject.sentence.max_seq_length,
            }
            for subject in subjects
        ],
        "tasks": figures,
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
    try:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give another.") from None


if __name__ == "__main__":
    command.main(run)
