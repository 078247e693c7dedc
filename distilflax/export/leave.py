"""An export from beginning to end: written, opened, compared, described; or nothing at all."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tokenizers.models import WordPiece

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.export import manifest, parity, samples, speed
from distilflax.export.formats import FILES, FORMATS, Options, format_of
from distilflax.export.parity import Run
from distilflax.export.subject import Subject
from distilflax.text import tokenizer
from distilflax.weights import hf_config, task_head, whole_folder, writer

_TOKENIZER, _WORDS = "tokenizer.json", "vocab.txt"
_DEFAULT = Options()


def export(
    subject: Subject,
    name: str,
    folder: str | Path,
    *,
    options: Options = _DEFAULT,
    texts: Sequence[str] = samples.TEXTS,
    least_cosine: float = parity.LEAST_COSINE,
    least_agreement: float = parity.LEAST_AGREEMENT,
    allow_slower: bool = False,
) -> dict[str, Any]:
    """Write `subject` in the format `name` to `folder`; returns its manifest.

    What was written is opened again and compared with the model in numpy, on real texts, before it
    takes its place. An older export in `folder` is replaced.

    Args:
      subject: of `open_subject`.
      name: of `FORMATS`.
      folder: where to; its parents are made.
      options: of the ONNX and LiteRT formats.
      texts: what the comparison is made on.
      least_cosine, least_agreement: what a format that is not exact has to keep.
      allow_slower: whether an int8 format may be slower than its float32 one on this machine; it is
        then not measured.

    Raises:
      UserError: an unknown format, a folder that holds something else, a disk that cannot take it,
        an export that does not compute what the model does, or one that is slower for all that.
    """
    form, folder = format_of(name), Path(folder).expanduser().resolve()
    _check_replaceable(folder)
    with whole_folder.written(folder) as making:
        details = form.write(subject, making, options)
        _put_tokenizer(subject, making, whole=form.keeps_tokenizer)
        content = {"format": name, "model": _model(subject), **details}
        # A file may take shorter texts than the model does.
        longest = details.get("length", [1, samples.LONGEST])[1]
        batches = list(samples.batches(subject, texts, longest))
        run = form.load(making, content)
        figures = parity.compare(form.reference(subject), run, batches, subject.problem)
        # A word out of thousands is a matter of a hair's breadth; a label is not.
        agreement = least_agreement if subject.part == "head" else 0.0
        least = {"cosine": least_cosine, "agreement": agreement}
        parity.check(figures, name, exact=form.exact, **least)
        content["parity"] = {"against": form.reference.__name__, "texts": len(texts), **figures}
        if form.faster_than and not allow_slower:
            content["speed"] = _speed(subject, name, form.faster_than, run, options)
        return manifest.write(making, content)


def load(folder: str | Path) -> Run:
    """An export, ready to be called with a `samples.Batch`; returns arrays by output name.

    Raises:
      UserError: no export, files that are missing or changed, or of a version that the runtime
        here does not read.
    """
    folder = Path(folder).expanduser()
    content = manifest.read(folder, FILES)
    return FORMATS[content["format"]].load(folder, content)


def _speed(subject: Subject, name: str, against: str, run: Run, options: Options) -> dict[str, Any]:
    """The times beside those of the float32 format `against`; raises as `speed.check` does."""
    float32 = FORMATS[against]
    with tempfile.TemporaryDirectory() as folder:
        details = float32.write(subject, Path(folder), replace(options, in_float=()))
        peer = float32.load(Path(folder), details)
        sizes = {"words": subject.encoder.vocab_size, "positions": subject.encoder.max_positions}
        figures = speed.measure(run, peer, **sizes)
    speed.check(figures, name, against)
    return {"against": against, **figures}


def _check_replaceable(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file; give a folder to export to.")
    if folder.is_dir() and any(folder.iterdir()) and not manifest.replaceable(folder):
        raise UserError(
            f"{folder} holds something that is not an export, so it will not be replaced; give "
            "another folder, or move that away."
        )


def _put_tokenizer(subject: Subject, folder: Path, *, whole: bool) -> None:
    """The tokenizer's own files, and what runtimes read: as it was where `whole`, else without the
    padding and truncation that some are saved with.

    Who calls `tokenizers` gets both unasked (all-MiniLM-L6-v2 pads every text to 128), while
    transformers and sentence-transformers choose their own.
    """
    if not (folder / "tokenizer_config.json").exists():
        writer.copy_tokenizer(subject.encoder, subject.checkpoint.folder, folder)
    if not whole or not (folder / _TOKENIZER).exists():
        # Not that of `subject`, which its owner may have told to pad or to cut.
        words = tokenizer.load(subject.checkpoint.folder)
        words.fast.save(str(folder / _TOKENIZER))
        if not whole and not (folder / _WORDS).exists():
            _put_words(words, folder / _WORDS)


def _put_words(words: tokenizer.Tokenizer, path: Path) -> None:
    """The word list that phones' tokenizers read, of a WordPiece that is saved without one."""
    ids = words.fast.get_vocab(with_added_tokens=True)
    numbered = sorted(ids.values()) == list(range(len(ids)))  # a line's number is its word's id
    if numbered and isinstance(words.fast.model, WordPiece):
        lines = (f"{token}\n" for token in sorted(ids, key=ids.__getitem__))
        path.write_text("".join(lines), encoding="utf-8")


def _model(subject: Subject) -> dict[str, Any]:
    """Which model it is, and how it is called."""
    encoder, sentence = subject.encoder, subject.sentence
    found: dict[str, Any] = {
        "name": subject.name,
        "fingerprint": subject.checkpoint.fingerprint,
        "part": subject.part,
        "head": subject.head,
        "layers": encoder.num_layers,
        "hidden_size": encoder.hidden_size,
        "vocab_size": encoder.vocab_size,
        "max_positions": encoder.max_positions,
        "inputs": list(subject.inputs),
        "outputs": list(subject.outputs),
    }
    if sentence is not None:
        said = asdict(sentence)
        if not sentence.prompts:
            del said["prompts"], said["default_prompt"]
        found |= said
    if subject.part == "head":
        found["labels"] = list(subject.checkpoint.head.labels)
    if subject.problem:
        found["problem"] = subject.problem
    if subject.problem == "regression" and subject.checkpoint.head.activation == "sigmoid":
        found["activation"] = "sigmoid"
    return found | _scope(subject)


def _scope(subject: Subject) -> dict[str, Any]:
    """The answer to texts that no label is sure enough of, where the head has one, and how sure
    that is.

    Raises:
      UserError: values in the folder's own settings that cannot be.
    """
    own = subject.checkpoint.own
    name = own.get("out_of_scope") if subject.problem == "single" else None
    if not name:
        return {}
    where = f"{subject.checkpoint.folder / hf_config.FILE}: {task_head.OWN}"
    if not isinstance(name, str):
        raise UserError(f"{where}: out_of_scope is {name!r:.80}; it must be a text.")
    threshold = json_file.number(own, "threshold", where, least=0.0, most=1.0, default=0.0)
    return {"out_of_scope": name, "threshold": threshold}
