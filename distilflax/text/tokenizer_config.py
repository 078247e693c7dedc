"""What stands beside a tokenizer: its control tokens by role, and how it treats a text.

Every value that is read here is checked where it is read, so that the file it stands in is named.
"""

from pathlib import Path
from typing import Any

from tokenizers import normalizers

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.text.lines import whole

ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONFIG = "tokenizer_config.json"
# sentence-transformers' file beside a tokenizer: its longest text, and whether to lower it. The
# first versions named it after the model.
SENTENCE_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# Of lower importance first.
FILES = ("special_tokens_map.json", CONFIG)
_SWITCHES = {
    "do_lower_case": (True, False),
    "tokenize_chinese_chars": (True, False),
    "strip_accents": (True, False, None),  # null: as do_lower_case
}
LISTS = ("additional_special_tokens", "extra_special_tokens")
# transformers reads with BERT's class what names one of these.
_BERTS = (
    "BertTokenizer",
    "ConvBertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
)
# Classes that are as the file beside them says.
_GENERAL = ("PreTrainedTokenizer", "TokenizersBackend")


def read(folder: Path) -> dict[str, Any]:
    """The values of both files of a folder; the control tokens, and those in lists, as text.

    Raises:
      UserError: a file is damaged, or holds a value of another kind than it should.
    """
    config: dict[str, Any] = {}
    for name in FILES:
        config |= _checked(folder / name)
    return config


def sentence_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Of `SENTENCE_FILES` the first that says something, as sentence-transformers has it, and what
    it says; the usual one, which may not be there, where none does.

    Raises:
      UserError: one of them is damaged.
    """
    for path in (folder / name for name in SENTENCE_FILES):
        if config := json_file.read_if_there(path):
            return path, config
    return folder / SENTENCE_FILES[0], {}


def is_berts(kind: object) -> bool:
    """Whether a `tokenizer_class` is one that transformers reads with BERT's own."""
    return str(kind).removesuffix("Fast") in _BERTS


def refuse_others(folder: Path, config: dict, model: dict) -> None:
    """Refuses a `vocab.txt` whose texts are not split as BERT splits them: by a class of its own
    (Japanese ones ask MeCab), which the `config` of its tokenizer names or that of its `model`.

    Raises:
      UserError: another class, another splitter or code of its own.
    """
    name = CONFIG if config.get("tokenizer_class") else "config.json"
    kind = config.get("tokenizer_class") or model.get("tokenizer_class")
    code, words = config.get("auto_map"), config.get("word_tokenizer_type")
    if kind and not is_berts(kind) and str(kind).removesuffix("Fast") not in _GENERAL:
        said = f"{name} names the class {kind!r:.80}"
    elif code.get("AutoTokenizer") if isinstance(code, dict) else code:
        said = f"{CONFIG} has auto_map, code of the tokenizer's own"
    elif words not in (None, "basic"):
        said = f"{CONFIG} has word_tokenizer_type {words!r:.80}"
    else:
        return
    raise UserError(
        f"{folder / 'vocab.txt'} is not read as BERT's is: {said}, which splits texts in its own "
        "way; put a tokenizer.json that does the same beside it, or use another model."
    )


def refuse_other_cuts(folder: Path, config: dict) -> None:
    """Refuses texts that are cut at their beginning, and "[SEP]" in a text that is split as words
    are. The latter is a setting that no tokenizer.json holds, so that whoever is handed one to run
    the model elsewhere would read other tokens.

    Raises:
      UserError: either is asked for.
    """
    path, side = folder / CONFIG, config.get("truncation_side", "right")
    if side != "right":
        raise UserError(
            f"{path} cuts texts on the {side!r}, and here the end is cut; set truncation_side to "
            "right."
        )
    if config.get("split_special_tokens"):
        raise UserError(
            f"{path} splits control tokens that stand in a text, and here they are kept; set "
            "split_special_tokens to false."
        )


def normalizer(config: dict) -> normalizers.Normalizer:
    """BERT's, as the values of `read` say."""
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )


def how_to_lower(config: dict, by_config: bool) -> str:
    """What makes lower case as sentence-transformers does: before the tokenizer's own normalizer,
    so that accents are lost only where they were already."""
    if not by_config:
        return "put a Lowercase normalizer into tokenizer.json"
    # BERT's null is "as do_lower_case", and would take the accents away from now on.
    accents = ' and "strip_accents": false' if config.get("strip_accents") is None else ""
    return f'say "do_lower_case": true{accents} in {CONFIG}'


def _checked(path: Path) -> dict[str, Any]:
    config = json_file.read_if_there(path)
    for name, values in _SWITCHES.items():
        if not any(config.get(name, values[0]) is value for value in values):
            raise UserError(
                f"{path}: {name} is {config[name]!r:.80}; it must be true or false, without quotes."
            )
    for name in (f"{role}_token" for role in ROLES):
        if config.get(name) not in (None, ""):
            config[name] = text_of(config[name], name, path)
    for name in filter(config.get, LISTS):
        # An object gives names to tokens that have a role in models of other kinds.
        tokens = config[name]
        tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens
        if not isinstance(tokens, list):
            raise UserError(f"{path}: {name} is {tokens!r:.80}; it must be a list of tokens.")
        config[name] = [text_of(token, name, path) for token in tokens]
    return config


def text_of(token: Any, name: str, path: Path) -> str:
    """A token is a string, or an object that holds one as `content`.

    Raises:
      UserError: it is neither; the error names it as `name` of the file at `path`.
    """
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not text or whole(text) != text:
        raise UserError(
            f"{path}: {name} is {token!r:.80}; it must be text, or an object with text as content."
        )
    return text
