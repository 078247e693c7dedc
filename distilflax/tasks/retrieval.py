"""Similarity and retrieval: one vector a text, near to the vectors of what belongs to it.

A bi-encoder (Reimers and Gurevych 2019, arXiv:1908.10084; Karpukhin et al. 2020, arXiv:2004.04906):
query and document pass through the same encoder apart, and are compared by an inner product. The
saved folder is one of sentence-transformers.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax.errors import UserError, choose_from
from distilflax.losses import Sum
from distilflax.losses.sentence import (
    allowed,
    candidates,
    contrast,
    margin_to_scores,
    nested,
    ordered,
    similarities,
)
from distilflax.models import POOLING, TaskHead, normalize
from distilflax.search.collection import retrieve
from distilflax.search.compact import shortened
from distilflax.settings import Encoder, Term
from distilflax.tasks import queries, relevance, scores, softened, tables, texts
from distilflax.tasks.queries import Query
from distilflax.tasks.records import Faults
from distilflax.tasks.task import NOTHING, Features, Task
from distilflax.text.tokenizer import Tokenizer
from distilflax.weights import SentenceFiles
from distilflax.weights.sentence import DOCUMENT, QUERY

LOSSES = ("contrastive", "margin_mse", "cosent")
_RANKED = ("ndcg@10", "mrr@10", "recall@10", "recall@100")
_CORRELATED = ("spearman", "pearson")


class Texts(NamedTuple):
    """What is encoded together: a query and its documents, "" where there are fewer than others
    have; or, to be measured, one query with its judgements, or one document. `itself` is the text
    of the document that the query is, which is no negative and is not searched for."""

    place: str
    texts: tuple[str, ...]
    scores: tuple[float, ...] = ()
    judged: Mapping[int, float] | None = None
    is_document: bool = False
    itself: str = ""


@dataclass(frozen=True)
class Retrieval(Task):
    """Options, and what was learned.

    `query`, `positive`, `negative` (several with commas between; under this name it may be missing)
    and `score` name columns, `header`, `delimiter` and `quoting` say how tables are written; see
    `queries.py` for the formats. Unless the loss learns from scores, one of 0 makes the only text
    of a record a negative of its query. `loss_name`: `contrastive` (the positive among all texts of
    the batch), `margin_mse` (differences of a teacher's scores) or `cosent` (two texts and how
    alike they are, as in STS-B; it has no negatives). `temperature` divides the similarities, but
    for margin_mse. `negatives`: so many of a query's own are used at a step, the first ones.
    `pooling` (`own` is the model's own, by its files for sentence-transformers; mean without any)
    and `normalize` make the vector; without `normalize` it is compared by its plain inner product,
    which is what a cross-encoder's scores want. `dims` makes the first so many coordinates useful
    by themselves (Matryoshka; compared as the whole vector is, where sentence-transformers
    normalises them always); the figures name them. Prompts, the model's own where none are given,
    are put before the texts and saved with the model.
    """

    name: ClassVar[str] = "retrieval"
    kind: ClassVar[str] = "vector"
    reading: ClassVar[tuple[str, ...]] = queries.Columns._fields

    query: str = "query"
    positive: str = "positive"
    negative: str = "negative"
    score: str = "score"
    header: tuple[str, ...] = ()
    delimiter: str = ""
    quoting: str = field(default="auto", metadata={"choices": tables.QUOTING})
    loss_name: str = field(default="contrastive", metadata={"choices": LOSSES})
    temperature: float = field(default=0.05, metadata={"least": 1e-3})
    negatives: int = field(default=1, metadata={"least": 0})
    pooling: str = field(default="own", metadata={"choices": ("own", *POOLING)})
    normalize: bool = True
    dims: tuple[int, ...] = ()
    query_prompt: str = ""
    document_prompt: str = ""
    select: str = ""

    def __post_init__(self):
        known = _CORRELATED if self._pairs else _RANKED
        if self.select and self.select not in known:
            raise UserError(
                f"config.options.select is {self.select!r}; {choose_from(self.select, known)}"
            )
        if any(width < 1 for width in self.dims):
            raise UserError(f"config.options.dims is {self.dims}; widths are at least 1.")

    @property
    def _pairs(self) -> bool:
        return self.loss_name == "cosent"

    @property
    def metric(self) -> str:
        return self.select or (_CORRELATED if self._pairs else _RANKED)[0]

    def of_model(self, own: SentenceFiles | None) -> "Retrieval":
        own = own or SentenceFiles()
        found = self.prompted_by(own)
        return replace(
            found,
            pooling=own.pooling if self.pooling == "own" else self.pooling,
            query_prompt=self.query_prompt or found.query_prompt,
            document_prompt=self.document_prompt or found.document_prompt,
        )

    def prompted_by(self, own: SentenceFiles) -> "Retrieval":
        """The same with a model's own prompts: of a pair, in which nobody asks and nothing answers,
        that which it has before any text."""
        asking, answering = ((), ()) if self._pairs else (QUERY, DOCUMENT)
        prompts = {"query_prompt": own.prompt(asking), "document_prompt": own.prompt(answering)}
        return replace(self, **prompts)

    @property
    def together(self) -> int:
        return 2 if self._pairs else 2 + self.negatives

    def read(self, paths: Sequence[Path], faults: Faults, *, labelled: bool = True) -> list:
        columns = queries.Columns.of(self)
        if not labelled:
            return [q for path in paths for q in queries.read_alone(path, columns, faults)]
        options = {"scored": self.loss_name == "margin_mse", "pairs": self._pairs}
        found = queries.read(paths, columns, faults, **options)
        return relevance.merged(found, faults, self.score)

    def split(self, examples: Sequence[Query], faults: Faults, *, training: bool) -> list[Query]:
        return list(examples) if training else relevance.labelled(examples, faults, self.score)

    def learn(self, examples: Sequence[Query]) -> "Retrieval":
        """With no more negatives than a query has: the others would be padding."""
        if self._pairs:
            return self
        most = max((sum(grade <= 0 for grade in q.grades) for q in examples), default=0)
        if self.loss_name == "margin_mse":
            queries.check_scored(examples, self.score)
        if self.loss_name == "margin_mse" and not (most and self.negatives):
            raise UserError(
                "config.options.loss_name is 'margin_mse' and there are no negatives; name their "
                "column as config.options.negative, and set config.options.negatives."
            )
        return replace(self, negatives=min(self.negatives, most))

    def arrange(self, examples: Sequence[Query], *, training: bool) -> list[Texts]:
        """To learn from, a group for each positive, and what came alone; to measure, all queries
        and all documents."""
        if training or self._pairs:
            return [group for q in examples for group in self._groups(q)]
        documents, judgements, itself = relevance.corpus_of(examples)
        asked = [
            Texts("query", (text,), judged=judged, itself=itself.get(text, ""))
            for text, judged in judgements.items()
        ]
        return asked + [Texts("document", (text,), is_document=True) for text in documents]

    def _groups(self, q: Query) -> list[Texts]:
        if not q.documents:
            # A query all of whose documents are missing is no text that came alone.
            return [] if q.missing else [Texts(q.place, (q.text,), is_document=True)]
        if self._pairs:
            return [Texts(q.place, (q.text, q.documents[0]), q.scores)]
        scored = q.scores or (float("nan"),) * len(q.documents)
        known = list(zip(q.documents, q.grades, scored, strict=True))
        # A collection may hold a text twice, and one copy be judged otherwise than the other.
        right = {text for text, grade, _ in known if grade > 0}
        wrong = [(text, score) for text, grade, score in known if grade <= 0 and text not in right]
        negatives = wrong[: self.negatives]
        missing = [("", float("nan"))] * (self.negatives - len(negatives))
        groups = []
        for text, grade, score in known:
            if grade > 0 and text:
                some = [(text, score), *negatives, *missing]
                documents, values = zip(*some, strict=True)
                groups.append(Texts(q.place, (q.text, *documents), values, itself=q.itself))
        return groups

    def wording(self, example: Texts) -> tuple[str, ...]:
        raise UserError(
            "config.augmentation makes texts that a teacher alone speaks on, and retrieval is told "
            "which texts belong together; leave config.augmentation.model empty."
        )

    def reworded(self, example: Texts, texts: tuple[str, ...]) -> Texts:
        raise NotImplementedError("wording has refused")

    def encode(self, words: Tokenizer, examples: Sequence[Texts], max_length: int) -> Features:
        flat = [
            (self.document_prompt if i or e.is_document else self.query_prompt, text)
            for e in examples
            for i, text in enumerate(e.texts)
        ]
        read = [prompt + text if text else "" for prompt, text in flat]
        ids, types, cut = texts.rows(words, read, None, max_length)
        number = {text: i for i, text in enumerate(dict.fromkeys(text for _, text in flat))}
        # With one number a query is known to be its own document (`allowed`), titled or not.
        number |= {e.itself: number[e.texts[0]] for e in examples if e.itself}
        named = [number[text] if text else NOTHING for _, text in flat]
        values = [
            value
            for e in examples
            for value in (np.nan, *(e.scores or (np.nan,) * (len(e.texts) - 1)))
        ]
        return Features(
            ids,
            types,
            np.repeat(np.arange(len(examples)), [len(e.texts) for e in examples]),
            {"text": np.array(named, np.int32), "score": np.array(values, np.float32)},
            cut=cut,
        )

    def head(self, encoder: Encoder) -> TaskHead:
        if self.dims and max(self.dims) > encoder.hidden_size:
            raise UserError(
                f"config.options.dims has {max(self.dims)} and the model's vectors have "
                f"{encoder.hidden_size} coordinates; give widths up to that."
            )
        return TaskHead(self.kind, pooling=self.pooling, normalize=self.normalize)

    def contrasts(self, taught: bool) -> bool:
        # CoSENT orders pairs, and learns more from those of like lengths: Spearman on STS-B's
        # development data is 0.859, 0.855 and 0.854 then, and 0.850, 0.848 and 0.845 at random
        # (`configs/stsb_vectors.py`, the demo's student, one epoch, seeds 0 to 2).
        return not self._pairs and (taught or self.loss_name == "contrastive")

    @property
    def texts_once(self) -> bool:
        return self.loss_name == "contrastive"

    def loss(self, logits: Float[Array, "B G D"], batch: dict) -> Sum:
        return nested(partial(self._loss, batch=batch), logits, self.dims)

    def _loss(self, vectors: Float[Array, "B G D"], batch: dict) -> Sum:
        if self._pairs:
            real = batch["text"][:, 0] >= 0
            value = ordered(self._own(vectors)[:, 0], batch["score"][:, 1], real, self.temperature)
            return Sum(value, jnp.float32(1))
        if self.loss_name == "margin_mse":
            own, real = self._own(vectors), batch["text"][:, 1:] >= 0
            value = margin_to_scores(own, batch["score"][:, 1:], real)
        else:
            value = contrast(
                vectors[:, 0], candidates(vectors), allowed(batch["text"]), self._compared()
            )
        return _counted(value, batch)

    def distil(
        self,
        logits: Float[Array, "B G D"],
        teacher: Float[Array, "B G E"],
        batch: dict,
        temperature: float,
    ) -> Sum:
        loss = partial(self._distil, teacher=teacher, batch=batch, temperature=temperature)
        return nested(loss, logits, self.dims)

    def _distil(
        self,
        logits: Float[Array, "B G D"],
        teacher: Float[Array, "B G E"],
        batch: dict,
        temperature: float,
    ) -> Sum:
        """Every query's distribution over the texts of the batch (TAS-B's in-batch teaching,
        Hofstätter et al. 2021, arXiv:2104.06967, with a bi-encoder for a teacher); of scored pairs
        the similarity itself, over `config.options.temperature` as in the labels' loss, beside
        which a squared difference of cosines is nothing."""
        if self._pairs:
            ours, theirs = (self._own(side) / self.temperature for side in (logits, teacher))
            return _counted(softened.squared(ours, theirs), batch)
        seen = candidates(batch["text"]) >= 0
        ours, theirs = (
            jnp.where(
                seen,
                similarities(side[:, 0], candidates(side), self._compared()) / self.temperature,
                -1e9,
            )
            for side in (logits, teacher)
        )
        return _counted(softened.kl(ours, theirs, temperature), batch)

    def _compared(self) -> Term:
        similarity = "cosine" if self.normalize else "dot"
        return Term(temperature=self.temperature, similarity=similarity)

    def _own(self, vectors: Float[Array, "B G D"]) -> Float[Array, "B documents"]:
        """Every query with its own documents."""
        if self.normalize:
            vectors = normalize(vectors)
        asked, documents = vectors[:, 0], vectors[:, 1:]
        return jnp.einsum("bd,bgd->bg", asked, documents, precision="highest")

    def decode(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Texts]
    ) -> list[dict]:
        """The vectors of each example, [texts, D]."""
        starts = np.searchsorted(features.owner, np.arange(len(examples) + 1))
        return [
            {"vectors": np.stack(logits[start:end])} for start, end in itertools.pairwise(starts)
        ]

    def metrics(self, predictions: Sequence[dict], examples: Sequence[Texts]) -> dict[str, float]:
        if not self._pairs:
            return scores.means(self._of_queries(predictions, examples))
        truth = np.array([e.scores[0] for e in examples])
        figures = {}
        for width, vectors in self._widths(predictions):
            near = np.array([float(first @ second) for first, second in vectors])
            found = scores.numbers(truth, near)
            figures |= {self._named(name, width): found[name] for name in self._kept(width)}
        return figures

    def by_index(
        self, predictions: Sequence[dict], examples: Sequence[Texts]
    ) -> tuple[int, Callable[[Int[np.ndarray, "n"]], dict[str, float]]]:
        """Queries are drawn; all documents stay."""
        if self._pairs:
            return super().by_index(predictions, examples)
        found = self._of_queries(predictions, examples)
        return len(found[self.metric]), partial(scores.means, found)

    def _of_queries(
        self, predictions: Sequence[dict], examples: Sequence[Texts]
    ) -> dict[str, Float[np.ndarray, "queries"]]:
        """Every figure of every query."""
        is_document = np.array([e.is_document for e in examples])
        asked = [e for e in examples if not e.is_document]
        judged = [e.judged for e in asked]
        itself = own_documents(asked, [e.texts[0] for e in examples if e.is_document])
        figures = {}
        for width, vectors in self._widths(predictions):
            flat = np.concatenate(vectors).astype(np.float32)
            found = retrieve(flat[~is_document], flat[is_document], judged, itself)
            figures |= {self._named(name, width): found[name] for name in self._kept(width)}
        return figures

    def _widths(self, predictions: Sequence[dict]) -> Iterator[tuple[int, list]]:
        """(0, the vectors of each example), and those of the first so many coordinates."""
        whole = [prediction["vectors"] for prediction in predictions]
        yield 0, whole
        for width in self.dims:
            if width < whole[0].shape[1]:
                yield width, [shortened(vectors, width, self.normalize) for vectors in whole]

    def _kept(self, width: int) -> tuple[str, ...]:
        """The figures that are told: of shortened vectors the one that models are chosen by."""
        return (self.metric,) if width else _CORRELATED if self._pairs else _RANKED

    def _named(self, name: str, width: int) -> str:
        return f"{name} of {width}" if width else name

    def own(self) -> dict:
        return {}

    def sentence(self, max_length: int) -> SentenceFiles:
        prompts = {"query": self.query_prompt, "document": self.document_prompt}
        # What is before either text of a pair is before every text.
        both = self._pairs and self.query_prompt == self.document_prompt != ""
        return SentenceFiles(
            pooling=self.pooling,
            normalize=self.normalize,
            max_seq_length=max_length,
            prompts=prompts if any(prompts.values()) else {},
            default_prompt="query" if both else None,
            similarity=self._compared().similarity,
        )


def own_documents(asked: Sequence[Texts], documents: Sequence[str]) -> tuple[int, ...]:
    """For each query the document, by index, that it is itself, or -1."""
    number = {text: i for i, text in enumerate(documents) if text}
    return tuple(number.get(e.itself, -1) for e in asked)


def _counted(value: Float[Array, " B"], batch: dict) -> Sum:
    real = batch["text"][:, 0] >= 0
    return Sum.over(value, real)
