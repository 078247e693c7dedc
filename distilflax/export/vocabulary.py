"""A vocabulary for the words of a domain: most of a small model's bytes are its embeddings.

It is cut out of the old one (`trim`), or trained on texts of the domain and its embeddings made of
the old ones (`renew`).

By a cut vocabulary a text whose tokens are all kept is read exactly as before: WordPiece takes the
longest piece that it knows, and taking others away makes none longer. Other texts fall into smaller
pieces, down to letters, which are kept; the model still reads them, less well and with more tokens.
"""

import json
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from distilflax import json_file, weights
from distilflax.errors import UserError
from distilflax.settings import Encoder
from distilflax.tasks.records import whole
from distilflax.tasks.texts import pieces
from distilflax.text import tokenizer
from distilflax.text.tokenizer import PREFIX, Tokenizer
from distilflax.weights import Checkpoint, writer

# Below this a held-out tenth says nothing.
_FEWEST_TEXTS = 20


class Reading(NamedTuple):
    """How a tokenizer reads some texts: tokens a text, and the share that is [UNK]."""

    tokens: float
    unknown: float


def choose(
    words: Tokenizer, texts: Sequence[str], most: int = 0, prompts: Sequence[str] = ()
) -> Int[np.ndarray, "kept"]:
    """The ids to keep, rising: control tokens, letters, what prompts are made of, and what the
    texts use.

    Letters are those of ASCII and of the texts, as written and as the tokenizer normalizes them,
    alone and inside of a word, as far as the vocabulary has them. `most` bounds how many are kept
    in all: the most used; 0 for all.

    Raises:
      UserError: no text, a vocabulary that is not WordPiece's, or a bound with no room for words.
    """
    _description(words)
    ids = np.concatenate([np.zeros(0, np.int32), *pieces(words, texts)])
    counts = np.bincount(ids, minlength=words.vocab_size)
    if not counts.any():
        raise UserError("There is no text to choose a vocabulary by; give some in --texts.")
    vocabulary = words.fast.get_vocab(with_added_tokens=True)
    letters = {*string.printable, *(letter for text in texts for letter in text.lower())}
    letters |= {letter for text in texts for letter in text}
    if words.fast.normalizer is not None:
        # An uncased BERT reads text without accents: Hangul taken apart, "か" in place of "が".
        letters.update(*(words.fast.normalizer.normalize_str(whole(text)) for text in texts))
    must = words.special.copy()
    for letter in letters:
        for token in (letter, PREFIX + letter):
            if token in vocabulary:
                must[vocabulary[token]] = True
    must[list(words.fast.get_added_tokens_decoder())] = True
    for ids in pieces(words, prompts):
        must[ids] = True
    if most and most <= must.sum():
        raise UserError(
            f"--words={most} leaves no room for words beside the {must.sum():,} control tokens, "
            "letters and words of prompts; give more."
        )
    order = np.lexsort((np.arange(len(counts)), -counts, ~must))
    wanted = int((must | (counts > 0)).sum())
    return np.sort(order[: min(wanted, most) if most else wanted])


def trim(
    checkpoint: Checkpoint, words: Tokenizer, kept: Int[np.ndarray, "kept"], folder: str | Path
) -> Path:
    """Write the model with the words of `kept` alone as an HF folder; returns its path.

    Everything else stays: layers, heads, sentence files. Ids change, and with them the tokenizer.

    Raises:
      UserError: as `weights.save` does.
    """
    new_id = {int(old): new for new, old in enumerate(kept)}
    with TemporaryDirectory() as temporary:
        _write_tokenizer(Path(temporary), checkpoint, words, new_id)
        return weights.save(
            folder,
            _encoder(checkpoint.encoder, words, new_id),
            _params(checkpoint.params, lambda table: table[kept]),
            tokenizer_folder=temporary,
            sentence=checkpoint.sentence,
            head=checkpoint.head,
            own=checkpoint.own,
        )


def renew(
    checkpoint: Checkpoint,
    words: Tokenizer,
    texts: Sequence[str],
    size: int,
    folder: str | Path,
) -> Path:
    """Write the model with a new WordPiece of at most `size` pieces, trained on `texts`, each
    behind one of the model's prompts where it has some.

    Fast Vocabulary Transfer (Gee et al. 2022, arXiv:2402.09977): a piece that the old vocabulary
    has keeps its embedding, and any other starts as the mean of the old pieces that it falls into;
    so do rows and biases of a masked-LM head. [PAD], [UNK], [CLS], [SEP] and [MASK] are copied;
    other added tokens are gone. Everything else stays.

    Unlike a trimmed model this one reads its texts in pieces that it never met: it wants some steps
    of masked words before it teaches or is used.

    Raises:
      UserError: as `weights.save` and `tokenizer.train` do, or a vocabulary that is not WordPiece.
    """
    _description(words)
    prompts = prompts_of(checkpoint) or ("",)
    read = [prompts[i % len(prompts)] + text for i, text in enumerate(texts)]
    with TemporaryDirectory() as temporary:
        new = tokenizer.train(lambda: read, temporary, size, lowercase=words.lowercase)
        origins = origins_of(new, words)

        def mean_of_origins(table):
            return np.stack([table[ids].mean(axis=0) for ids in origins]).astype(np.float32)

        return weights.save(
            folder,
            replace(checkpoint.encoder, vocab_size=new.vocab_size, pad_token_id=new.pad_id),
            _params(checkpoint.params, mean_of_origins),
            tokenizer_folder=temporary,
            sentence=checkpoint.sentence,
            head=checkpoint.head,
            own=checkpoint.own,
        )


def prompts_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What sentence-transformers, and our own predictor, put before texts for this model."""
    prompts = checkpoint.sentence.prompts if checkpoint.sentence is not None else {}
    return tuple(prompt for prompt in prompts.values() if prompt)


def origins_of(new: Tokenizer, old: Tokenizer) -> list[list[int]]:
    """For each id of `new` the ids of `old` that it is made of.

    The longest piece first, as WordPiece reads; what has a letter that `old` lacks is its [UNK].
    """
    known = old.fast.get_vocab()
    found = [_cut(new.fast.id_to_token(i), known) or [old.unk_id] for i in range(new.vocab_size)]
    for role in tokenizer.ROLES:
        found[getattr(new, f"{role}_id")] = [getattr(old, f"{role}_id")]
    return found


def _cut(piece: str, known: dict[str, int]) -> list[int]:
    """The ids of `piece` in a vocabulary, or none at all where a part of it is not there."""
    prefix = PREFIX if piece.startswith(PREFIX) and piece != PREFIX else ""
    rest, ids = piece.removeprefix(prefix), []
    while rest:
        end = next((n for n in range(len(rest), 0, -1) if prefix + rest[:n] in known), 0)
        if not end:
            return []
        ids.append(known[prefix + rest[:end]])
        rest, prefix = rest[end:], PREFIX
    return ids


def reading(words: Tokenizer, texts: Sequence[str]) -> Reading:
    """How `words` reads the texts."""
    found = pieces(words, texts)
    ids = np.concatenate(found)
    return Reading(len(ids) / len(found), float(np.mean(ids == words.unk_id)))


def held_out_share(
    words: Tokenizer, texts: Sequence[str], most: int = 0, prompts: Sequence[str] = ()
) -> float | None:
    """The share of the tokens of every tenth text that the other nine would have kept; None of
    too few texts. What a text that is not among them can expect."""
    if len(texts) < _FEWEST_TEXTS:
        return None
    others = [text for i, text in enumerate(texts) if i % 10]
    kept = np.zeros(words.vocab_size, bool)
    kept[choose(words, others, most, prompts)] = True
    return float(np.mean(kept[np.concatenate(pieces(words, texts[::10]))]))


def _description(words: Tokenizer) -> dict[str, Any]:
    """The tokenizer as JSON.

    Raises:
      UserError: not WordPiece: other kinds build pieces out of pieces, which must all be kept.
    """
    description = json.loads(words.fast.to_str())
    kind = description["model"].get("type")
    if kind != "WordPiece":
        raise UserError(f"The tokenizer is {kind}; only WordPiece vocabularies can be changed.")
    return description


def _encoder(encoder: Encoder, words: Tokenizer, new_id: dict[int, int]) -> Encoder:
    pad = new_id.get(encoder.pad_token_id, new_id[words.pad_id])
    return replace(encoder, vocab_size=len(new_id), pad_token_id=pad)


def _params(params: dict, rows: Callable[[np.ndarray], np.ndarray]) -> dict:
    """The same arrays but for the three that have a row for each word, which `rows` changes."""
    embeddings = params["encoder"]["embeddings"]
    found = {**params, "encoder": {**params["encoder"], "embeddings": {**embeddings}}}
    found["encoder"]["embeddings"]["word"] = rows(embeddings["word"])
    if "mlm_head" in params:
        head = params["mlm_head"]
        cut = {name: rows(head[name]) for name in ("bias", "decoder") if name in head}
        found["mlm_head"] = {**head, **cut}
    return found


def _write_tokenizer(
    folder: Path, checkpoint: Checkpoint, words: Tokenizer, new_id: dict[int, int]
) -> None:
    writer.copy_tokenizer(checkpoint.encoder, checkpoint.folder, folder)
    description = _renumbered(_description(words), new_id)
    writer.write_json(folder / "tokenizer.json", description)
    tokens = sorted(description["model"]["vocab"], key=description["model"]["vocab"].get)
    text = "".join(f"{token}\n" for token in tokens)
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json_file.read_if_there(path)
    if isinstance(config.get("added_tokens_decoder"), dict):
        # transformers takes ids from here, before those of tokenizer.json.
        config["added_tokens_decoder"] = {
            str(new_id[int(old)]): entry
            for old, entry in config["added_tokens_decoder"].items()
            if old.isdigit() and int(old) in new_id
        }
        writer.write_json(path, config)
    path = folder / "added_tokens.json"
    if path.is_file():
        added = json_file.read(path)
        writer.write_json(path, {t: new_id[old] for t, old in added.items() if old in new_id})


def _renumbered(description: dict[str, Any], new_id: dict[int, int]) -> dict[str, Any]:
    """The tokenizer's JSON with its ids changed wherever they stand."""
    vocabulary = description["model"]["vocab"]
    kept = {token: new_id[old] for token, old in vocabulary.items() if old in new_id}
    description["model"]["vocab"] = kept
    for token in description["added_tokens"]:
        token["id"] = new_id[token["id"]]
    after = description.get("post_processor") or {}
    for step in (after, *after.get("processors", ())):
        for entry in (step.get("special_tokens") or {}).values():
            entry["ids"] = [new_id[old] for old in entry["ids"]]
        for name in ("cls", "sep"):
            if name in step:
                step[name][1] = new_id[step[name][1]]
    return description
