"""What a user would try first, without any network: the rows that a model has to be above.

one label      TF-IDF of words and pairs of words, logistic regression (scikit-learn); its C is the
               best of a few on the development data, as is the threshold of "out of scope"
a number       of two texts: the cosine of their TF-IDF vectors
entities       the longest phrases that training data tags, with their one tag: the baseline of the
               CoNLL-2003 shared task (Tjong Kim Sang and De Meulder 2003, section 5)
answers        "no answer" to all, where that may be; of SubjQA's questions most have none
retrieval      BM25, stemmed, without stop words (bm25s and PyStemmer, the extra `classic`)

bm25s and not rank-bm25: on Cranfield, same tokens, they rank equally well (nDCG@10 0.5185 and
0.5136, whose formulas of idf differ; 0.489 and 0.491 without stems), bm25s in 0.06 seconds for the
225 queries and rank-bm25 in 1.1 (two cores at 2.5 GHz); the one was last released in 2026, the
other in 2022.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from distilflax.errors import UserError
from distilflax.search import ranking
from distilflax.search.collection import others
from distilflax.tasks import Answering, Classification, Retrieval, Tagging, bio, scores
from distilflax.tasks.data import Materials
from distilflax.tasks.retrieval import own_documents
from distilflax.tasks.squad import Question

_C = (1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Classic:
    """`figures` are those of the task on the test part; `answer` is what is timed, and takes test
    examples (of retrieval: the queries)."""

    name: str
    figures: dict[str, float]
    answer: Callable[[Sequence], Any]


def baseline(materials: Materials, learned_from: Sequence | None = None) -> Classic | None:
    """That of the task; None where none is customary. It learns from all training examples with a
    label, unless others are given.

    Raises:
      UserError: a library that it needs is missing.
    """
    task, train = materials.task, learned_from
    train = materials.train.examples[: materials.labelled] if train is None else train
    made = None
    try:
        if isinstance(task, Classification) and task.problem == "single" and not task.pair:
            made = _logistic_regression(materials, train)
        elif isinstance(task, Classification) and task.problem == "regression" and task.pair:
            made = _cosine_of_words(materials, train)
        elif isinstance(task, Tagging) and task.scheme != "plain":
            made = _lexicon(materials, train)
        elif isinstance(task, Answering) and task.unanswerable:
            made = _no_answer(materials)
        elif isinstance(task, Retrieval) and task.loss_name == "cosent":
            made = _cosine_of_words(materials, train)
        elif isinstance(task, Retrieval):
            made = _bm25(materials)
    except ImportError as error:
        raise UserError(
            f"The classic baselines need {error.name}: pip install 'distilflax[tasks,classic]'."
        ) from None
    return made


def _logistic_regression(materials: Materials, train: Sequence) -> Classic:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    task, dev = materials.task, materials.dev
    # Every word counts, "i" too, which scikit-learn's own pattern leaves out.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    read = words.fit_transform([e.text for e in train])
    labels = [e.label for e in train]

    def logits(model, examples) -> list[Float[np.ndarray, "labels"]]:
        found = model.predict_log_proba(words.transform([e.text for e in examples]))
        # A class may be known, and have no example to learn from.
        rows = np.full((len(found), len(task.labels)), -1e3)
        rows[:, [task.labels.index(name) for name in model.classes_]] = np.maximum(found, -1e3)
        return list(rows)

    best = None
    for c in _C:
        model = LogisticRegression(C=c, max_iter=1000).fit(read, labels)
        rows = logits(model, dev.examples)
        tuned = task.tune(rows, dev.features, dev.examples)
        predictions = tuned.decode(rows, dev.features, dev.examples)
        score = tuned.metrics(predictions, dev.examples)[task.metric]
        if best is None or score > best[0]:
            best = score, c, model, tuned

    _, c, model, tuned = best

    def answer(examples: Sequence) -> list[dict]:
        return tuned.decode(logits(model, examples), materials.test.features, examples)

    test = materials.test.examples
    return Classic(
        f"TF-IDF, logistic regression (C={c:g})", task.metrics(answer(test), test), answer
    )


def _cosine_of_words(materials: Materials, train: Sequence) -> Classic:
    from sklearn.feature_extraction.text import TfidfVectorizer

    test, as_vectors = materials.test.examples, isinstance(materials.task, Retrieval)
    truth = np.array([float(e.scores[0] if as_vectors else e.label) for e in test])

    def pairs(examples: Sequence) -> list[tuple[str, str]]:
        return [e.texts if as_vectors else (e.text, e.pair) for e in examples]

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    words.fit(itertools.chain.from_iterable(pairs(train)))

    def answer(examples: Sequence) -> Float[np.ndarray, "examples"]:
        first, second = (words.transform(side) for side in zip(*pairs(examples), strict=True))
        return np.asarray(first.multiply(second).sum(axis=1)).ravel()

    return Classic("cosine of TF-IDF", scores.numbers(truth, answer(test)), answer)


def _lexicon(materials: Materials, train: Sequence) -> Classic:
    """Phrases that were tagged with two types are left out; of phrases that overlap the longest one
    that begins first is taken."""
    types: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for sentence in train:
        for first, last, kind in bio.spans(sentence.tags or ()):
            types[sentence.words[first:last]][kind] += 1
    known = {phrase: next(iter(kinds)) for phrase, kinds in types.items() if len(kinds) == 1}
    longest = max(map(len, known), default=0)

    def tags(words: tuple[str, ...]) -> list[str]:
        found, i = [bio.OUTSIDE] * len(words), 0
        while i < len(words):
            for size in range(min(longest, len(words) - i), 0, -1):
                kind = known.get(tuple(words[i : i + size]))
                if kind is not None:
                    first, further = ("-".join(filter(None, (part, kind))) for part in "BI")
                    found[i : i + size] = [first] + [further] * (size - 1)
                    break
            else:
                size = 1
            i += size
        return found

    def answer(examples: Sequence) -> list[dict]:
        return [{"tags": tags(tuple(sentence.words))} for sentence in examples]

    test = materials.test.examples
    return Classic(
        "phrases of the training data", materials.task.metrics(answer(test), test), answer
    )


def _no_answer(materials: Materials) -> Classic:
    def answer(examples: Sequence[Question]) -> list[dict]:
        return [{"answer": ""} for _ in examples]

    test = materials.test.examples
    return Classic('"no answer" to all', materials.task.metrics(answer(test), test), answer)


def _bm25(materials: Materials) -> Classic:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def pieces(texts: Sequence[str]):
        return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)

    test = materials.test.examples
    documents = [e.texts[0] for e in test if e.is_document]
    queries = [e for e in test if not e.is_document]
    index = bm25s.BM25()
    index.index(pieces(documents), show_progress=False)

    def answer(examples: Sequence) -> Int[np.ndarray, "n K"]:
        asked = [e.texts[0] for e in examples]

        def search(k: int) -> tuple[Any, Int[np.ndarray, "n K"]]:
            k = min(k, len(documents))
            found, near = index.retrieve(pieces(asked), k=k, show_progress=False)
            # It fills up with documents that have no word of the query, which no search returns.
            return near, np.where(near > 0, found, -1)

        return others(search, ranking.DEEPEST, own_documents(examples, documents))

    found = ranking.score(answer(queries), [e.judged for e in queries])
    kept = (materials.task.metric, "mrr@10", "recall@100")
    return Classic("BM25", {name: float(found[name].mean()) for name in kept}, answer)
