"""`load(path)` and the calls on what it returns.

Every call takes one text or a list, and returns one value or a list in the same order. Texts run
from the shortest to the longest in batches of few shapes, each compiled when it is first met and
never again, whatever the lengths; `encode` packs many short ones into rows without padding. Any
number of threads may call at once; a process that was forked afterwards may not.
"""

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.predict import checked, forks
from distilflax.predict import vectors as sentence_vectors
from distilflax.predict.checked import Texts
from distilflax.predict.packing import PackedRunner
from distilflax.search import index as search_index
from distilflax.search.exact import at_unit_length, checked_k
from distilflax.settings import Compute
from distilflax.tasks import TASKS, Task, batches, texts
from distilflax.tasks.classification import Classification, Example
from distilflax.tasks.runner import Runner
from distilflax.tasks.squad import Question
from distilflax.tasks.task import Features
from distilflax.text import tokenizer as text_tokenizer
from distilflax.text.lines import local
from distilflax.weights.sentence import DOCUMENT, QUERY

BATCH_SIZES = (1, 8, 32)
_LEAST = 8  # tokens that can be asked for as `max_length`


def load(path: str | Path, *, compute: Compute | None = None, max_length: int = 0) -> "Predictor":
    """The model at `path`: an HF folder, a hub name, or package:NAME/SUBFOLDER.

    `max_length` cuts or windows texts at so many tokens; 0 is what the model was fine-tuned with,
    or its sentence-transformers files say, or else all that it can take.

    Raises:
      UserError: as `weights.load` does, a tokenizer that does not fit, a length that the model does
        not have, a `compute` that is none, or a fork of a process that has loaded a model.
    """
    forks.check()
    model = Predictor(path, checked.compute(compute), max_length)
    forks.loaded()
    return model


def _loaded_again(options: dict[str, Any], fingerprint: str) -> "Predictor":
    """A model that was pickled or copied, loaded from where it came from.

    Raises:
      UserError: as `load` does, or another model is there by now.
    """
    model = load(**options)
    if model._of_everything() != fingerprint:
        raise UserError(
            f"{model.path} holds another model now than the one that was pickled; load it anew."
        )
    return model


class Predictor:
    """See the module's docstring; made by `load`.

    `task` is what the model was fine-tuned for, None for an encoder alone; `folder` is where its
    config and weights were read from, and `fingerprint` tells models apart that make other vectors
    of texts as long as both take. A pickle holds no weights, but where they were loaded from.
    """

    def __init__(self, path: str | Path, compute: Compute, max_length: int):
        checkpoint = weights.load(path, with_task_head=True)
        self.path, self.folder = str(path), checkpoint.folder
        # Of a folder the whole path: who loads it again may stand elsewhere.
        source = str(local(path).absolute()) if local(path).is_dir() else self.path
        self._again = {"path": source, "compute": compute, "max_length": max_length}
        self.encoder, self.head = checkpoint.encoder, checkpoint.head
        self._words = text_tokenizer.load_for(checkpoint.folder, self.encoder.vocab_size)
        own, where = dict(checkpoint.own), f"{checkpoint.folder}/config.json: distilflax"
        learned = own.pop("max_length", checkpoint.vectors.max_seq_length)
        # The files of an encoder may say less than anyone asks for: a token and those around it.
        least = _LEAST if max_length or self.head is not None else 3
        self.max_length = checked.length(max_length or learned, least, self.encoder, self.path)
        self.task: Task | None = None
        if self.head is not None:
            # The first of a kind: what others of that kind save is read as that.
            kind = next(task for task in TASKS.values() if task.kind == self.head.kind)
            self.task = kind.restore(self.head, own, where)

        self._sentence = checkpoint.vectors
        prompts = map(self._sentence.prompt, ((), QUERY, DOCUMENT))
        tensors_and_words = (checkpoint.fingerprint, self._words.fingerprint)
        made = (*tensors_and_words, self._sentence.pooling, self._sentence.normalize, *prompts)
        self.fingerprint = hashlib.sha256(repr(made).encode()).hexdigest()
        self._params = jax.device_put(checkpoint.params)
        options = {
            "with_types": texts.with_types(self._words, self.encoder),
            "batch_sizes": BATCH_SIZES,
            "buckets": batches.buckets(self.max_length),
        }
        if self.head is not None:
            forward = partial(models.task_logits, self.encoder, compute, self.head)
            self._logits = Runner(forward, **options)
        said = {"pooling": self._sentence.pooling, "normalize": self._sentence.normalize}
        made_by = (self.encoder, compute, models.TaskHead("vector", **said))
        one_a_row = Runner(partial(models.task_logits, *made_by), **options)
        packed = partial(sentence_vectors.packed, *made_by)
        self._vectors = PackedRunner(packed, one_a_row, self.max_length)

    def __reduce__(self) -> tuple:
        return _loaded_again, (self._again, self._of_everything())

    def _of_everything(self) -> str:
        """The fingerprint of the encoder, its head and what the task has learned beside it."""
        head = weights.fingerprint_of_head(self._params)
        return hashlib.sha256(repr((self.fingerprint, head, self.task)).encode()).hexdigest()

    @property
    def compiled(self) -> int:
        """How many programs were compiled so far."""
        heads = self._logits.compiled if self.head is not None else {}
        return len(heads) + self._vectors.compiled

    def classify(self, text: Texts, pair: Texts | None = None) -> Any:
        """`{"label", "score"}`; `{"labels", "scores"}` of a model for many labels; `{"value"}`, the
        number itself, of one with a single output that is no label: behind the sigmoid, if it is a
        cross-encoder whose files name one. `pair` holds the second texts of a model for pairs.

        Raises:
          UserError: a model of another kind, or second texts that are missing or too many.
        """
        task = self._need("sequence", "classify")
        first, single = checked.listed(text, "classify")
        if task.pair and pair is None:
            raise UserError(f"{self.path} was fine-tuned on pairs; give the second text as `pair`.")
        second = [None] * len(first) if pair is None else checked.listed(pair, "classify")[0]
        if len(second) != len(first):
            raise UserError(
                f"classify was given {len(first)} texts and {len(second)} second ones; give one "
                "for each."
            )
        examples = [Example("text", a, b) for a, b in zip(first, second, strict=True)]
        return self._predict(task, examples, single)

    def tag(self, text: Texts | Iterable[Iterable[str]]) -> Any:
        """`{"words", "tags", "entities"}` (`scores` in place of entities where tags are no spans);
        each entity has its label, text and, where the words came out of a text, its place there. A
        text is split into words by `sentences.of_text`; a list of words is taken as it is. Where
        there are no words all of these are empty.

        Raises:
          UserError: a model of another kind, or what is neither texts nor lists of words.
        """
        task = self._need("token", "tag")
        examples = [checked.sentence_of(item) for item in checked.items(text)]
        return self._predict(task, examples, isinstance(text, str))

    def answer(self, question: Texts, context: Texts) -> Any:
        """`{"answer", "start", "end", "score", "no_answer", "n_best"}`: the answer is always
        context[start:end]; without one it is "" and start and end are None. Contexts may be of any
        length. One context may serve many questions.

        Raises:
          UserError: a model of another kind, an empty question or context, or lists of unlike
            lengths.
        """
        task = self._need("answer", "answer")
        questions, single = checked.listed(question, "answer")
        contexts, one_context = checked.listed(context, "answer")
        contexts = contexts * len(questions) if one_context else contexts
        questions = questions * len(contexts) if single else questions
        if len(questions) != len(contexts):
            raise UserError(
                f"answer was given {len(questions)} questions and {len(contexts)} contexts; give "
                "one context for each, or one for all."
            )
        for what, given in (("question", questions), ("context", contexts)):
            empty = next((i for i, text in enumerate(given) if not text.strip()), None)
            if empty is not None:
                raise UserError(f"The {what} number {empty + 1} is empty; give it some text.")
        pairs = zip(questions, contexts, strict=True)
        examples = [Question("text", str(i), q, c) for i, (q, c) in enumerate(pairs)]
        return self._predict(task, examples, single and one_context)

    def encode(self, text: Texts, *, prompt: str | None = None) -> Float[np.ndarray, "..."]:
        """One float32 vector for a text, or [n, D] for a list, as the model's sentence-transformers
        files say (pooling, unit length); mean pooling and unit length where it has none.

        `prompt` is put before every text; None is the model's own default prompt, where it has one.

        Raises:
          UserError: what is no text, or a prompt that is none.
        """
        forks.check()
        given, single = checked.listed(text, "encode")
        before = self._sentence.prompt() if prompt is None else checked.prompt(prompt)
        asked = [before + item for item in given]
        rows, types, _ = texts.rows(self._words, asked, None, self.max_length)
        features = Features(rows, types, np.arange(len(rows)))
        found = self._vectors(self._params, features)
        vectors = np.array(found, np.float32).reshape(len(rows), self.encoder.hidden_size)
        return vectors[0] if single else vectors

    def search(
        self,
        queries: Texts,
        corpus: Texts | Float[np.ndarray, "n D"] | search_index.Index,
        k: int = 10,
        *,
        probes: int | None = None,
        vectors: Float[np.ndarray, "n D"] | None = None,
    ) -> Any:
        """The `k` nearest of `corpus` for each query, best first: `{"index", "score", "text"}`, by
        cosine, or by inner product where the model's sentence-transformers files say so.

        `corpus` is texts, or their vectors from `encode_document`, and every one is looked at; or
        what `index` made of a large number of them, of which most are not: `probes` and `vectors`
        are those of `search.index.Index.nearest`, and of an index alone. Without texts no text is
        returned.

        Raises:
          UserError: an index of another model's vectors, vectors of another width or without a
            finite score, a k below 0, or what is said of an index where there is none.
        """
        asked, single = checked.listed(queries, "search")
        k, indexed = checked_k(k), isinstance(corpus, search_index.Index)
        if indexed:
            search_index.check_encoder(corpus.encoder, self.fingerprint)
            texts_of_it, documents = None, corpus
        elif probes is not None or vectors is not None:
            unheard = "vectors" if probes is None else "probes"
            raise UserError(
                f"search was given {unheard}, which are for an index, and a corpus that is none; "
                "leave them out, or make one with `index`."
            )
        else:
            texts_of_it, documents = self._documents(corpus, "search")
        k = min(k, len(documents))
        if not asked or not k:
            found = [[] for _ in asked]
            return found[0] if single and found else found
        asked = self.encode_query(asked)
        if indexed:
            asked = self.to_compare(asked)
            probes = search_index.PROBES if probes is None else probes
            scores, indices = documents.nearest(asked, k, probes=probes, vectors=vectors)
        else:
            scores, indices = sentence_vectors.best(asked, documents, k, self._scaled)
        found = [
            [
                {"index": int(i), "score": float(score)}
                | ({} if texts_of_it is None else {"text": texts_of_it[i]})
                for i, score in zip(row, values, strict=True)
                if i >= 0
            ]
            for row, values in zip(indices, scores, strict=True)
        ]
        return found[0] if single else found

    def index(self, corpus: Texts | Float[np.ndarray, "n D"], **options: Any) -> search_index.Index:
        """An index of texts, or of their vectors from `encode_document`, for `search`.

        Worth its building where there are many queries and hundreds of thousands of texts;
        `search.index` saves and loads it, and its `build` says what `options` there are.

        Raises:
          UserError: vectors of another width, options that are the model's to say, or as
            `search.index.build` does.
        """
        own = {"encoder": self.fingerprint, "scale": self._scaled}
        if taken := sorted(own.keys() & options.keys()):
            raise UserError(
                f"index was given {taken[0]}, which the model says by itself; leave it out."
            )
        _, vectors = self._documents(corpus, "index")
        return search_index.build(vectors, **own, **options)

    def _documents(
        self, corpus: Any, call: str
    ) -> tuple[list[str] | None, Float[np.ndarray, "n D"]]:
        """The texts of a corpus, None where it is vectors, and its vectors."""
        forks.check()
        if not (isinstance(corpus, np.ndarray) and corpus.dtype.kind in "iuf"):
            given, _ = checked.listed(corpus, call)
            return given, self.encode_document(given)
        if corpus.shape[1:] != (self.encoder.hidden_size,):
            raise UserError(
                f"{call} was given an array of shape {corpus.shape} and {self.path} makes "
                f"vectors of {self.encoder.hidden_size} coordinates; give [texts, coordinates]."
            )
        return None, corpus

    def to_compare(self, vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
        """Vectors whose inner products are what `search` compares: at unit length where that is
        the cosine."""
        return at_unit_length(vectors) if self._scaled else vectors

    @property
    def by_cosine(self) -> bool:
        """Whether vectors are compared by cosine; if not, by inner product."""
        return self._sentence.unit

    @property
    def normalized(self) -> bool:
        """Whether vectors are made at unit length."""
        return self._sentence.normalize

    @property
    def _scaled(self) -> bool:
        """Whether vectors, as they are made, are yet to be brought to the length of 1 to be
        compared."""
        return self.by_cosine and not self.normalized

    def encode_query(self, text: Texts) -> Float[np.ndarray, "..."]:
        """`encode` with the model's prompt for queries, where it has one."""
        return self.encode(text, prompt=self._sentence.prompt(QUERY))

    def encode_document(self, text: Texts) -> Float[np.ndarray, "..."]:
        """`encode` with the model's prompt for what is searched, where it has one."""
        return self.encode(text, prompt=self._sentence.prompt(DOCUMENT))

    def rerank(self, query: str, documents: Texts, k: int | None = None) -> list[dict]:
        """The `k` documents that answer the query best (all, if `k` is None), best first:
        `{"index", "score", "text"}`. `score` is a logit (of two labels, the second one's less the
        first one's); a cross-encoder of any origin will do, as tasks/reranking.py trains.

        Raises:
          UserError: a model of another kind, or one of more than two labels.
        """
        return self.rerank_many([query], [documents], k)[0]

    def rerank_many(
        self, queries: Texts, documents: Iterable[Texts], k: int | None = None
    ) -> list[list[dict]]:
        """`rerank` for many queries at once, each with documents of its own."""
        self._need("sequence", "rerank")
        if self.head.outputs > 2:
            raise UserError(
                f"{self.path} tells {self.head.outputs} labels apart, and rerank needs one number; "
                "load a cross-encoder."
            )
        asked, _ = checked.listed(queries, "rerank")
        given = [checked.listed(several, "rerank")[0] for several in checked.items(documents)]
        k = None if k is None else checked_k(k)
        if len(given) != len(asked):
            raise UserError(
                f"rerank was given {len(asked)} queries and {len(given)} lists of documents; give "
                "one list for each query."
            )
        pairs = [
            Example("text", query, text)
            for query, texts_of_it in zip(asked, given, strict=True)
            for text in texts_of_it
        ]
        features = Classification(pair="document").encode(self._words, pairs, self.max_length)
        found = np.array(self._logits(self._params, features), np.float32)
        scores = found.reshape(len(pairs), self.head.outputs)
        scores = scores[:, -1] - (scores[:, 0] if self.head.outputs == 2 else 0)
        ranked, start = [], 0
        for texts_of_it in given:
            own = scores[start : start + len(texts_of_it)]
            start += len(texts_of_it)
            order = np.argsort(-own, kind="stable")[:k]
            ranked.append(
                [{"index": int(i), "score": float(own[i]), "text": texts_of_it[i]} for i in order]
            )
        return ranked

    def _need(self, kind: str, call: str) -> Task:
        forks.check()
        if self.task is None:
            raise UserError(
                f"{self.path} has no head for {call}; fine-tune it first, or load a folder that "
                "was."
            )
        if self.task.kind != kind:
            raise UserError(
                f"{self.path} has a {self.task.kind} head, and {call} needs one of kind {kind}; "
                "load another model."
            )
        return self.task

    def _predict(self, task: Task, examples: list, single: bool) -> Any:
        features = task.encode(self._words, examples, self.max_length)
        logits = self._logits(self._params, features)
        found = task.decode(logits, features, examples)
        return found[0] if single else found
