"""Tagging words: named entities, parts of speech, chunks, slots.

A word is what its first piece says: the others have no target (Devlin et al. 2019, section 5.3).
A sentence longer than the model can take is read in windows that overlap, and a word is taken from
the window in which it has most text around it, so that no word is ever left without a tag.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distilflax.errors import UserError, choose_from
from distilflax.losses import Sum
from distilflax.models import TaskHead
from distilflax.settings import Encoder
from distilflax.tasks import (
    bio,
    conll,
    named_files,
    records,
    scores,
    sentences,
    softened,
    tables,
    tagged_text,
    texts,
    word_rows,
)
from distilflax.tasks.confidence import softmax
from distilflax.tasks.records import Faults, FaultyRecordError
from distilflax.tasks.sentences import Sentence
from distilflax.tasks.task import NOTHING, Features, Task
from distilflax.text.tokenizer import Tokenizer

SCHEMES = ("auto", "bio", "iob1", "io", "brackets", "bioes", "plain")
_FLAGS = "config.options."


class Window(NamedTuple):
    """Words `first` to `last` - 1 of a sentence are answered by this row, at tokens `at`."""

    first: int
    last: int
    at: Int[np.ndarray, "words"]


@dataclass(frozen=True)
class Tagging(Task):
    """Options, and what was learned.

    `words` and `tags` name the lists of JSON and Parquet records, `tag_names` the tags where JSON
    has their numbers (all of them are then known, seen in training or not), `column` the tag's
    column in CoNLL files (from 0, or from -1 backwards; of CoNLL-U UPOS if it is not given),
    `word_column` the word's, and `comment` what lines begin with that are none of a sentence, such
    as `# id` in MultiCoNER. `header`, `delimiter` and `quoting` say how tables and files side by
    side are written (`records.Table`), in whose columns `words` and `tags` spaces part one from the
    next: a .tsv or .csv is a table if `header` or its first line names those, and a .csv with tags
    if that line has commas and nothing says where a column stands. Of tables with a word
    a row blank lines part the sentences, or `sentence_column` names the column that does: it is
    filled, or has a new value, where one begins. `bracketed` names the column of a text that has
    its spans in brackets, as MASSIVE's `annot_utt`: `wake me at [time : five am]`; then words and
    tags come out of it.
    `scheme`: `auto` looks at the tags; `bio` and `bioes` (BILOU and BMES too) refuse tags that
    break their rules, `iob1`, `io` and `brackets` turn into BIO what was written in the older
    scheme, by type alone (as Few-NERD is) or as in CoNLL-2012's columns, and `plain` tags stand for
    themselves.
    `constrained` decodes the most probable *legal* sequence instead of the best tag of each word.
    """

    name: ClassVar[str] = "tagging"
    kind: ClassVar[str] = "token"
    reading: ClassVar[tuple[str, ...]] = (
        "words",
        "tags",
        "tag_names",
        "column",
        "word_column",
        "comment",
        "header",
        "delimiter",
        "quoting",
        "sentence_column",
        "bracketed",
    )

    words: str = "tokens"
    tags: str = "tags"
    tag_names: tuple[str, ...] = ()
    column: int = -1
    word_column: int = field(default=0, metadata={"least": 0})
    comment: str = ""
    header: tuple[str, ...] = ()
    delimiter: str = ""
    quoting: str = field(default="auto", metadata={"choices": tables.QUOTING})
    sentence_column: str = ""
    bracketed: str = ""
    scheme: str = field(default="auto", metadata={"choices": SCHEMES})
    labels: tuple[str, ...] = ()
    constrained: bool = False

    @property
    def metric(self) -> str:
        return "accuracy" if self.scheme == "plain" else "f1"

    def read(self, paths: Sequence[Path], faults: Faults, *, labelled: bool = True) -> list:
        return [sentence for path in paths for sentence in self._sentences(path, faults, labelled)]

    def _sentences(self, path: Path, faults: Faults, labelled: bool) -> Iterator[Sentence]:
        named_files.check_no_folder(path)
        table = records.Table(self.header, self.delimiter, _FLAGS, self.quoting)
        if self.bracketed:
            column = self.bracketed
            return tagged_text.read_bracketed(path, faults, table, column=column, labelled=labelled)
        named = {"words": self.words, "tags": self.tags, "labelled": labelled}
        named["tag_names"] = self.tag_names
        if named_files.are_beside(path) or self._is_table(path, labelled):
            columns = (self.words, self.tags)
            if self.sentence_column or word_rows.are_in(path, table, *columns):
                return word_rows.read(path, faults, table, sentence=self.sentence_column, **named)
            return tagged_text.read(path, faults, table, **named)
        return sentences.read(
            path,
            faults,
            column=self.column,
            word_column=self.word_column,
            comment=self.comment,
            flags=_FLAGS,
            **named,
        )

    def _is_table(self, path: Path, labelled: bool) -> bool:
        if self.delimiter or self.sentence_column:
            return records.suffix(path) not in records.KEYED
        columns = (self.words, self.tags)
        if not set(columns).isdisjoint(self.header):
            return records.suffix(path) in records.TABLES
        if tagged_text.is_table(path, columns, self.comment):
            return True
        # Of one whose columns are called otherwise, that is said; a text may have commas as well.
        in_columns = self.header or self.column != -1 or self.word_column
        return labelled and not in_columns and tagged_text.has_commas(path, self.comment)

    def learn(self, examples: Sequence[Sentence]) -> "Tagging":
        """The labels are in the order O, then by type: transformers' own scripts sort them too."""
        seen = {tag for sentence in examples for tag in sentence.tags or ()}
        scheme = self.scheme
        if scheme == "auto":
            scheme = "brackets" if bio.are_brackets(seen) else bio.scheme_of(sorted(seen))
        seen |= {tag for named in {sentence.classes for sentence in examples} for tag in named}
        if scheme in ("io", "brackets"):
            brackets = scheme == "brackets"
            kinds = bio.kinds_in_brackets(seen) if brackets else seen - {bio.OUTSIDE}
            seen = {bio.OUTSIDE} | {f"{letter}-{kind}" for kind in kinds for letter in "BI"}
        elif scheme != "plain":
            seen = set(filter(bio.is_tag, seen))
        if scheme == "iob1":
            seen |= {bio.from_iob1([tag])[0] for tag in seen}
        labels = self.labels or tuple(sorted(seen, key=lambda tag: (tag != bio.OUTSIDE, tag)))
        if len(labels) < 2:
            raise UserError(
                f"The training data has {len(labels)} tags ({', '.join(labels)}); a tagger needs "
                "at least two (config.options.tags or config.options.column says where they are)."
            )
        return replace(self, labels=labels, scheme=scheme)

    @property
    def learned(self) -> str:
        kind = "no spans" if self.scheme == "plain" else f"spans in {self.scheme.upper()}"
        return f"{len(self.labels)} tags, which are taken for {kind}"

    def split(self, examples: Sequence[Sentence], faults: Faults, *, training: bool) -> list:
        """Those whose tags can be learned or measured, as the labels are written."""
        whose, kept = "the training data" if training else "the model", []
        known, kinds = {*self.labels}, {bio.parts(label)[1] for label in self.labels}
        nearest = cache(lambda name: choose_from(name, self.labels))
        for sentence in examples:
            try:
                sentence = self._in_bio(sentence, kinds)
            except FaultyRecordError as fault:
                faults.add(str(fault))
                continue
            for at, tag in enumerate(sentence.tags):
                # A model that was trained on IOB1 may know I- alone.
                if tag not in known and (training or not bio.begins(tag, known)):
                    remedy = conll.remedy(nearest(tag), at in sentence.hashed, _FLAGS)
                    what = f"{sentence.place} has the tag {tag!r:.80}"
                    faults.add(f"{what}, which {whose} does not have; {remedy}")
                    break
            else:
                kept.append(sentence)
        return kept

    def _in_bio(self, sentence: Sentence, kinds: Set[str]) -> Sentence:
        """The sentence with its tags in BIO (or what else the labels are in).

        Raises:
          FaultyRecordError: tags that the scheme does not have, or not in this order.
        """
        tags = sentence.tags
        # Where several models look at a sentence in turn, the first may have made BIO of it.
        as_read = any(tag in kinds or not bio.is_tag(tag) for tag in tags)
        if self.scheme == "io" and as_read:
            tags = bio.from_io(tags)
        if self.scheme == "brackets" and as_read:
            tags = bio.from_brackets(tags)
            if tags is None:
                raise FaultyRecordError(
                    f"{sentence.place}: of the tags {' '.join(sentence.tags):.80} some are no "
                    "brackets of CoNLL-2012, or open before the last was closed; mend them, or set "
                    "config.options.scheme."
                )
        odd = next((i for i, tag in enumerate(tags) if not bio.is_tag(tag)), None)
        if self.scheme != "plain" and odd is not None:
            usual = "mend it, or set config.options.scheme=plain"
            raise FaultyRecordError(
                f"{sentence.place} has the tag {tags[odd]!r:.40}, which is neither O nor B-, I- or "
                f"the like with a type; {conll.remedy(usual, odd in sentence.hashed, _FLAGS)}."
            )
        if self.scheme == "iob1":
            tags = bio.from_iob1(tags)
        elif (wrong := bio.first_error(tags, self.scheme)) is not None:
            before = tags[wrong - 1] if wrong else "the start of the sentence"
            raise FaultyRecordError(
                f"{sentence.place}: word {wrong + 1} ({sentence.words[wrong]!r:.40}) has the tag "
                f"{tags[wrong]!r} after {before!r}, which {self.scheme.upper()} does not allow; "
                "mend it, or set config.options.scheme=iob1 if it was written so."
            )
        return sentence._replace(tags=tuple(tags))

    def wording(self, example: Sentence) -> tuple[str, ...]:
        return (" ".join(example.words),)

    def reworded(self, example: Sentence, texts: tuple[str, ...]) -> Sentence:
        return Sentence(example.place, tuple(filter(None, texts[0].split(" "))))

    def encode(self, words: Tokenizer, examples: Sequence[Sentence], max_length: int) -> Features:
        pieces = texts.pieces(words, [word for sentence in examples for word in sentence.words])
        room, number = max_length - 2, {name: i for i, name in enumerate(self.labels)}
        ids, owner, targets, first_pieces, windows = [], [], [], [], []
        at = 0
        for index, sentence in enumerate(examples):
            own = [
                # A word of nothing but control characters has no piece, and still needs a tag.
                part[:room] if len(part) else np.array([words.unk_id], np.int32)
                for part in pieces[at : at + len(sentence.words)]
            ]
            at += len(sentence.words)
            for begin, end, first, last in word_windows([len(part) for part in own], room):
                row = np.concatenate([[words.cls_id], *own[begin:end], [words.sep_id]])
                starts = 1 + np.cumsum([0, *map(len, own[begin : end - 1])])
                starts = starts[first - begin : last - begin]
                target = np.full(len(row), NOTHING, np.int32)
                if sentence.tags is not None:
                    target[starts] = [number.get(tag, NOTHING) for tag in sentence.tags[first:last]]
                is_first = np.zeros(len(row), np.int32)
                is_first[starts] = 1
                ids.append(row.astype(np.int32))
                owner.append(index)
                targets.append(target)
                first_pieces.append(is_first)
                windows.append(Window(first, last, starts))
        types = [np.zeros(len(row), np.int32) for row in ids]
        by_name = {"tag": targets, "first": first_pieces}
        return Features(ids, types, np.array(owner, np.int64), by_name, windows)

    def head(self, encoder: Encoder) -> TaskHead:
        return TaskHead(self.kind, self.labels)

    def loss(self, logits: Float[Array, "B L N"], batch: dict) -> Sum:
        """Cross-entropy over the first pieces of words."""
        real = batch["tag"] >= 0
        index = jnp.where(real, batch["tag"], 0)[..., None]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), index, axis=-1)[..., 0]
        return Sum.over(-log_p, real)

    def distil(
        self,
        logits: Float[Array, "B L N"],
        teacher: Float[Array, "B L N"],
        batch: dict,
        temperature: float,
    ) -> Sum:
        real = batch["first"] > 0
        value = softened.kl(logits, teacher, temperature)
        return Sum.over(value, real)

    def decode(
        self, logits: Sequence[np.ndarray], features: Features, examples: Sequence[Sentence]
    ) -> list[dict]:
        by_word = [np.zeros((len(s.words), len(self.labels))) for s in examples]
        for row, owner, window in zip(logits, features.owner, features.details, strict=True):
            by_word[owner][window.first : window.last] = row[window.at]
        constrained = self.constrained and not bio.in_iob1(self.labels)
        moves = bio.legal_moves(self.labels, self.scheme) if constrained else None
        ends = np.array([bio.may_end(tag, self.scheme) for tag in self.labels])
        predictions = []
        for sentence, rows in zip(examples, by_word, strict=True):
            p = softmax(rows)
            if moves is None or not len(p):
                chosen = p.argmax(axis=1)
            else:
                chosen = bio.best_legal(np.log(np.maximum(p, 1e-300)), moves, ends)
            tags = [self.labels[i] for i in chosen]
            sure = [float(row[i]) for row, i in zip(p, chosen, strict=True)]
            predictions.append(self._prediction(sentence, tags, sure))
        return predictions

    def _prediction(self, sentence: Sentence, tags: list[str], sure: list[float]) -> dict:
        """The tags, and the spans that they make: `score` is the least sure word's."""
        found = {"words": list(sentence.words), "tags": tags}
        if self.scheme == "plain":
            return found | {"scores": sure}
        entities = []
        for first, last, kind in bio.spans(tags):
            entity = {"label": kind, "score": min(sure[first:last]), "words": [first, last]}
            if sentence.offsets:
                start, end = sentence.offsets[first][0], sentence.offsets[last - 1][1]
                entity |= {"text": sentence.text[start:end], "start": start, "end": end}
            else:
                entity["text"] = " ".join(sentence.words[first:last])
            entities.append(entity)
        return found | {"entities": entities}

    def metrics(self, predictions: Sequence[dict], examples: Sequence[Sentence]) -> dict:
        truth = [sentence.tags for sentence in examples]
        found = self._found(predictions)
        if self.scheme == "plain":
            flat = [tag for tags in truth for tag in tags], [tag for tags in found for tag in tags]
            return scores.classes(*flat)
        return scores.entities(*(list(map(bio.in_bioes, side)) for side in (truth, found)))

    def _found(self, predictions: Sequence[dict]) -> list[list[str]]:
        """The predicted tags, in BIO where the model speaks IOB1."""
        found = [prediction["tags"] for prediction in predictions]
        return [bio.from_iob1(tags) for tags in found] if bio.in_iob1(self.labels) else found

    def by_index(self, predictions: Sequence[dict], examples: Sequence[Sentence]):
        if self.scheme == "plain":
            return super().by_index(predictions, examples)
        truth = [bio.in_bioes(sentence.tags) for sentence in examples]
        found = [bio.in_bioes(tags) for tags in self._found(predictions)]
        counts = scores.entity_counts(truth, found)
        return len(counts), lambda at: scores.entities_of_counts(counts[at].sum(axis=0))

    def own(self) -> dict:
        return {"scheme": self.scheme, "constrained": self.constrained}

    @classmethod
    def of_head(cls, head: TaskHead) -> dict:
        iob1 = bio.in_iob1(head.labels)
        return {"labels": head.labels, "scheme": "iob1" if iob1 else bio.scheme_of(head.labels)}


def word_windows(lengths: Sequence[int], room: int) -> list[tuple[int, int, int, int]]:
    """Windows of whole words with at most `room` pieces: (begin, end, first, last).

    A window holds words `begin` to `end` - 1 and answers for `first` to `last` - 1; every word is
    answered once. Neighbours share about half a window, and the words shared go by halves to
    either.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    spans, begin, total = [], 0, len(lengths)
    while begin < total:
        end = max(int(np.searchsorted(ends, ends[begin] + room, side="right")) - 1, begin + 1)
        spans.append((begin, end))
        if end == total:
            break
        middle = int(np.searchsorted(ends, ends[end] - room // 2, side="left"))
        begin = min(max(middle, begin + 1), end)
    found = []
    for i, (begin, end) in enumerate(spans):
        first = begin if i == 0 else (begin + spans[i - 1][1]) // 2
        last = end if i + 1 == len(spans) else (spans[i + 1][0] + end) // 2
        if first < last:  # Between long words a window may be left with nothing of its own.
            found.append((begin, end, first, last))
    return found
