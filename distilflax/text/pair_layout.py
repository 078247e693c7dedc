"""How a tokenizer lays out two texts in one row, and whether the model is told which is which."""

from typing import NamedTuple

import tokenizers

from distilflax.errors import UserError

# What transformers gives no token types with unless `model_input_names` asks for them. Not so
# PreTrainedTokenizerFast, by which transformers 5 gives none either: the name is what transformers
# 4 wrote, which gave them, and what was trained with them needs them. 5 writes TokenizersBackend.
_UNTYPED = ("DistilBertTokenizer", "TokenizersBackend")
_TYPES = "token_type_ids"
_PROBE = "a"


class PairLayout(NamedTuple):
    """[CLS] first, `between`, second [SEP]: BERT has one [SEP] between the texts, XLM-R has two.

    `types` are the token types of [CLS], the first text, each of `between`, the second text and
    the last [SEP].
    """

    between: tuple[int, ...]
    types: tuple[int, ...]


def of_bert(sep_id: int) -> PairLayout:
    return PairLayout((sep_id,), (0, 0, 0, 1, 1))


def of_template(fast: tokenizers.Tokenizer, cls_id: int, sep_id: int) -> PairLayout | None:
    """As the tokenizer's own post-processor has it; None where that is no such row: without
    control tokens, or with others at its ends."""
    row = fast.encode(_PROBE, _PROBE)
    of_first = [i for i, text in enumerate(row.sequence_ids) if text == 0]
    of_second = [i for i, text in enumerate(row.sequence_ids) if text == 1]
    if not of_first or not of_second:
        return None
    begin, end, last = of_first[-1] + 1, of_second[0], of_second[-1] + 1
    if [*row.ids[: of_first[0]], *row.ids[last:]] != [cls_id, sep_id] or begin >= end:
        return None
    at = (0, of_first[0], *range(begin, end), end, last)
    return PairLayout(tuple(row.ids[begin:end]), tuple(row.type_ids[i] for i in at))


def typed(config: dict, kind: str, where: str) -> bool:
    """Whether a model is given token types, by its tokenizer's config and the class `kind`.

    Raises:
      UserError: `model_input_names` is no list of names.
    """
    names = config.get("model_input_names")
    if names is None:
        return kind.removesuffix("Fast") not in _UNTYPED
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: model_input_names is {names!r:.80}; it must be a list of names.")
    return _TYPES in names
