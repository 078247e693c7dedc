"""What students are worth on data of one's own, which none of them is trained on.

Sentence pairs that people scored (`ablation.sts`), a collection that is searched (`ablation.beir`)
and labelled sentences that a linear model reads off the frozen encoder (`ablation.probe`): three
uses of an encoder that the text of a distillation says little about.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import jax
import numpy as np

from distilflax.evaluate import sts, vectors
from distilflax.evaluate.model import Model
from distilflax.search import collection as searched
from distilflax.search.exact import at_unit_length
from distilflax.settings import Ablation, Compute
from distilflax.tasks import data as task_data
from distilflax.tasks.probe import probe
from distilflax.tasks.settings import Data, FineTuning, Training
from distilflax.tasks.settings import Model as Probed
from distilflax.text.tokenizer import Tokenizer
from distilflax.weights import Checkpoint
from distilflax.weights.sentence import DOCUMENT, QUERY

# Tokens; a labelled sentence that has more is cut.
_PROBED_LENGTH = 128
_BATCH_SIZE = 32


def _fingerprint(items: Iterable) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()[:16]


class Outside:
    """The data, read once for all students."""

    def __init__(
        self,
        asked: Ablation,
        teacher: Checkpoint,
        words: Tokenizer,
        compute: Compute,
        say: Callable[[str], None],
    ):
        """
        Args:
          teacher: says how sentence vectors are made, if it is a sentence encoder: students stand
            in for it, and are asked as it is.

        Raises:
          UserError: whatever is wrong with the files, in one sentence.
        """
        self.words, self.compute, self.teacher = words, compute, teacher
        self.sentence = teacher.vectors
        self.pairs = sts.read_pairs(asked.sts) if asked.sts else None
        self.collection = searched.read_beir(asked.beir) if asked.beir else None
        for note in self.collection.notes if self.collection else ():
            say(f"beir: {note}")
        self.labelled = None
        if asked.probe:
            self.probing = FineTuning(
                task="classification",
                options={"text": "sentence"},
                model=Probed(path=str(teacher.folder)),
                data=Data(
                    folder=asked.probe,
                    max_length=min(_PROBED_LENGTH, teacher.encoder.max_positions),
                ),
                training=Training(mode="probe"),
            )
            self.labelled = task_data.prepare(self.probing, lambda text: say(f"probe: {text}"))

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the data that was asked for, by the setting that named it."""
        read = {}
        if self.pairs is not None:
            first, second, scores = self.pairs
            read["sts"] = zip(first, second, scores.tolist(), strict=True)
        if self.collection is not None:
            asked = self.collection
            read["beir"] = (*asked.documents, *asked.queries, *asked.relevance, *asked.itself)
        if self.labelled is not None:
            read["probe"] = (self.labelled.fingerprints,)
        return {f"config.ablation.{name}": _fingerprint(found) for name, found in read.items()}

    def measure(self, student: Model) -> dict[str, float]:
        """Those of `sts` (Spearman), `beir` (nDCG@10) and `probe` (accuracy) that were asked for,
        each on the test split."""
        found = {}
        if self.pairs is not None:
            sides = (self._vectors(student, s) for s in (self.pairs.first, self.pairs.second))
            cosine = sts.cosines(*map(at_unit_length, sides))
            found["sts"] = sts.spearman(cosine, self.pairs.scores)
        if self.collection is not None:
            ranked = searched.retrieve(
                self._vectors(student, self.collection.queries, QUERY),
                self._vectors(student, self.collection.documents, DOCUMENT),
                self.collection.relevance,
                self.collection.itself,
            )
            found["beir"] = float(ranked["ndcg@10"].mean())
        if self.labelled is not None:
            params = {"encoder": jax.tree.map(np.asarray, student.params["encoder"])}
            as_read = replace(self.teacher, encoder=student.encoder, params=params)
            materials = replace(self.labelled, checkpoint=as_read)
            found["probe"] = probe(self.probing, materials)["test"]["accuracy"]
        return found

    def _vectors(
        self, student: Model, texts: tuple[str, ...], prompts: tuple[str, ...] = ()
    ) -> np.ndarray:
        return vectors.embed(
            student,
            self.words,
            self.sentence.prompted(texts, prompts),
            compute=self.compute,
            max_length=min(self.sentence.max_seq_length, student.encoder.max_positions),
            batch_size=_BATCH_SIZE,
            sentence=self.sentence,
        )
