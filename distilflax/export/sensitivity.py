"""Which products of a model lose most in few bits, and which of them to leave in float32.

The products come in groups: the embeddings' tables, each layer's `qkv`, `output`, `up` and `down`,
and the `head`. Each group is written in few bits alone, the rest in float32, and the export's
outputs are held against the model's on real texts. Then the worst are left in float32, one after
the other, until the whole export loses no more than it may.
"""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distilflax.errors import UserError
from distilflax.export import parity, samples
from distilflax.export.formats import FORMATS, Options, format_of
from distilflax.export.groups import group_of
from distilflax.export.subject import Subject


class Loss(NamedTuple):
    """What is lost with some groups in few bits.

    error: the squared error of the outputs as a part of their square, at the worst output.
    cosine: the mean one, at the worst output.
    agreement: the share of equal decisions; 1 where nothing is decided.
    """

    error: float
    cosine: float
    agreement: float


class Choice(NamedTuple):
    """What each group loses alone, the worst first; which are left; what the whole then loses."""

    alone: dict[str, Loss]
    in_float: tuple[str, ...]
    whole: Loss


class Sensitivity:
    """Measures one format of one model on some texts."""

    def __init__(self, subject: Subject, name: str, texts: Sequence[str], options: Options):
        form = format_of(name)
        if "in_float" not in form.reads:
            able = ", ".join(n for n, f in FORMATS.items() if "in_float" in f.reads)
            raise UserError(f"{name} has no layers to leave in float32; those that have: {able}.")
        self._subject, self._form, self._options = subject, form, options
        self._batches = list(samples.batches(subject, texts))
        self._reference = form.reference(subject)
        # Computed once, but for logits over all words: of all texts they do not fit into memory.
        if subject.part != "masked_lm":
            wanted = {id(batch): self._reference(batch) for batch in self._batches}
            self._reference = lambda batch: wanted[id(batch)]
        found = dict.fromkeys(map(group_of, subject.flat()))
        self.groups = tuple(group for group in found if group is not None)

    def of(self, in_float: Collection[str]) -> Loss:
        """What is lost with all groups but `in_float` in few bits."""
        options = replace(self._options, in_float=tuple(in_float))
        with tempfile.TemporaryDirectory() as folder:
            details = self._form.write(self._subject, Path(folder), options)
            run = self._form.load(Path(folder), details)
            given = (self._reference, run, self._batches, self._subject.problem)
            figures = parity.compare(*given).values()
        # Python's own max passes over a NaN that does not come first, as float16 may make it.
        return Loss(
            float(np.max([figure["relative_error"] for figure in figures])),
            float(np.min([figure["mean_cosine"] for figure in figures])),
            float(np.min([figure.get("agreement", 1.0) for figure in figures])),
        )

    @cached_property
    def alone(self) -> dict[str, Loss]:
        """What each group loses while all others are float32, the worst first."""
        found = {
            group: self.of([other for other in self.groups if other != group])
            for group in self.groups
        }
        return dict(
            sorted(found.items(), key=lambda item: -np.nan_to_num(item[1].error, nan=np.inf))
        )

    def choose(self, most: float) -> Choice:
        """The groups to leave in float32 for the error to be at most `most`, the worst first."""
        in_float: list[str] = []
        whole = self.of(in_float)
        for group in self.alone:
            if whole.error <= most:
                break
            in_float.append(group)
            whole = self.of(in_float)
        return Choice(self.alone, tuple(in_float), whole)
