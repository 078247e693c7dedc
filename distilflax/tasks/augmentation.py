"""More texts for a task teacher to speak on: words replaced by what a masked-LM would put there.

TinyBERT's augmentation (Jiao et al. 2019, arXiv:1909.10351, algorithm 1): of a text N samples, in
each of which every word is replaced with probability p by one of its K candidates, drawn evenly.
As in the authors' data_augmentation.py only words of letters that are no stop words (here those of
scikit-learn) change, a sample that is there already is left out, and the candidates are found in
the text as it was. Where we differ:

- A word of several pieces is masked by one [MASK] and has candidates like any other, where the
  paper takes its neighbours in GloVe: those are another download, and know nothing of the text.
- The authors' code shows the masked-LM the whole text as a second one beside the masked text, the
  paper does not; nor do we.
- Of a pair both texts vary in every sample; their code varies one after the other.
- The masked-LM need not be BERT's: of vocabularies that mark beginnings of words (by "▁" or "Ġ")
  those that begin one are candidates, without the mark.
- Samples lose their label, which a replaced word may have made wrong: what they teach is what the
  teacher says of them. (Their prediction stage asks the teacher alone too, but for regression.)
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers.models import WordPiece

from distilflax import json_file, models, weights
from distilflax.errors import UserError
from distilflax.settings import Compute, Encoder
from distilflax.tasks import batches
from distilflax.tasks.records import whole
from distilflax.tasks.runner import Runner
from distilflax.tasks.settings import FineTuning
from distilflax.tasks.task import Features, Task
from distilflax.text import tokenizer as text_tokenizer
from distilflax.text.on_disk import replacing
from distilflax.text.tokenizer import Tokenizer

_AT_ONCE = 1024  # texts whose masked rows are in memory together
_ROWS = 64
# Part of the cache's key: raise it where the same settings come to other samples.
_VERSION = 2


class Slot(NamedTuple):
    """A word that may be replaced: its characters in the text, and its candidates."""

    start: int
    end: int
    candidates: tuple[str, ...]


def augment(
    run: FineTuning, task: Task, examples: Sequence, say: Callable[[str], None]
) -> list[list]:
    """For each example its samples, without labels: at most `augmentation.samples` of them.

    They are a function of the seed, the settings, the model and the example alone, and are kept in
    `augmentation.cache`.

    Raises:
      UserError: a model without masked-LM head or a word to fill in, or a cache that cannot be
        written.
    """
    options = run.augmentation
    checkpoint = weights.load(options.model)
    if "mlm_head" not in checkpoint.params:
        raise UserError(
            f"config.augmentation.model {options.model} has no masked-LM head; give a model that "
            "fills in masked words, such as the folder of a run of experiments.distill."
        )
    words = text_tokenizer.load_for(checkpoint.folder, checkpoint.encoder.vocab_size)
    given = [tuple(map(whole, task.wording(example))) for example in examples]
    path = _cache_path(run, checkpoint.fingerprint, words.fingerprint, given)
    samples = _read(path, given)
    if samples is None:
        length = min(run.data.max_length, checkpoint.encoder.max_positions)
        fill = masked_lm(checkpoint.encoder, run.compute, words, options.candidates, length)
        fill = partial(fill, jax.device_put(checkpoint.params))
        samples = []
        for start in range(0, len(given), _AT_ONCE):
            say(f"augmentation: {start:,} of {len(given):,} examples")
            part = given[start : start + _AT_ONCE]
            samples += sampled(part, slots(words, part, fill, length), run)
        _write(path, samples)
    number = sum(map(len, samples))
    say(f"augmentation: {number:,} samples of {len(given):,} examples ({path})")
    return [
        [task.reworded(example, tuple(texts)) for texts in found]
        for example, found in zip(examples, samples, strict=True)
    ]


def masked_lm(
    encoder: Encoder, compute: Compute, words: Tokenizer, candidates: int, max_length: int
) -> Callable[[dict, list], list[tuple[str, ...]]]:
    """(parameters, rows of ids with one [MASK] each) to the likeliest words there, best first.

    Words are entries of the vocabulary that consist of letters and continue no other.

    Raises:
      UserError: there is none.
    """
    names = _written(words)
    allowed = np.zeros(encoder.vocab_size, bool)
    allowed[: words.vocab_size] = [name.isalpha() for name in names]
    allowed[: words.vocab_size] &= ~words.special & ~words.continuation
    if not allowed.any():
        raise UserError(
            f"{words.source} has no entry of letters that is known to begin a word, so there is "
            "nothing to replace words by; give a model with BERT's vocabulary as "
            "config.augmentation.model."
        )
    number = min(candidates, int(allowed.sum()))
    runner = Runner(
        partial(_likeliest, encoder, compute, allowed, words.mask_id, number),
        with_types=False,
        batch_sizes=(_ROWS,),
        buckets=batches.buckets(max_length),
    )

    def fill(params: dict, rows: list[np.ndarray]) -> list[tuple[str, ...]]:
        found = runner(params, Features(rows, [], np.arange(len(rows))))
        return [tuple(names[i] for i in row) for row in found]

    return fill


def _written(words: Tokenizer) -> list[str]:
    """What each entry of the vocabulary is in a text, by id."""
    if _is_wordpiece(words):
        return [words.fast.id_to_token(i) or "" for i in range(words.vocab_size)]
    # Others have a mark before it, which is read as a blank, or bytes of other letters' names.
    decoded = words.fast.decode_batch([[i] for i in range(words.vocab_size)])
    return [name.strip() for name in decoded]


def _is_wordpiece(words: Tokenizer) -> bool:
    return isinstance(words.fast.model, WordPiece)


def _likeliest(
    encoder: Encoder,
    compute: Compute,
    allowed: Bool[np.ndarray, "V"],
    mask_id: int,
    number: int,
    params: dict,
    input_ids: Int[Array, "B L"],
    attention_mask: Int[Array, "B L"],
) -> Int[Array, "B K"]:
    out = models.encode(encoder, compute, params["encoder"], input_ids, attention_mask)
    at = jnp.argmax(input_ids == mask_id, axis=1)[:, None, None]
    states = jnp.take_along_axis(out["last_hidden_state"], at, axis=1)[:, 0]
    matrix, bias = models.decoder(params)
    hidden = models.mlm_transform(encoder, compute, params, states)
    logits: Float[Array, "B V"] = (hidden @ matrix.T.astype(hidden.dtype)).astype(bias.dtype) + bias
    return jax.lax.top_k(jnp.where(allowed, logits, -jnp.inf), number)[1]


def slots(
    words: Tokenizer,
    given: Sequence[tuple[str, ...]],
    fill: Callable[[list], list[tuple[str, ...]]],
    max_length: int,
) -> list[list[list[Slot]]]:
    """For each text of each example the words that may be replaced, with their candidates."""
    texts = [text for several in given for text in several]
    rows, places = [], []
    for number, text in enumerate(texts):
        for start, end, row in _masked(words, text, max_length):
            rows.append(row)
            places.append((number, start, end))
    by_text: list[list[Slot]] = [[] for _ in texts]
    for (number, start, end), found in zip(places, fill(rows), strict=True):
        by_text[number].append(Slot(start, end, found))
    of_texts = iter(by_text)
    return [[next(of_texts) for _ in several] for several in given]


def _masked(
    words: Tokenizer, text: str, max_length: int
) -> Iterator[tuple[int, int, Int[np.ndarray, "_"]]]:
    """(first character, last + 1, the row with that word masked) of each word that may change."""
    encoding = words.fast.encode(text, add_special_tokens=False)
    # Who writes "[MASK]" into a text does not mean ours.
    ids = np.array(encoding.ids, np.int32)
    ids[ids == words.mask_id] = words.unk_id
    offsets = encoding.offsets  # of all tokens, made anew whenever they are asked for
    of_word = np.array([-1 if i is None else i for i in encoding.word_ids], np.int64)
    for word in dict.fromkeys(of_word[of_word >= 0].tolist()):
        at = np.flatnonzero(of_word == word)
        first, last = int(at[0]), int(at[-1])
        # The words come in order, and no row has room for those after this one.
        if first + 2 >= max_length:
            break
        if not _is_wordpiece(words):
            last = _without_punctuation(text, offsets, first, last)
        start, end = offsets[first][0], offsets[last][1]
        # A mark of the beginning stands for the blank before the word.
        start = end - len(text[start:end].lstrip())
        there = text[start:end]
        # What follows an apostrophe ends a contraction; lists of stop words have it in pieces.
        before = text[max(start - 1, 0) : start]
        kept = there.lower() in _stop_words() or before in ("'", "\u2019")
        if kept or not there.isalpha():
            continue
        row = np.concatenate([[words.cls_id], ids[:first], [words.mask_id], ids[last + 1 :]])
        row = np.append(row[: max_length - 1], words.sep_id)
        yield start, end, row.astype(np.int32)


def _without_punctuation(
    text: str, offsets: Sequence[tuple[int, int]], first: int, last: int
) -> int:
    """The last piece of a word, where a tokenizer leaves the comma at it."""
    while last > first and not any(map(str.isalnum, text[slice(*offsets[last])])):
        last -= 1
    return last


def _stop_words() -> frozenset[str]:
    try:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    except ImportError as error:
        raise UserError(
            f"Augmentation needs {error.name}: pip install 'distilflax[tasks]'."
        ) from None
    return ENGLISH_STOP_WORDS


def sampled(
    given: Sequence[tuple[str, ...]], found: Sequence[list[list[Slot]]], run: FineTuning
) -> list[list[list[str]]]:
    """Algorithm 1's loop: for each example its samples, each as many texts as the example has.

    Whatever else there is to augment, an example has the samples that it has alone.
    """
    options, samples = run.augmentation, []
    for texts, by_text in zip(given, found, strict=True):
        own = hashlib.sha256(json.dumps(texts).encode()).digest()[:8]
        rng = np.random.default_rng([run.seed, int.from_bytes(own, "big")])
        seen = {texts: None}
        for _ in range(options.samples):
            pairs = zip(texts, by_text, strict=True)
            seen[tuple(_reworded(t, s, options.probability, rng) for t, s in pairs)] = None
        samples.append([list(sample) for sample in seen][1:])
    return samples


def _reworded(text: str, slots: Sequence[Slot], probability: float, rng) -> str:
    parts, end = [], 0
    for slot in slots:
        replaced, which = rng.random() <= probability, rng.integers(len(slot.candidates))
        if replaced:
            parts += [text[end : slot.start], slot.candidates[which]]
            end = slot.end
    return "".join([*parts, text[end:]])


def _cache_path(run: FineTuning, model: str, words: str, given: Sequence) -> Path:
    options = run.augmentation
    determined_by = [
        _VERSION,
        model,
        words,
        run.seed,
        run.data.max_length,
        run.compute.dtype,
        [options.samples, options.candidates, options.probability],
        given,
    ]
    name = hashlib.sha256(json.dumps(determined_by).encode()).hexdigest()[:16]
    return Path(options.cache).expanduser() / "augmented" / f"{name}.jsonl"


def _read(path: Path, given: Sequence[tuple[str, ...]]) -> list[list[list[str]]] | None:
    """The samples of a run before; None where there are none, or none that fit."""
    try:
        samples = [json_file.parse(line, path.name) for line in path.read_bytes().splitlines()]
        fit = len(samples) == len(given) and all(
            len(sample) == len(texts) and all(isinstance(text, str) for text in sample)
            for found, texts in zip(samples, given, strict=True)
            for sample in found
        )
    # A damaged file is as good as none: making it again is all that it costs.
    except (OSError, ValueError, TypeError):
        return None
    return samples if fit else None


def _write(path: Path, samples: Sequence[Sequence]) -> None:
    # With ASCII escapes: a text may hold what else ends a line.
    lines = "".join(json.dumps(found) + "\n" for found in samples)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written to ({error.strerror}); give another folder as "
            "config.augmentation.cache."
        ) from None
