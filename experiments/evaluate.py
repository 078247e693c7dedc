"""Models measured on data of your own: their sentence vectors, or a task they were fine-tuned for.

    python -m experiments.evaluate --model=TEACHER --model=STUDENT \\
        --stsb=FOLDER --beir=FOLDER --documentation --json=out.json
    python -m experiments.evaluate --model=FINE_TUNED --config=configs/sst2.py --data=SST2_FOLDER
    python -m experiments.evaluate --report=runs/seed0 --report=runs/seed1 --report=runs/seed2

A model is a Hugging Face folder, a hub name or package:NAME/SUBFOLDER, and is used as its
sentence-transformers files say (pooling, longest text, prompts), or with mean pooling where it has
none. The others are held against the first one.

    python -m experiments.evaluate --model=MODEL --stsb=FOLDER --beir=FOLDER \\
        --vectors=float32 --vectors=float32:128 --vectors=int8 --vectors="binary>int8"
    python -m experiments.evaluate --model=MODEL --rerank=CROSS_ENCODER --beir=FOLDER

--vectors are forms to keep vectors in (`search/compact.py`), each a row; with --rerank the first
--top texts that a model found are put in order by a cross-encoder, in a row of its own.

--config puts fine-tuned folders, ours or others', to the data of a task's config without training
anything: `--split` chooses its train, dev or test files, options of the config say how they are
read (`--config.options.text=review`), and `--tune` chooses thresholds on the dev files first.
Intervals are 95% over examples, or over queries. --report sums up the reports of one experiment
under several seeds.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import config_flags
from rich.console import Console

import distilflax
from distilflax import evaluate, weights
from distilflax.errors import UserError, choose_from
from distilflax.evaluate import fine_tuned, intervals, retrieval, sts, tables
from distilflax.predict import Predictor
from distilflax.search import collection as searched
from distilflax.search import compact, exact, ranking
from distilflax.settings import Compute, Data
from distilflax.tasks.data import Reader, fingerprint
from distilflax.tasks.settings import FineTuning, from_values, task_of
from distilflax.text import corpus, tokenizer
from distilflax.train import machine, records
from distilflax.train.progress import say_on
from distilflax.weights.sentence import DOCUMENT, QUERY
from experiments import command

_MODEL = flags.DEFINE_multi_string("model", [], "A model; give the flag again for each more.")
_STSB = flags.DEFINE_string("stsb", "", "TSV of sentence1, sentence2, score, or a folder of it.")
_BEIR = flags.DEFINE_multi_string("beir", [], "Folder with corpus.jsonl, queries.jsonl, qrels/.")
_DOCUMENTATION = flags.DEFINE_bool(
    "documentation", False, "Retrieve held-out entries of the installed documentation."
)
_VECTORS = flags.DEFINE_multi_string("vectors", ["float32"], "float32, int8, binary, ...; :WIDTH")
_RERANK = flags.DEFINE_multi_string("rerank", [], "A cross-encoder for what --beir found.")
_TOP = flags.DEFINE_integer("top", 50, "Texts that --rerank reads for a query.", lower_bound=1)
_CONFIG = config_flags.DEFINE_config_file("config", None, "A task's file of configs/.")
_DATA = flags.DEFINE_string("data", None, "Folder of that task's data.")
_TUNE = flags.DEFINE_bool("tune", False, "Choose the task's thresholds on its dev files first.")
_SPLIT = flags.DEFINE_string("split", "test", "Which split of --stsb, --beir and --config.")
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    0,
    "Cut texts to so many tokens; 0 as the model says; not of --config.",
    lower_bound=0,
)
_BATCH = flags.DEFINE_integer(
    "batch_size", 32, "Texts run at once; not of --config.", lower_bound=1
)
_JSON = flags.DEFINE_string("json", "", "Write every figure there.")
_REPORT = flags.DEFINE_multi_string("report", [], "A run's folder; give one for each seed.")


# The files that a task's config names.
_FILES = ("test", "dev", "train")

# For each metric one entry a row: its score and, but for the first, the share that it keeps.
Metrics = dict[str, list[dict]]
Rows = tuple[list[str], str, Metrics]


class Subject(NamedTuple):
    """A model and how to make vectors with it."""

    name: str
    model: evaluate.Model
    words: tokenizer.Tokenizer
    sentence: weights.SentenceFiles
    fingerprint: str

    def vectors(self, texts: tuple[str, ...], prompts: tuple[str, ...] = ()) -> np.ndarray:
        """Vectors as they are compared, with the first of `prompts` that the model has put before
        each text."""
        return evaluate.embed(
            self.model,
            self.words,
            self.sentence.prompted(texts, prompts),
            compute=Compute(),
            max_length=self.sentence.max_seq_length,
            batch_size=_BATCH.value,
            sentence=self.sentence,
        )


def run() -> None:
    console = Console()
    tasks, _ = _tasks(), _forms()
    if _REPORT.value:
        reports = [evaluate.report.read(path) for path in _REPORT.value]
        console.print(tables.terminal(evaluate.across_seeds(reports)))
        return
    if not _MODEL.value or not (tasks or _CONFIG.value):
        raise UserError(
            "Give at least one --model and one of --stsb, --beir, --documentation and --config (or "
            "--report twice); see --help."
        )
    if _RERANK.value and not (_BEIR.value or _DOCUMENTATION.value):
        raise UserError("--rerank puts in order what a search finds; give --beir with it.")
    if _TUNE.value and not _CONFIG.value:
        raise UserError("--tune chooses a task's thresholds; give the task as --config.")
    _check_own_flags(bool(tasks))
    output = command.file_of(_JSON)
    names = _names(_MODEL.value)
    figures = {}
    if _CONFIG.value:
        title, figures[title] = _fine_tuned(names, console)
    if not tasks:
        _write(output, [], figures)
        return
    subjects = [_subject(path, name) for path, name in zip(_MODEL.value, names, strict=True)]
    for title, task in tasks.items():
        with console.status(title):
            rows, note, metrics = task(subjects)
        console.print(tables.terminal(tables.relative(title, rows, metrics, note)))
        figures[title] = {"rows": rows, "note": note, "metrics": metrics}
    _write(output, subjects, figures)


def _check_own_flags(has_vectors: bool) -> None:
    """
    Raises:
      UserError: a flag that the task of --config would not hear.
    """
    if not _CONFIG.value:
        return
    of_config = {"max_length": "data.max_length", "batch_size": "training.batch_size"}
    for name, key in of_config.items():
        if command.is_named(name):
            raise UserError(f"--{name} is not heard by --config; give --config.{key} instead.")
    if not has_vectors and command.is_named("vectors"):
        raise UserError(
            "--vectors are forms of what --stsb, --beir and --documentation compare, and --config "
            "has none; give one of those with it, or leave it out."
        )


def _fine_tuned(names: list[str], console: Console) -> tuple[str, dict]:
    """(title, note and metrics) of the models on the task of --config."""
    run = from_values(command.task_values_of(_CONFIG, _DATA))
    if not run.data.folder:
        raise UserError("--data is missing; give the folder of the task's data.")
    if _SPLIT.value not in _FILES:
        raise UserError(f"--split is {_SPLIT.value!r}; {choose_from(_SPLIT.value, _FILES)}")
    reader = Reader(run, say_on(console))
    examples = _examples(run, reader, _SPLIT.value)
    pairs = zip(_MODEL.value, names, strict=True)
    compared = [fine_tuned.load(path, name, run, examples) for path, name in pairs]
    if _TUNE.value:
        dev = _examples(run, reader, "dev")
        compared = [
            fine_tuned.tuned(
                model,
                model.task.arrange(reader.checked(model.task, "dev", dev), training=False),
            )
            for model in compared
        ]
    for model in compared:
        # What one model does not know the labels of is left out for all of them.
        examples = reader.checked(model.task, _SPLIT.value, examples)
    title = f"{run.task} {getattr(run.data, _SPLIT.value)}"
    with console.status(title):
        arranged = compared[0].task.arrange(examples, training=False)
        metrics = fine_tuned.measure(compared, arranged)
    positive = fine_tuned.positive(compared)
    note = f"{len(examples):,} examples{f'; f1 is of the label {positive!r}' * bool(positive)}."
    console.print(tables.terminal(tables.by_figure(title, names, metrics, note)))
    models = [
        {
            "name": model.name,
            "fingerprint": model.checkpoint.fingerprint,
            "max_length": model.max_length,
            "threshold": vars(model.task).get("threshold"),
        }
        for model in compared
    ]
    more = {"models": models, "data": fingerprint(arranged), "notes": reader.notes}
    return title, {"rows": names, "note": note, "metrics": metrics} | more


def _examples(run: FineTuning, reader: Reader, split: str) -> list:
    return reader.examples(task_of(run), split, getattr(run.data, split))


def _write(output: Path | None, subjects: list[Subject], figures: dict) -> None:
    if output:
        records.write_json(output, _record(subjects, figures))


def _tasks() -> dict[str, Callable]:
    """Every task that the flags ask for, its data read before any model is."""
    tasks = {}
    if _STSB.value:
        pairs = sts.read_pairs(_STSB.value, _SPLIT.value)
        tasks[f"STS {_STSB.value}"] = lambda subjects: _similarity(subjects, pairs)
    for folder in _BEIR.value:
        collection = searched.read_beir(folder, _SPLIT.value)
        tasks[f"Retrieval {folder}"] = lambda subjects, c=collection: _retrieval(subjects, c)
    if _DOCUMENTATION.value:
        tasks["Retrieval documentation"] = _documentation
    return tasks


def _names(paths: list[str]) -> list[str]:
    """The last two steps of each path, which tell most models apart; otherwise the paths."""
    short = [weights.short_name(path) for path in paths]
    return short if len(set(short)) == len(short) else paths


def _subject(path: str, name: str) -> Subject:
    checkpoint = weights.load(path)
    words = tokenizer.load_for(checkpoint.folder, checkpoint.encoder.vocab_size)
    sentence, most = checkpoint.vectors, checkpoint.encoder.max_positions
    width = checkpoint.encoder.hidden_size
    for text, form in zip(_VECTORS.value, _forms(), strict=True):
        if form.width > width:
            raise UserError(f"--vectors={text}: vectors of {path} have {width} coordinates.")
    length = _MAX_LENGTH.value or min(sentence.max_seq_length, most)
    if not 3 <= length <= most:
        raise UserError(f"--max_length is {length}; {path} takes from 3 to {most} tokens.")
    return Subject(
        name,
        evaluate.Model(name, checkpoint.encoder, checkpoint.params),
        words,
        dataclasses.replace(sentence, max_seq_length=length),
        checkpoint.fingerprint,
    )


def _forms() -> list[compact.Form]:
    return [compact.form(text) for text in _VECTORS.value]


def _label(subject: Subject, text: str) -> str:
    """The row of a model and a form; the model alone where there is one form for all."""
    if len(_VECTORS.value) == 1:
        return subject.name
    size = compact.form(text).bytes_a_vector(subject.model.encoder.hidden_size)
    return f"{subject.name} {text} ({size:,} bytes)"


def _similarity(subjects: list[Subject], pairs: sts.Pairs) -> Rows:
    rows, cosines = [], []
    for subject in subjects:
        first, second = subject.vectors(pairs.first), subject.vectors(pairs.second)
        for text, form in zip(_VECTORS.value, _forms(), strict=True):
            # One collection, with one range a coordinate: both sides were kept.
            kept = compact.restored(compact.compress(np.concatenate([first, second]), form))
            rows.append(_label(subject, text))
            cosines.append(sts.cosines(*np.split(kept, 2)))
    spearman = [{"score": sts.spearman(cosine, pairs.scores)} for cosine in cosines]
    for entry, cosine in zip(spearman[1:], cosines[1:], strict=True):
        compared = sts.compare_spearman(cosine, cosines[0], pairs.scores)
        entry["retention"] = compared.retention._asdict()
    pearson = [{"score": sts.pearson(cosine, pairs.scores)} for cosine in cosines]
    return rows, f"{len(pairs.scores):,} pairs.", {"Spearman": spearman, "Pearson": pearson}


def _retrieval(subjects: list[Subject], collection: searched.Collection) -> Rows:
    rows, scores = [], []
    rerankers = [(path, distilflax.load(path)) for path in _RERANK.value]
    for subject in subjects:
        queries = subject.vectors(collection.queries, QUERY)
        documents = subject.vectors(collection.documents, DOCUMENT)
        for text, form in zip(_VECTORS.value, _forms(), strict=True):
            kept = compact.compress(documents, form, subject.sentence.unit)
            search = functools.partial(compact.nearest, queries, kept)
            found = searched.others(search, ranking.DEEPEST, collection.itself)
            rows.append(_label(subject, text))
            scores.append(ranking.score(found, collection.relevance))
        for path, model in rerankers:
            search = functools.partial(exact.nearest, queries, documents)
            found = searched.others(search, max(ranking.DEEPEST, _TOP.value), collection.itself)
            found = reranked(model, collection, found, _TOP.value)[:, : ranking.DEEPEST]
            rows.append(f"{subject.name}, {_TOP.value} by {weights.short_name(path)}")
            scores.append(ranking.score(found, collection.relevance))
    metrics = {}
    for label in ("nDCG@10", "MRR@10", "Recall@100"):
        own = [found[label.lower()] for found in scores]
        metrics[label] = [{"score": float(values.mean())} for values in own]
        for entry, values in zip(metrics[label][1:], own[1:], strict=True):
            entry["retention"] = intervals.compare_means(values, own[0]).retention._asdict()
    number = f"{len(collection.queries):,} queries, {len(collection.documents):,} documents"
    return rows, " ".join(f"{sentence}." for sentence in (number, *collection.notes)), metrics


def reranked(
    model: Predictor, collection: searched.Collection, found: np.ndarray, top: int
) -> np.ndarray:
    """`found`, [queries, documents by rank], with the first `top` of each row in another order."""
    texts = [[collection.documents[i] for i in row[:top] if i >= 0] for row in found]
    ranked = model.rerank_many(list(collection.queries), texts)
    out = found.copy()
    for row, before, order in zip(out, found, ranked, strict=True):
        row[: len(order)] = [before[one["index"]] for one in order]
    return out


def _documentation(subjects: list[Subject]) -> Rows:
    # Which entries are held out is decided by the text alone, so one tokenizer speaks for all; a
    # run that held out a larger share held out these as well, one with a smaller share did not.
    fraction = min([Data().validation_fraction, *map(retrieval.held_out_by, _MODEL.value)])
    if not fraction:
        raise UserError("--documentation: a model was trained on all of it; give other texts.")
    data = Data(validation_fraction=fraction)
    held_out = corpus.prepare(data, subjects[0].words).validation_documents
    return _retrieval(subjects, retrieval.documentation(held_out))


def _record(subjects: list[Subject], figures: dict) -> dict:
    return {
        "command": command.typed("evaluate"),
        "models": [
            {
                "name": subject.name,
                "fingerprint": subject.fingerprint,
                "pooling": subject.sentence.pooling,
                "max_length": subject.sentence.max_seq_length,
            }
            for subject in subjects
        ],
        "tasks": records.plain(figures),
        "machine": machine.describe(),
        "versions": machine.versions(),
    }


if __name__ == "__main__":
    command.main(run)
