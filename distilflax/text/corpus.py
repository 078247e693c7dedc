"""The prepared corpus: documents read once, cut into sequences of ids, and kept on disk.

`prepare` is the only entry. What it makes lies in `<cache>/corpus/<key>`, where the key is a hash
of everything that went in; the same settings find it again at once. The folder appears whole or
not at all: it is written beside its place under a lock, and renamed when all of it is on disk.
"""

import hashlib
import itertools
import json
import operator
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rich.progress
import tokenizers
from jaxtyping import Int
from rich.console import Console

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.settings import Data
from distilflax.text import sources
from distilflax.text.on_disk import checksum, exclusive, sync, writing_to
from distilflax.text.passages import beginning, pack, passages
from distilflax.text.shards import Documents, DocumentWriter, Sequences, SequenceWriter
from distilflax.text.tokenizer import Tokenizer

# Raise this when the same settings would give other sequences than before.
_FORMAT = 2
_MANIFEST, _COUNTS = "corpus.json", "token_counts.npy"
_BATCH_CHARACTERS = 8 << 20  # of documents tokenised at once: bounds memory, keeps all cores busy
_BLANK_LINES = re.compile(r"\r?\n(?:[ \t]*\r?\n)+")
_READERS = 8  # threads that check files; zlib lets go of Python's lock


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared corpus, memory-mapped.

    Attributes:
      train, validation: sequences of ids; the documents of the two are disjoint.
      token_counts: how often each id occurs in `train`.
      validation_documents: the text of the documents held out.
      fingerprint: of the text and of what was made of it; equal on every machine.
      folder: where it lies.
    """

    train: Sequences
    validation: Sequences
    token_counts: Int[np.ndarray, " vocab"]
    validation_documents: Documents
    fingerprint: str
    folder: Path


def prepare(data: Data, tokenizer: Tokenizer) -> Corpus:
    """The corpus that `data` describes, in the ids of `tokenizer`; prepared if it is not yet.

    Documents go to `validation` by a hash of their text, so adding documents moves none. Each, or
    its first `document_tokens` ids, is cut into passages of at most `max_length` ids, whole
    paragraphs where they fit; `packed` puts several passages into a sequence. Sequences of fewer
    than `min_tokens`, [CLS] and [SEP] counted, are dropped.

    Raises:
      UserError: a source cannot be read, nothing is left to train or to validate on, or the disk
        is full.
    """
    cache = Path(data.cache).expanduser()
    found = sources.resolve(data.sources, cache)
    key = _key(data, tokenizer, found)
    folder = cache / "corpus" / key
    if (ready := _open(folder, tokenizer)) is not None:
        return ready
    damaged = folder.exists()
    with (
        writing_to(cache, "data.cache"),
        exclusive(folder.with_suffix(".lock"), "preparing this corpus"),
    ):
        # While this process waited for the lock, another may have prepared just this.
        if (ready := _open(folder, tokenizer, new=not damaged)) is not None:
            return ready
        partial = folder.with_suffix(".partial")
        # Under the lock, what lies here was left by a process that died, or has been truncated.
        for stale in (partial, folder):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir()
        try:
            documents = (text for source in found for text in source.documents(data.column))
            if data.max_documents:
                documents = itertools.islice(documents, data.max_documents)
            _write(partial, documents, data, tokenizer)
            os.rename(partial, folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    ready = _open(folder, tokenizer, new=True)
    assert ready is not None, folder
    return ready


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document is for validation: a coin that its text tosses, of weight `fraction`."""
    drawn = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(drawn) < fraction * 2.0**64


def _key(data: Data, tokenizer: Tokenizer, found: list[sources.Source]) -> str:
    ingredients = [
        _FORMAT,
        tokenizer.fingerprint,
        [source.identity() for source in found],
        [data.column, data.layout, data.passages, data.document_tokens],
        [data.max_length, data.min_tokens],
        [data.validation_fraction, data.max_documents],
    ]
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:24]


def _open(folder: Path, tokenizer: Tokenizer, *, new: bool = False) -> Corpus | None:
    """The corpus in a folder, or None where there is none or a file of it is not as written; of
    one that is `new` the sizes are enough."""
    try:
        manifest = json_file.read(folder / _MANIFEST)
        shards = {split: [folder / name for name in manifest[split]] for split in _SPLITS}
        paths = [folder / _COUNTS, *itertools.chain(*shards.values())]
        if not _are_as_written(paths, manifest["files"], read=not new):
            return None
        return Corpus(
            train=Sequences(shards["train"], tokenizer.cls_id),
            validation=Sequences(shards["validation"], tokenizer.cls_id),
            token_counts=np.load(folder / _COUNTS, allow_pickle=False),
            validation_documents=Documents(shards["documents"]),
            fingerprint=manifest["fingerprint"],
            folder=folder,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _are_as_written(paths: list[Path], files: dict[str, list[int]], *, read: bool) -> bool:
    """Whether files have the sizes and checksums that were noted of them, {name: [bytes, CRC-32]}.

    Everything is read, because a wrong id in the middle of a shard shows nowhere else: it would
    only make the training worse. That takes as long as the disk does, and fills the page cache with
    what the run reads next.
    """
    if any(path.stat().st_size != files[path.name][0] for path in paths):
        return False
    if not read:
        return True
    with ThreadPoolExecutor(_READERS) as pool:
        return all(
            found == files[path.name][1]
            for path, found in zip(paths, pool.map(checksum, paths), strict=True)
        )


_SPLITS = ("train", "validation", "documents")


def _write(folder: Path, documents: Iterable[str], data: Data, tokenizer: Tokenizer) -> None:
    """Writes everything that `_open` reads into an empty folder."""
    to_ids = _to_ids(tokenizer)
    total = 0
    with (
        SequenceWriter(folder, "train", tokenizer.vocab_size) as train,
        SequenceWriter(folder, "validation", tokenizer.vocab_size) as validation,
        DocumentWriter(folder, "documents") as held_out,
    ):
        for batch in _progress(_by_size(documents)):
            total += len(batch)
            out = [is_held_out(text, data.validation_fraction) for text in batch]
            ids = to_ids(batch)
            chosen = list(itertools.compress(ids, out))
            rest = list(itertools.compress(ids, map(operator.not_, out)))
            train.write(_sequences(rest, data, tokenizer))
            validation.write(_sequences(chosen, data, tokenizer))
            held_out.write(itertools.compress(batch, out))
        shards = dict(
            zip(_SPLITS, (train.close(), validation.close(), held_out.close()), strict=True)
        )
    _check(data, total, train.sequences, validation.sequences)
    np.save(folder / _COUNTS, train.counts)
    paths = [folder / name for name in (_COUNTS, *itertools.chain(*shards.values()))]
    content = [_FORMAT, tokenizer.fingerprint, train.digest(), validation.digest()]
    manifest = shards | {
        "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
        "documents_read": total,
        "sequences": {"train": train.sequences, "validation": validation.sequences},
        "tokens": {"train": int(train.counts.sum()), "validation": int(validation.counts.sum())},
        "files": {path.name: [path.stat().st_size, checksum(path)] for path in paths},
    }
    # Last, and synced like the rest: with it, the folder is complete.
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for name in (_COUNTS, _MANIFEST):
        sync(folder / name)
    sync(folder)


def _sequences(
    documents: Iterable[list[list[int]]], data: Data, tokenizer: Tokenizer
) -> Iterator[list[int]]:
    """Sequences of documents, each document a list of paragraphs of ids."""
    continues = tokenizer.continuation.tolist()
    keep = data.document_tokens
    found = (
        [tokenizer.cls_id, *ids, tokenizer.sep_id]
        for document in documents
        for together in _TOGETHER[data.passages](beginning(document, keep, continues))
        for ids in passages(together, data.max_length - 2, continues)
    )
    found = (ids for ids in found if len(ids) >= data.min_tokens)
    if data.layout == "packed":
        found = pack(found, data.max_length, max(3, data.min_tokens))
    return found


# The parts of a document (a list of paragraphs) whose paragraphs may share a passage.
_TOGETHER = {
    "document": lambda document: [document],
    "title": lambda document: [document[:1], document[1:]],
    "paragraph": lambda document: [[paragraph] for paragraph in document],
}


def _to_ids(tokenizer: Tokenizer):
    """A function from documents to the ids of their paragraphs, none of them a control token."""
    fast = tokenizers.Tokenizer.from_str(tokenizer.fast.to_str())
    # Text that speaks of "[MASK]" or "[SEP]" must not become one: segments are counted by [CLS],
    # and a mask that the masking did not draw has no label.
    fast.encode_special_tokens = True
    control = frozenset(np.flatnonzero(tokenizer.special).tolist())
    unk = tokenizer.unk_id

    def to_ids(documents: list[str]) -> list[list[list[int]]]:
        paragraphs = [
            [part for part in _BLANK_LINES.split(text) if part and not part.isspace()]
            for text in documents
        ]
        flat = list(itertools.chain(*paragraphs))
        encoded = iter(fast.encode_batch_fast(flat, add_special_tokens=False))
        return [
            [_without(encoding.ids, control, unk) for encoding in itertools.islice(encoded, len(p))]
            for p in paragraphs
        ]

    return to_ids


def _without(ids: list[int], control: frozenset[int], unk: int) -> list[int]:
    if control.isdisjoint(ids):
        return ids
    return [unk if token in control else token for token in ids]


def _check(data: Data, documents: int, train: int, validation: int) -> None:
    if not documents:
        raise UserError(
            f"data.sources {data.sources!r} holds no text at all; give files with some."
        )
    counted = f"{documents:,} document" + ("s" if documents > 1 else "")
    if not train:
        raise UserError(
            f"data.sources {data.sources!r} leaves nothing to train on: {counted} gave no sequence "
            f"of data.min_tokens={data.min_tokens} for training; give more text."
        )
    if data.validation_fraction and not validation:
        # Three times the expectation of one: then 19 corpora of 20 have it.
        needed = int(np.ceil(3 / data.validation_fraction))
        raise UserError(
            f"data.sources {data.sources!r} has {counted} and none was held out for validation; "
            f"give at least {needed:,} different documents (in plain text each line is one), or "
            f"raise data.validation_fraction above {data.validation_fraction:g}, or set it to 0."
        )


def _by_size(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _progress(batches: Iterable[list[str]]) -> Iterator[list[str]]:
    """Passes batches on, and shows on a terminal how many documents have gone by."""
    console = Console(stderr=True)
    columns = (
        rich.progress.SpinnerColumn(),
        "Preparing text: {task.completed:,} documents, {task.fields[megabytes]:.0f} MB,",
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        task = progress.add_task("", total=None, megabytes=0.0)
        megabytes = 0.0
        for batch in batches:
            yield batch
            megabytes += sum(map(len, batch)) / 1e6
            progress.update(task, advance=len(batch), megabytes=megabytes)
