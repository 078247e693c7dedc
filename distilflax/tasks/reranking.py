"""Reranking: a cross-encoder reads a query together with each candidate, and gives one number.

Slower than comparing vectors and better (Nogueira and Cho 2019, arXiv:1901.04085), hence for the
first candidates that a bi-encoder found. The saved folder is an ordinary one of a single output,
which `CrossEncoder` of sentence-transformers loads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from distilflax.errors import UserError, choose_from
from distilflax.losses import Sum
from distilflax.models import TaskHead
from distilflax.search import ranking
from distilflax.settings import Encoder
from distilflax.tasks import queries, relevance, scores, softened, tables, texts
from distilflax.tasks.queries import Query
from distilflax.tasks.records import Faults
from distilflax.tasks.task import Features, Task
from distilflax.text.tokenizer import Tokenizer

LOSSES = ("binary", "squared")
_METRICS = ("ndcg@10", "mrr@10")


class Candidate(NamedTuple):
    """A query with one text; `query` numbers the queries of a part of the data."""

    place: str
    text: str
    pair: str
    query: int
    grade: float
    score: float = float("nan")


@dataclass(frozen=True)
class Reranking(Task):
    """Options; the columns are those of the task `retrieval`, whose files these are too.

    `loss_name`: `binary` (cross-entropy of one output: does it answer?) or `squared` (a teacher's
    scores, column `score`). `negatives`: so many of each query's are trained on.

    The figures are of each query's own candidates: all of those in its record, or all that were
    judged in a BEIR folder. How a search is improved, `experiments.evaluate --rerank` measures.
    """

    name: ClassVar[str] = "reranking"
    kind: ClassVar[str] = "sequence"
    reading: ClassVar[tuple[str, ...]] = queries.Columns._fields

    query: str = "query"
    positive: str = "positive"
    negative: str = "negative"
    score: str = "score"
    header: tuple[str, ...] = ()
    delimiter: str = ""
    quoting: str = field(default="auto", metadata={"choices": tables.QUOTING})
    loss_name: str = field(default="binary", metadata={"choices": LOSSES})
    negatives: int = field(default=4, metadata={"least": 1})
    select: str = ""

    def __post_init__(self):
        if self.select and self.select not in _METRICS:
            raise UserError(
                f"config.options.select is {self.select!r}; {choose_from(self.select, _METRICS)}"
            )

    @property
    def metric(self) -> str:
        return self.select or _METRICS[0]

    def read(self, paths: Sequence[Path], faults: Faults, *, labelled: bool = True) -> list:
        columns = queries.Columns.of(self)
        scored = labelled and self.loss_name == "squared"
        options = {"scored": scored, "pairs": False}
        found = queries.read(paths, columns, faults, **options)
        # Of an unlabelled file no grade is told: its teacher alone says which is which.
        if not labelled:
            return [q._replace(grades=()) for q in found]
        found = relevance.merged(found, faults, self.score)
        # No order of its candidates is right where all that answers is missing.
        kept = [q for q in found if not q.missing or max(q.grades, default=0.0) > 0]
        if len(kept) < len(found):
            faults.note(
                f"{len(found) - len(kept):,} queries have no answer but documents that are not in "
                "the corpus, and were left out"
            )
        return kept

    def learn(self, examples: Sequence[Query]) -> "Reranking":
        if not any(grade <= 0 for q in examples for grade in q.grades):
            raise UserError(
                "The training data has no negatives, and from positives alone nothing can be told "
                "apart; name their column as config.options.negative, or find some with "
                "experiments.mine."
            )
        if self.loss_name == "squared":
            queries.check_scored(examples, self.score)
        return self

    def split(self, examples: Sequence[Query], faults: Faults, *, training: bool) -> list:
        if training:
            return list(examples)
        examples = relevance.labelled(examples, faults, self.score)
        if not any(grade <= 0 for q in examples for grade in q.grades):
            raise UserError(
                "The development or test data has no negatives, so that every order of its texts "
                "is right; give some, as experiments.mine does."
            )
        return examples

    def group(self, example: Candidate) -> bool:
        """Whether it answers: a small part of the data has some of both."""
        return example.grade > 0

    def arrange(self, examples: Sequence[Query], *, training: bool) -> list[Candidate]:
        """Every query with every text of its own, once; of its negatives the first, in training."""
        numbers: dict[str, int] = {}
        found: dict[tuple[str, str], Candidate] = {}
        for q in examples:
            number = numbers.setdefault(q.text, len(numbers))
            grades = q.grades or (float("nan"),) * len(q.documents)
            scored = q.scores or (float("nan"),) * len(q.documents)
            kept = 0
            for text, grade, score in zip(q.documents, grades, scored, strict=True):
                kept += grade <= 0
                # Without a word there is nothing to learn from.
                if training and (not text or (grade <= 0 and kept > self.negatives)):
                    continue
                before = found.get((q.text, text))
                if before is None or grade > before.grade:
                    one = Candidate(q.place, q.text, text, number, grade, score)
                    found[q.text, text] = one
        return list(found.values())

    def wording(self, example: Candidate) -> tuple[str, ...]:
        return example.text, example.pair

    def reworded(self, example: Candidate, texts: tuple[str, ...]) -> Candidate:
        text, pair = texts
        unknown = float("nan")
        return example._replace(text=text, pair=pair, grade=unknown, score=unknown)

    def encode(self, words: Tokenizer, examples: Sequence[Candidate], max_length: int) -> Features:
        first, second = [e.text for e in examples], [e.pair for e in examples]
        ids, types, cut = texts.rows(words, first, second, max_length)
        graded = np.array([e.grade for e in examples], np.float32)
        wanted = np.array([e.score for e in examples], np.float32)
        if self.loss_name == "binary":
            wanted = np.where(np.isnan(graded), np.nan, graded > 0).astype(np.float32)
        return Features(ids, types, np.arange(len(ids)), {"label": wanted}, cut=cut)

    def head(self, encoder: Encoder) -> TaskHead:
        problem = "multi" if self.loss_name == "binary" else "regression"
        return TaskHead(self.kind, ("relevance",), problem)

    def loss(self, logits: Float[Array, "B 1"], batch: dict) -> Sum:
        real = ~jnp.isnan(batch["label"])
        target, found = jnp.where(real, batch["label"], 0.0), logits[:, 0]
        if self.loss_name == "binary":
            value = optax.sigmoid_binary_cross_entropy(found, target)
        else:
            value = jnp.square(found - target)
        return Sum.over(value, real)

    def distil(
        self,
        logits: Float[Array, "B 1"],
        teacher: Float[Array, "B 1"],
        batch: dict,
        temperature: float,
    ) -> Sum:
        if self.loss_name == "binary":
            value = softened.binary_kl(logits, teacher, temperature)
        else:
            value = softened.squared(logits, teacher)
        real = jnp.any(batch["attention_mask"] > 0, axis=1)
        return Sum.over(value, real)

    def decode(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence
    ) -> list[dict]:
        del features, examples
        return [{"score": float(row[0])} for row in logits]

    def metrics(
        self, predictions: Sequence[dict], examples: Sequence[Candidate]
    ) -> dict[str, float]:
        return scores.means(self._of_queries(predictions, examples))

    def by_index(
        self, predictions: Sequence[dict], examples: Sequence[Candidate]
    ) -> tuple[int, Callable[[Int[np.ndarray, "n"]], dict[str, float]]]:
        """Queries are drawn, each with all of its candidates."""
        found = self._of_queries(predictions, examples)
        return len(found[self.metric]), partial(scores.means, found)

    def _of_queries(
        self, predictions: Sequence[dict], examples: Sequence[Candidate]
    ) -> dict[str, Float[np.ndarray, "queries"]]:
        """Every figure of every query."""
        own: dict[int, list[tuple[float, float]]] = {}
        for prediction, e in zip(predictions, examples, strict=True):
            own.setdefault(e.query, []).append((prediction["score"], e.grade))
        if not np.isfinite([prediction["score"] for prediction in predictions]).all():
            raise UserError(
                "The reranker's scores are not finite: its training diverged, or its weights are "
                "damaged; try a lower learning rate."
            )
        # No figure looks deeper, and one query of many candidates makes the rows of all wide.
        depth = min(max(map(len, own.values())), ranking.DEEPEST)
        found, judged = np.full((len(own), depth), -1), []
        for row, candidates in zip(found, own.values(), strict=True):
            given, grades = np.array(candidates).T
            # Of equal scores what answers least comes first: a model that tells nothing apart
            # would have all its positives first otherwise, since files name these first.
            order = np.lexsort((grades, -given))[:depth]
            row[: len(order)] = order
            judged.append({i: grade for i, (_, grade) in enumerate(candidates)})
        figures = ranking.score(found, judged)
        return {name: figures[name] for name in _METRICS}

    def own(self) -> dict:
        # Read as a classification of pairs, which it is.
        return {"pair": "document"}
