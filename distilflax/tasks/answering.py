"""Extractive question answering: the span of a text that answers a question, or that none does.

A text that is too long is read in overlapping windows. "No answer" is the span of [CLS] alone; how
far it must beat the best real span is a threshold, chosen on development data (Devlin et al. 2019,
section 4.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax.errors import UserError
from distilflax.losses import Sum
from distilflax.models import TaskHead
from distilflax.settings import Encoder
from distilflax.tasks import softened, spans, squad, squad_score, texts
from distilflax.tasks.confidence import softmax
from distilflax.tasks.records import Faults
from distilflax.tasks.spans import Span, Window
from distilflax.tasks.squad import Question
from distilflax.tasks.task import NOTHING, Features, Task
from distilflax.text.tokenizer import Tokenizer

_HIDDEN = -1e9  # far below any logit, and finite whatever temperature it is divided by


@dataclass(frozen=True)
class Answering(Task):
    """Options, and what was learned. Lengths are in tokens.

    `stride` is what neighbouring windows share. `unanswerable` says whether "no answer" is among
    the answers; it is learned from the training data. `threshold` is tuned: no answer is given
    where the score of none, less the score of the best, is greater. Of the windows without an
    answer `negatives` is the share that is learned from, drawn anew for each seed: long texts have
    many, and all say the same (Alberti et al. 2019, arXiv:1901.08634, learn from one of 50).
    """

    name: ClassVar[str] = "answering"
    kind: ClassVar[str] = "answer"

    stride: int = field(default=128, metadata={"least": 0})
    max_question: int = field(default=64, metadata={"least": 1})
    max_answer: int = field(default=30, metadata={"least": 1})
    n_best: int = field(default=20, metadata={"least": 1})
    negatives: float = field(default=1.0, metadata={"least": 1e-6, "most": 1.0})
    unanswerable: bool = False
    threshold: float = 0.0

    @property
    def metric(self) -> str:
        return "f1"

    def read(self, paths: Sequence[Path], faults: Faults, *, labelled: bool = True) -> list:
        """An id may come again with the same question and text: other people's answers. Each is an
        example to learn from; figures count the last, as the official script of 2.0 does. In
        another file, which may hold the questions in another language, it is another one."""
        found: list[Question] = []
        by_id: dict[str, Question] = {}
        for path in paths:
            elsewhere = dict(by_id)
            for question in squad.read(path, faults, labelled=labelled):
                if not _is_again(question, elsewhere.get(question.id, question)):
                    question = question._replace(id=f"{path}: {question.id}")
                known = by_id.setdefault(question.id, question)
                if not _is_again(question, known):
                    faults.add(
                        f"{question.place} is also the id of another question, in {known.place}; "
                        "rename one."
                    )
                    continue
                found.append(question)
        if len(found) > len(by_id):
            faults.note(
                f"{len(found) - len(by_id):,} questions were asked again under the same id; "
                "figures count the last answers of each id, as the official script of 2.0 does"
            )
        return found

    def learn(self, examples: Sequence[Question]) -> "Answering":
        """Where not one has an answer, these are hidden or there is nothing to learn (`split`)."""
        without = sum(question.answers == () for question in examples)
        return replace(self, unanswerable=self.unanswerable or 0 < without < len(examples))

    def split(self, examples: Sequence[Question], faults: Faults, *, training: bool) -> list:
        """Without any, where not one has an answer, and one is to be learned or always given:
        published test files hide them so, and no answer at all would be what is right."""
        without = sum(question.answers == () for question in examples)
        if without and without == len(examples):
            return self._hidden(examples, faults, training)
        if without and not (training or self.unanswerable):
            faults.note(
                f"{without:,} questions have no answer, where all that were trained on have one: "
                "the model answers these too, and is wrong"
            )
        return list(examples)

    def _hidden(self, examples: Sequence[Question], faults: Faults, training: bool) -> list:
        """What is left of questions of which not one has an answer."""
        none = f"none of its {len(examples):,} questions has an answer"
        remedy = "if they are hidden, give a file that has them"
        if training:
            faults.note(f"{none}, so there is nothing to learn: {remedy}.")
            return []
        if not self.unanswerable:
            faults.note(
                f"{none}, and the model always gives one: if it may give none, set "
                f"config.options.unanswerable=True; {remedy}."
            )
            return []
        faults.note(f"{none}, and figures say only how often none is given: {remedy}")
        return list(examples)

    def wording(self, example: Question) -> tuple[str, ...]:
        """The question: in another text the answer would not be there."""
        return (example.question,)

    def reworded(self, example: Question, texts: tuple[str, ...]) -> Question:
        return example._replace(question=texts[0], answers=None)

    def encode(self, words: Tokenizer, examples: Sequence[Question], max_length: int) -> Features:
        asked = texts.pieces(words, [example.question for example in examples])
        contexts = spans.contexts(words, [example.context for example in examples])
        # A question longer than half a row would leave too little of the text to see.
        pairs = texts.layout(words)
        special = 2 + len(pairs.between)
        most = min(self.max_question, max(1, max_length // 2 - special))
        ids, types, owner, starts, ends, details = [], [], [], [], [], []
        unlearned, unsaid = 0, 0
        for index, (example, question, context) in enumerate(
            zip(examples, asked, contexts, strict=True)
        ):
            question = question[:most]
            room = max_length - len(question) - special
            at = 1 + len(question) + len(pairs.between)
            if room < 1:
                raise UserError(
                    f"config.data.max_length {max_length} leaves no room for the text beside the "
                    "question; raise it."
                )
            bounds = spans.windows(len(context.ids), room, self.stride)
            answer = self._tokens(example, context)
            unsaid += bool(answer) and answer[1] - answer[0] >= self.max_answer
            if example.answers and not any(_lies_in(answer, *window) for window in bounds):
                # No row would have it, and that there is none would be wrong to learn.
                unlearned, answer = unlearned + 1, None
            for first, last in bounds:
                row, kinds = texts.joined(words, pairs, question, context.ids[first:last])
                ids.append(row)
                types.append(kinds)
                owner.append(index)
                details.append(Window(context, first, last, at))
                start, end = _target(answer, first, last, at)
                starts.append(start)
                ends.append(end)
        targets = {"start": np.array(starts, np.int32), "end": np.array(ends, np.int32)}
        cut = sum(len(question) > most for question in asked)
        owners = np.array(owner, np.int64)
        return Features(ids, types, owners, targets, details, cut, most, unlearned, unsaid)

    def trained_on(
        self, features: Features, rows: Int[np.ndarray, "rows"], rng: np.random.Generator
    ) -> Int[np.ndarray, "kept"]:
        without = rows[features.targets["start"][rows] == 0]
        left_out = rng.permutation(without)[math.ceil(self.negatives * len(without)) :]
        return np.setdiff1d(rows, left_out)

    def _tokens(self, example: Question, context: spans.Context) -> tuple[int, int] | None:
        """The tokens of the first answer; (-1, -1) for no answer, None where nobody has said."""
        if example.answers is None:
            return None
        if not example.answers:
            return -1, -1
        start, text = example.answers[0]
        return spans.tokens_of(context, start, start + len(text))

    def head(self, encoder: Encoder) -> TaskHead:
        return TaskHead(self.kind)

    def loss(self, logits: Float[Array, "B L 2"], batch: dict) -> Sum:
        """The mean of two cross-entropies over positions: of the first token and of the last."""
        real = batch["start"] >= 0
        log_p = jax.nn.log_softmax(_visible(logits, batch), axis=1)
        total = 0.0
        for i, name in enumerate(("start", "end")):
            index = jnp.where(real, batch[name], 0)
            at = jnp.take_along_axis(log_p[..., i], index[:, None], axis=1)[:, 0]
            total += -0.5 * jnp.sum(jnp.where(real, at, 0.0))
        return Sum(total, jnp.sum(real.astype(jnp.float32)))

    def distil(
        self,
        logits: Float[Array, "B L 2"],
        teacher: Float[Array, "B L 2"],
        batch: dict,
        temperature: float,
    ) -> Sum:
        real = jnp.any(batch["attention_mask"] > 0, axis=1)
        ours, theirs = (jnp.swapaxes(_visible(x, batch), 1, 2) for x in (logits, teacher))
        value = jnp.mean(softened.kl(ours, theirs, temperature), axis=1)
        return Sum.over(value, real)

    def tune(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Question]
    ) -> "Answering":
        if not self.unanswerable or not examples:
            return self
        predictions = self.decode(logits, features, examples)
        found = {e.id: p["n_best"][0]["text"] for e, p in zip(examples, predictions, strict=True)}
        margins = {e.id: p["no_answer"] for e, p in zip(examples, predictions, strict=True)}
        return replace(self, threshold=squad_score.best_threshold(_golds(examples), found, margins))

    def decode(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Question]
    ) -> list[dict]:
        bounds = np.searchsorted(features.owner, np.arange(len(examples) + 1))
        return [
            self._prediction(example.context, logits[begin:end], features.details[begin:end])
            for example, begin, end in zip(examples, bounds[:-1], bounds[1:], strict=True)
        ]

    def _prediction(self, text: str, rows: Sequence[np.ndarray], windows: Sequence[Window]) -> dict:
        """`no_answer` is the score of none less that of the best span; `score` is a probability
        among the n best and, where it can be, no answer."""
        best = spans.best_spans(rows, windows, n_best=self.n_best, max_tokens=self.max_answer)
        none = float(min(row[0, 0] + row[0, 1] for row in rows))
        # A text without any token (control characters alone) has no span at all.
        spanless, best = not best, best or [Span(0, 0, none)]
        kept = [-np.inf] if spanless and self.unanswerable else [span.score for span in best]
        p = softmax(np.array(kept + [none] * self.unanswerable))
        n_best = [
            {"text": text[s.start : s.end], "start": s.start, "end": s.end, "score": float(score)}
            for s, score in zip(best, p, strict=False)
        ]
        margin = none - best[0].score
        if self.unanswerable and (spanless or margin > self.threshold):
            found = {"answer": "", "start": None, "end": None, "score": float(p[-1])}
        else:
            found = {"answer": n_best[0]["text"]}
            found |= {name: n_best[0][name] for name in ("start", "end", "score")}
        return found | {"no_answer": margin, "n_best": n_best}

    def metrics(self, predictions: Sequence[dict], examples: Sequence[Question]) -> dict:
        """In percent, as the official scripts print them: 2.0's where questions may go unanswered,
        otherwise 1.1's."""
        found = _found(predictions, examples)
        return squad_score.score(_golds(examples), found, version_2=self._version_2(examples))

    def _version_2(self, examples: Sequence[Question]) -> bool:
        return self.unanswerable or any(not question.answers for question in examples)

    def by_index(self, predictions: Sequence[dict], examples: Sequence[Question]):
        """Over the different questions; exact match and F1 alone."""
        golds, found = _golds(examples), _found(predictions, examples)
        version_2 = self._version_2(examples)
        scored = np.array(
            [squad_score.best_of(golds[i], found[i], version_2=version_2) for i in golds]
        )

        def figures(at: Int[np.ndarray, "n"]) -> dict[str, float]:
            exact, f1 = 100.0 * scored[at].mean(axis=0)
            return {"exact": float(exact), "f1": float(f1)}

        return len(scored), figures

    def own(self) -> dict:
        named = ("stride", "max_question", "max_answer", "n_best", "unanswerable", "threshold")
        return {name: getattr(self, name) for name in named}


def _is_again(question: Question, known: Question) -> bool:
    return (question.question, question.context) == (known.question, known.context)


def _found(predictions: Sequence[dict], examples: Sequence[Question]) -> dict[str, str]:
    return {e.id: p["answer"] for e, p in zip(examples, predictions, strict=True)}


def _golds(examples: Sequence[Question]) -> dict[str, list[str]]:
    return {example.id: [answer.text for answer in example.answers] for example in examples}


def _target(answer: tuple[int, int] | None, first: int, last: int, at: int) -> tuple[int, int]:
    """The answer's positions in a window's row; [CLS] where it does not lie whole in there."""
    if answer is None:
        return NOTHING, NOTHING
    if _lies_in(answer, first, last):
        return answer[0] - first + at, answer[1] - first + at
    return 0, 0


def _lies_in(answer: tuple[int, int], first: int, last: int) -> bool:
    return first <= answer[0] <= answer[1] < last


def _visible(logits: Float[Array, "B L 2"], batch: dict) -> Float[Array, "B L 2"]:
    return jnp.where(batch["attention_mask"][..., None] > 0, logits, _HIDDEN)
