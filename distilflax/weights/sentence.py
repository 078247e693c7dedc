"""What sentence-transformers keeps beside the encoder: how one vector is made of a text.

    modules.json                          which steps follow each other
    1_Pooling/config.json                 mean or CLS
    2_Normalize/config.json               of what the length is made 1; since version 6
    sentence_bert_config.json             the longest text, in tokens
    config_sentence_transformers.json     prompts, and how vectors are compared

The layout is that of version 2, which every version from 2 to 6 reads; 6 writes other keys into
the same files, and both are read here. Older ones have the encoder, its tokenizer and the longest
text in a folder of their own, 0_Transformer, which modules.json names.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distilflax import json_file
from distilflax.errors import UserError, choose_from
from distilflax.text import tokenizer_config

MODULES = "modules.json"
LENGTH = tokenizer_config.SENTENCE_FILES[0]
SETTINGS = "config_sentence_transformers.json"
POOLING_FOLDER = "1_Pooling"

# Versions 2 to 5 write the first two. What else may stand in the file of the longest text asks for
# another model or for other tokens: arguments for transformers (model_args, tokenizer_args, ...), a
# call of the tokenizer (processing_kwargs), lengths of queries and documents. Whether to lower is
# read with the tokenizer, and with padding or without it a text has the same vector.
_HARMLESS = ("max_seq_length", "do_lower_case", "unpad_inputs")


def _model_of(task: str, output: str, name: str) -> dict:
    modalities = {"text": {"method": "forward", "method_output_name": output}}
    return {"transformer_task": task, "modality_config": modalities, "module_output_name": name}


# What version 6 writes of every model of the kind.
_ENCODER = _model_of("feature-extraction", "last_hidden_state", "token_embeddings")
_CROSS_ENCODER = _model_of("sequence-classification", "logits", "scores")

_VECTOR = "sentence_embedding"  # what the pooling calls it
_THEIRS = "sentence_transformers."

POOLING = ("mean", "cls")
SIMILARITIES = ("cosine", "dot")
_BOOLEAN_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# What models call the prompt for queries, and that for what is searched.
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")


@dataclass(frozen=True)
class SentenceFiles:
    """How sentence-transformers makes a vector of a text with this encoder.

    `pooling` is `mean` (over real tokens) or `cls`; `normalize` scales the vector to unit length;
    texts are cut to `max_seq_length` tokens, special ones included. `prompts` are texts that
    sentence-transformers puts before an input on request, `default_prompt` (a name) without.
    `similarity`, `cosine` or `dot`, is what two vectors are compared by.
    """

    pooling: str = "mean"
    normalize: bool = True
    max_seq_length: int = 512
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"

    def __post_init__(self):
        if self.pooling not in POOLING:
            raise UserError(f"pooling is {self.pooling!r}; {choose_from(self.pooling, POOLING)}")
        if self.similarity not in SIMILARITIES:
            raise UserError(
                f"similarity is {self.similarity!r}; {choose_from(self.similarity, SIMILARITIES)}"
            )

    @property
    def unit(self) -> bool:
        """Whether vectors are compared at unit length: they have it, or the cosine is asked for."""
        return self.normalize or self.similarity == "cosine"

    def prompt(self, names: str | Sequence[str] = ()) -> str:
        """What is put before a text: the first prompt there is under `names`, such as `QUERY`, and
        the default one where no names are given; "" where there is none.

        As sentence-transformers does, but that an empty "document" does not hide a "passage".
        """
        known = (names,) if isinstance(names, str) else names or (self.default_prompt,)
        return next((self.prompts[name] for name in known if self.prompts.get(name)), "")

    def prompted(self, texts: Iterable[str], names: str | Sequence[str] = ()) -> list[str]:
        """The texts with `prompt(names)` before each."""
        before = self.prompt(names)
        return [before + text for text in texts]


def encoder_folder(folder: Path) -> Path:
    """Where the encoder and its tokenizer are: in the folder itself, or inside of it where its
    modules.json says so.

    Raises:
      UserError: a damaged modules.json, or one whose first step is no encoder.
    """
    if not (folder / MODULES).is_file():
        return folder
    steps = _modules(folder / MODULES)
    if not steps or steps[0][0] != "Transformer":
        raise _unsupported(folder, steps)
    return folder / steps[0][1]


def read(folder: Path, max_positions: int) -> SentenceFiles | None:
    """The sentence-transformers files of `folder`, or None where there are none.

    Raises:
      UserError: damaged files, steps other than pooling (mean, CLS) and normalisation, or settings
        of a step that are not the usual ones: passed over, the vectors (of a cross-encoder the
        scores) would silently be others than those of sentence-transformers.
    """
    if not (folder / MODULES).is_file():
        return None
    steps = _modules(folder / MODULES)
    kinds = [kind for kind, _ in steps]
    settings = json_file.read_if_there(folder / SETTINGS)
    if kinds == ["Transformer"] and settings.get("model_type") == "CrossEncoder":
        # Which makes no vectors, but lists its one step since version 6.
        _check_model(folder / steps[0][1], _CROSS_ENCODER)
        prompts, default_prompt = _prompts(folder / SETTINGS, settings)
        if prompts.get(default_prompt):
            raise UserError(
                f"{folder / SETTINGS}: a prompt before the queries of a cross-encoder is not "
                "supported; set default_prompt_name to null and give it with each query."
            )
        return None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _unsupported(folder, steps)
    if settings.get("truncate_dim") is not None:
        raise UserError(
            f"{folder / SETTINGS}: truncate_dim cuts vectors, which is not supported; set it to "
            "null, and cut the vectors that encode makes."
        )
    _check_model(folder / steps[0][1], _ENCODER)
    for _, inside in steps[2:]:
        _check_normalize(folder / inside / "config.json")
    prompts, default_prompt = _prompts(folder / SETTINGS, settings)
    return SentenceFiles(
        pooling=_pooling(folder / steps[1][1] / "config.json"),
        normalize=len(steps) == 3,
        max_seq_length=longest(folder / steps[0][1], max_positions),
        prompts=prompts,
        default_prompt=default_prompt,
        similarity=_similarity(folder / SETTINGS, settings),
    )


def _unsupported(folder: Path, steps: list[tuple[str, str]]) -> UserError:
    return UserError(
        f"{folder / MODULES} lists the steps {', '.join(kind for kind, _ in steps)}; supported are "
        "Transformer, Pooling and optionally Normalize (remove the file to use the encoder alone)."
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """(class name, subfolder) of every step; a class that is not sentence-transformers' has its
    whole name."""
    modules = json_file.read_list(path)
    steps = []
    for module in modules:
        kind = module.get("type") if isinstance(module, dict) else None
        inside = module.get("path") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not isinstance(inside, str):
            raise UserError(f"{path} should be a list of steps, each with a type and a path.")
        if Path(inside).is_absolute() or ".." in Path(inside).parts:
            raise UserError(f"{path} names {inside[:200]!r}, which is outside the folder.")
        # Other names are code of the folder's own (custom_st.Transformer), whatever they end in.
        steps.append((kind.rpartition(".")[2] if kind.startswith(_THEIRS) else kind, inside))
    return steps


def _check_model(folder: Path, usual: dict) -> None:
    """Refuses what the first step asks for beyond the `usual` settings of its kind."""
    path, config = tokenizer_config.sentence_file(folder)
    for key, value in config.items():
        if key in _HARMLESS or value in (None, "", [], {}) or value == usual.get(key):
            continue
        remedy = f"set it to {json.dumps(usual[key])}" if key in usual else "remove it"
        raise UserError(
            f"{path}: {key:.80} is {str(value)[:80]}, which makes other vectors or scores and is "
            f"not supported; {remedy} if the model is to be read without."
        )


def _check_normalize(path: Path) -> None:
    """Refuses a normalisation of something else than the vector: that leaves it as it was. Up to
    version 5 it has no file."""
    config = json_file.read_if_there(path)
    given = config.get("module_input_name", _VECTOR)
    made = config.get("module_output_name")
    if given != _VECTOR or made not in (None, _VECTOR):
        raise UserError(
            f"{path} normalises {given!r:.40} to {(made or given)!r:.40}; supported is "
            f"{_VECTOR} alone, and without the step in {MODULES} vectors stay as they are."
        )


def _pooling(path: Path) -> str:
    config = json_file.read(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _BOOLEAN_KEYS.items() if config.get(key)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in POOLING:
        raise UserError(f"{path}: pooling is {str(modes)[:80]}; supported are mean and cls, alone.")
    if config.get("include_prompt") is False:
        raise UserError(f"{path}: prompts are left out of the pooling, which is not supported.")
    return modes[0]


def longest(folder: Path, max_positions: int) -> int:
    """The longest text in tokens, by the files of a folder. Version 2 to 5 have it in a file of its
    own, 6 in the tokenizer's settings, as transformers has."""
    by_tokenizer = folder / tokenizer_config.CONFIG
    places = (
        (tokenizer_config.sentence_file(folder)[0], "max_seq_length"),
        (by_tokenizer, "model_max_length"),
        (by_tokenizer, "max_len"),  # the first versions of transformers called it so
    )
    for path, key in places:
        config = json_file.read_if_there(path)
        if config.get(key) is not None:
            # Tokenizers say 10**30, some as a float, for "no limit".
            value = config[key]
            if isinstance(value, float) and value > max_positions:
                return max_positions
            return min(json_file.integer(config, key, str(path), least=3), max_positions)
    return max_positions


def prompts_hold(prompts: object, default: object) -> bool:
    """Whether prompts are texts by name, and the default one is None or one of them."""
    texts = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    return texts and (default is None or (isinstance(default, str) and default in prompts))


def _prompts(path: Path, config: dict) -> tuple[dict[str, str], str | None]:
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not prompts_hold(prompts, default):
        raise UserError(f"{path}: prompts should be texts by name, and the default one of them.")
    return prompts, default


def _similarity(path: Path, config: dict) -> str:
    name = config.get("similarity_fn_name") or "cosine"
    name = "dot" if name == "dot_product" else name
    if name not in SIMILARITIES:
        raise UserError(
            f"{path}: similarity_fn_name is {name!r:.40}; supported are cosine and dot, so set the "
            "one that is nearer."
        )
    return name


def files(sentence: SentenceFiles, hidden_size: int) -> dict[str, dict | list]:
    """The JSON files, by name, that `read` reads back and sentence-transformers understands."""
    steps = [("", "Transformer"), (POOLING_FOLDER, "Pooling")]
    steps += [("2_Normalize", "Normalize")] if sentence.normalize else []
    return {
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(steps)
        ],
        f"{POOLING_FOLDER}/config.json": {
            "word_embedding_dimension": hidden_size,
            **{key: mode == sentence.pooling for key, mode in _BOOLEAN_KEYS.items()},
        },
        LENGTH: {"max_seq_length": sentence.max_seq_length, "do_lower_case": False},
        SETTINGS: {
            "prompts": sentence.prompts,
            "default_prompt_name": sentence.default_prompt,
            "similarity_fn_name": sentence.similarity,
        },
    }
