"""The tokenizer of a checkpoint, with the ids that the rest of the project needs by their role.

Anything that `tokenizers` reads will do; WordPiece is what BERT has, and what `train` makes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.text import lines, pair_layout, special_tokens, tokenizer_config
from distilflax.text.pair_layout import PairLayout
from distilflax.text.tokenizer_config import ROLES

PREFIX = "##"  # of a WordPiece that continues a word
_LARGEST_FILE = 256 << 20  # bytes; the largest multilingual tokenizers take a tenth of it
# Embeddings are often padded to a multiple that suits the device, from 8 to 128. Other rows that no
# id reads are a word list that lost lines, whose later ids are all those of other words.
_LEAST_PADDING, _LARGEST_PADDING = 8, 128
# No vocabulary has these: they show what a tokenizer makes of a letter that it does not know.
_UNKNOWN = "\U00012000 \U00010a10 \U00013000"
# Where no class is named, these models' tokenizers are read with BERT's.
_MODELS = ("bert", "distilbert")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizers.Tokenizer` that neither truncates nor pads, and what its ids mean.

    Attributes:
      fast: the tokenizer itself.
      lowercase: whether text loses its capitals; False where the normalizer does not say.
      special: whether an id is a control token ([CLS], [PAD], ...), by id.
      continuation: whether an id goes on with the word of the one before it, by id.
      pair: how a row of two texts is laid out; None where it is none that can be told so.
      typed: whether a model is given the token types of its rows, where it has some.
      source: the file it was read from.
      fingerprint: of everything that decides the ids of a text.
    """

    fast: tokenizers.Tokenizer
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    lowercase: bool
    special: Bool[np.ndarray, " vocab"]
    continuation: Bool[np.ndarray, " vocab"]
    pair: PairLayout | None
    typed: bool
    source: Path
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self.special)

    def encode(self, texts: Sequence[str], max_length: int) -> list[Int[np.ndarray, " length"]]:
        """Each text as [CLS] ids [SEP], cut to `max_length` in all, which is at least those two."""
        room = max(0, max_length - 2)
        texts = list(texts)
        try:
            encodings = self.fast.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # half of a surrogate pair, which nothing can encode
            texts = [lines.whole(text) for text in texts]
            encodings = self.fast.encode_batch_fast(texts, add_special_tokens=False)
        return [
            np.array([self.cls_id, *encoding.ids[:room], self.sep_id], np.int32)
            for encoding in encodings
        ]

    def decode(self, ids: Int[np.ndarray, " length"] | Sequence[int]) -> str:
        """The text of some ids, without control tokens."""
        return self.fast.decode([int(token) for token in ids], skip_special_tokens=True)


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of an HF folder: `tokenizer.json`, or `vocab.txt` and `tokenizer_config.json`.

    The other files beside them name tokens that are added to either.

    Raises:
      UserError: neither is there, a file is damaged, a control token is missing, a `vocab.txt` is
        read by another class than BERT's, texts are cut at their beginning or control tokens in
        them split, or sentence-transformers' own file asks for lower case that the tokenizer does
        not make.
    """
    folder = Path(folder)
    config = tokenizer_config.read(folder)
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    if not whole.is_file() and not vocabulary.is_file():
        raise UserError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.txt; copy them from the "
            "model that the weights came from."
        )
    source = whole if whole.is_file() else vocabulary
    model = json_file.read_if_there(folder / "config.json")
    if source.stat().st_size > _LARGEST_FILE:
        raise UserError(f"{source} is over {_LARGEST_FILE >> 20} MiB: that is no tokenizer.")
    try:
        if source is whole:
            fast = tokenizers.Tokenizer.from_file(str(whole))
            # Both are saved with the tokenizer (all-MiniLM-L6-v2 pads everything to 128): left on,
            # every paragraph of a corpus would come out cut and padded, and lengths that nothing
            # has would end the process at the first text, below.
            fast.no_truncation()
            fast.no_padding()
            by_config = _normalize_as(fast, config, model)
        else:
            by_config = True
            tokenizer_config.refuse_others(folder, config, model)
            fast = _wordpiece(_word_list(vocabulary), config, str(vocabulary))
        special_tokens.add(
            fast, source, usual=_is_berts(config, model) or not _class(config, model)
        )
        # Some that can be built have no token for what they do not know, and fail on it.
        fast.encode(_UNKNOWN, add_special_tokens=False)
    # `tokenizers` raises plain Exception.
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source} cannot be read ({error}); copy it again.") from None
    tokenizer_config.refuse_other_cuts(folder, config)
    found = _with_roles(fast, config, model, source)
    beside, sentence = tokenizer_config.sentence_file(folder)
    if sentence.get("do_lower_case") and not found.lowercase:
        raise UserError(
            f"{beside} asks for lower case and {source.name} keeps capitals; "
            f"{tokenizer_config.how_to_lower(config, by_config)}."
        )
    return found


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Refuses a tokenizer that was not made for weights of `vocab_size` words.

    Raises:
      UserError: an id lies beyond the embeddings, or embeddings have no id and are not padding:
        more than that is, or of a number that nobody pads to.
    """
    spare = vocab_size - tokenizer.vocab_size
    # Other models' vocabularies are no list of lines; multilingual MiniLM has 35 rows beyond its.
    is_list = isinstance(tokenizer.fast.model, models.WordPiece)
    aligned = vocab_size % _LEAST_PADDING == 0 or not is_list
    padded = aligned and 0 < spare < _LARGEST_PADDING
    if spare and not padded:
        remedy = "use the tokenizer that the weights were trained with"
        if spare >= _LARGEST_PADDING:
            # Some were published with rows that nothing reads (Italian BERT XXL has 1,000). Nothing
            # in a folder tells them from another model's words: a person has to say it.
            remedy += (
                f"; if that is this one, {spare:,} embeddings are spare: cut them off with "
                f"transformers (model.resize_token_embeddings({tokenizer.vocab_size})) and save it"
            )
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size:,} tokens but {where} has embeddings for "
            f"{vocab_size:,}; {remedy}."
        )


def load_for(folder: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer beside weights of `vocab_size` words, by `load` and `check_vocabulary`."""
    tokenizer = load(folder)
    check_vocabulary(tokenizer, vocab_size, str(folder))
    return tokenizer


def train(
    read: Callable[[], Iterable[str]],
    folder: str | Path,
    vocab_size: int,
    *,
    lowercase: bool = True,
    min_frequency: int = 2,
    alphabet: int = 1000,
) -> Tokenizer:
    """Trains a BERT WordPiece vocabulary and writes it where `transformers` and `load` find it.

    Args:
      read: gives the texts; called twice, because ids must not depend on the order in which
        threads meet a character: the alphabet is counted and fixed before the training.
      folder: receives `tokenizer.json`, `vocab.txt` and `tokenizer_config.json`.
      vocab_size: at most so many tokens; fewer where the texts do not have them.
      lowercase: as BERT's uncased models, accents stripped too.
      min_frequency: of a pair, to be merged.
      alphabet: keep only so many characters, the commonest.

    Raises:
      UserError: no text, or a vocabulary too small for its alphabet.
    """
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": 512,
    } | {f"{role}_token": token for role, token in ROLES.items()}
    where = str(folder)
    blank = _wordpiece({token: i for i, token in enumerate(ROLES.values())}, config, where)

    counts: Counter[str] = Counter()
    for text in read():
        counts.update(blank.normalizer.normalize_str(text))
    commonest = sorted(counts, key=lambda character: (-counts[character], character))
    letters = sorted([c for c in commonest if not c.isspace()][:alphabet])
    first = [*ROLES.values(), *letters, *(PREFIX + letter for letter in letters)]
    if not letters:
        raise UserError("The texts to train a vocabulary on are empty; give some in data.sources.")
    if len(first) >= vocab_size:
        raise UserError(
            f"A vocabulary of {vocab_size:,} is too small for the {len(letters):,} characters of "
            f"these texts; give more than {len(first):,}, or a smaller alphabet."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        # In this list they get their ids in this order; left to the trainer, the continuing
        # letters would be numbered as its hash map has them, differently in every process.
        special_tokens=first,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    blank.train_from_iterator(read(), trainer)
    vocabulary = json.loads(blank.to_str())["model"]["vocab"]
    fast = _wordpiece(vocabulary, config, where)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = sorted(vocabulary, key=vocabulary.get)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    fast.save(str(folder / "tokenizer.json"))
    return load(folder)


def _word_list(path: Path) -> dict[str, int]:
    """The words of a `vocab.txt` with their ids; without the mark that some editors begin a file
    with, which would be part of the first one."""
    found = models.WordPiece.read_file(str(path))
    return {word.removeprefix("\ufeff") if not id_ else word: id_ for word, id_ in found.items()}


def _wordpiece(vocabulary: dict[str, int], config: dict, where: str) -> tokenizers.Tokenizer:
    """BERT's tokenizer around the vocabulary of `where`, as `tokenizer_config.json` says."""
    token = {role: config.get(f"{role}_token") or default for role, default in ROLES.items()}
    missing = [name for name in token.values() if name not in vocabulary]
    if missing:
        raise UserError(
            f"{where} lacks {', '.join(missing):.200}: it is no vocabulary of BERT's; copy that of "
            f"the model, or name its own tokens in {tokenizer_config.CONFIG}."
        )
    fast = tokenizers.Tokenizer(
        models.WordPiece(vocab=vocabulary, unk_token=token["unk"], max_input_chars_per_word=100)
    )
    fast.normalizer = tokenizer_config.normalizer(config)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece(prefix=PREFIX)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{token['cls']}:0 $A:0 {token['sep']}:0",
        pair=f"{token['cls']}:0 $A:0 {token['sep']}:0 $B:1 {token['sep']}:1",
        special_tokens=[(token[role], vocabulary[token[role]]) for role in ("cls", "sep")],
    )
    fast.add_special_tokens(list(token.values()))
    return fast


def _normalize_as(fast: tokenizers.Tokenizer, config: dict, model: dict) -> bool:
    """Of BERT's own class the config counts for more than the tokenizer.json beside it, what it
    does not say included: so transformers reads them. Where no class is named it is that of the
    `model`, by its config.json. Returns whether it did."""
    known = _is_berts(config, model)
    counts = known and isinstance(fast.normalizer, normalizers.BertNormalizer)
    if counts:
        fast.normalizer = tokenizer_config.normalizer(config)
    return counts


def _is_berts(config: dict, model: dict) -> bool:
    kind = _class(config, model)
    return tokenizer_config.is_berts(kind) if kind else model.get("model_type") in _MODELS


def _class(config: dict, model: dict) -> str:
    return str(config.get("tokenizer_class") or model.get("tokenizer_class") or "")


def _with_roles(fast: tokenizers.Tokenizer, config: dict, model: dict, source: Path) -> Tokenizer:
    ids = {}
    for role, default in ROLES.items():
        token = config.get(f"{role}_token") or default
        found = fast.token_to_id(token)
        if found is None:
            raise UserError(
                f"{source} has no {role} token {token!r}; name it as {role}_token in "
                "tokenizer_config.json."
            )
        ids[f"{role}_id"] = found

    vocabulary = fast.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1
    if size > 2 * len(vocabulary):
        raise UserError(f"{source} has {len(vocabulary):,} tokens but the id {size - 1:,}.")
    special = np.zeros(size, bool)
    special[list(ids.values())] = True
    special[[i for i, t in fast.get_added_tokens_decoder().items() if t.special]] = True
    description = json.loads(fast.to_str())
    continuation = np.zeros(size, bool)
    continues = _continues(description)
    continuation[[i for token, i in vocabulary.items() if continues(token)]] = True
    if _is_berts(config, model) and isinstance(fast.model, models.WordPiece):
        # These classes put BERT's own post-processor in the place of the file's.
        pair = pair_layout.of_bert(ids["sep_id"])
    else:
        pair = pair_layout.of_template(fast, ids["cls_id"], ids["sep_id"])
    where = str(source.parent / tokenizer_config.CONFIG)
    return Tokenizer(
        fast=fast,
        **ids,
        lowercase=_lowercase(description.get("normalizer")),
        special=special,
        continuation=continuation & ~special,
        pair=pair,
        typed=pair_layout.typed(config, _class(config, model), where),
        source=source,
        fingerprint=hashlib.sha256(
            json.dumps([description, ids], sort_keys=True).encode()
        ).hexdigest()[:16],
    )


def _continues(description: dict) -> Callable[[str], bool]:
    """Whether a token goes on with a word: WordPiece marks those, the others mark beginnings."""
    model = description["model"]
    if model.get("type") == "WordPiece":
        prefix = model.get("continuing_subword_prefix", PREFIX)
        return lambda token: token.startswith(prefix) and token != prefix
    return lambda token: not token.startswith(("▁", "Ġ"))


def _lowercase(normalizer: dict | None) -> bool:
    if not normalizer:
        return False
    inner = normalizer.get("normalizers", [])
    return (
        normalizer.get("type") == "Lowercase"
        or bool(normalizer.get("lowercase"))
        or any(map(_lowercase, inner))
    )
