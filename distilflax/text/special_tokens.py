"""Tokens that a text has as they stand, unlike words, which are split: the control tokens, and
those that were added to a vocabulary. The files beside a tokenizer name more than it has itself.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

import tokenizers

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.text import tokenizer_config
from distilflax.text.tokenizer_config import CONFIG, LISTS, ROLES, text_of

ADDED = "added_tokens.json"
_FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
_LARGEST_ID = 1 << 31


def add(fast: tokenizers.Tokenizer, source: Path, usual: bool) -> None:
    """Adds to `fast`, read from `source`, what the files beside it name, as transformers does.

    The tokens with an id get that id where `source` does not have them. Others that it does not
    have stay unknown: no embedding is theirs.

    Args:
      usual: whether the control tokens of a role that the files do not name are BERT's.

    Raises:
      UserError: a file is damaged, or an id is not the next one. Of a `vocab.txt` every id counts:
        a line that was lost would give all later words those of others.
    """
    named = _named(source.parent, usual)
    mine = {token.content for token in fast.get_added_tokens_decoder().values()}
    # The ids of a tokenizer.json count for more, as of a vocabulary that was made smaller.
    known = fast.get_vocab(with_added_tokens=True) if source.suffix == ".json" else ()
    numbered = sorted(_numbered(source.parent, named, mine).items())
    fast.add_tokens([token for _, token in numbered])  # at once: each call goes through all of them
    for number, token in numbered:
        if token.content not in known and fast.token_to_id(token.content) != number:
            raise UserError(
                f"The added token {token.content!r:.40} has the id {number}, which does not follow "
                f"those of {source.name}; save the tokenizer as tokenizer.json with transformers."
            )
    mine = {token.content for token in fast.get_added_tokens_decoder().values()}
    rest = [token for text, token in named.items() if text not in mine]
    fast.add_special_tokens([t for t in rest if fast.token_to_id(t.content) is not None])


def _named(folder: Path, usual: bool) -> dict[str, tokenizers.AddedToken]:
    """The tokens that have a role or stand in a list, by text."""
    defaults = ROLES.items() if usual else ()
    roles = {f"{role}_token": tokenizers.AddedToken(t, special=True) for role, t in defaults}
    found = {}
    for path in (folder / name for name in tokenizer_config.FILES):
        given = json_file.read_if_there(path)
        # Some have a role in models of other kinds (eos_token); add_eos_token is a setting.
        roles |= {
            key: _token(value, key, path)
            for key, value in given.items()
            if key.endswith("_token") and value and isinstance(value, str | dict)
        }
        for key in filter(given.get, LISTS):
            tokens = given[key].values() if isinstance(given[key], dict) else given[key]
            found |= {token.content: token for token in (_token(t, key, path) for t in tokens)}
    return found | {token.content: token for token in roles.values()}


def _token(value: Any, name: str, path: Path) -> tokenizers.AddedToken:
    """A token of a name, which is special whatever is said of it."""
    return tokenizers.AddedToken(
        text_of(value, name, path), **(_flags(value, name, path) | {"special": True})
    )


def _numbered(
    folder: Path, named: Container[str], mine: Container[str]
) -> dict[int, tokenizers.AddedToken]:
    """The tokens with an id, by id: {text: id} of `added_tokens.json`, but for those that are
    added already, and `added_tokens_decoder` of the config, {id: {"content", "special", ...}},
    which tells more of each."""
    path = folder / ADDED
    found = {}
    for text, number in json_file.read_if_there(path).items():
        token = tokenizers.AddedToken(text_of(text, "a token", path), special=text in named)
        number = _id(number, text, path)
        if text not in mine:
            found[number] = token
    path = folder / CONFIG
    described = json_file.read_if_there(path).get("added_tokens_decoder") or {}
    if not isinstance(described, dict):
        raise UserError(f"{path}: added_tokens_decoder should be an object; copy the file again.")
    for number, token in described.items():
        name = f"added_tokens_decoder {number:.20}"
        text, flags = text_of(token, name, path), _flags(token, name, path)
        flags["special"] = flags.get("special", False) or text in named
        given = int(number) if number.isdecimal() and len(number) < 12 else number
        found[_id(given, text, path)] = tokenizers.AddedToken(text, **flags)
    return found


def _flags(token: Any, name: str, path: Path) -> dict[str, bool]:
    flags = {n: token[n] for n in _FLAGS if n in token} if isinstance(token, dict) else {}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(f"{path}: {name} has {flags!r:.200}; each of them must be true or false.")
    return flags


def _id(number: Any, text: str, path: Path) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < _LARGEST_ID:
        raise UserError(
            f"{path}: the id of {text!r:.80} is {number!r:.40}; it must be a whole number."
        )
    return number
