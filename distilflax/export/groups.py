"""The groups that a model's products come in, where some are stored in one way and some in another.

embeddings    the tables; with a tied masked-LM head the product with the words, too
layers_0.qkv  queries, keys and values of a layer, which read the same numbers
layers_0.output, layers_0.up, layers_0.down
head          what stands on the encoder
"""

import re

_LAYER = re.compile(r"encoder/(layers_\d+)/(?:attention|ffn)/(\w+)")


def group_of(path: str) -> str | None:
    """The group of a kernel, bias or table by its path; None for what is float32 in any case."""
    if "norm" in path:
        return None
    if path.startswith("encoder/embeddings/"):
        return None if path.endswith("token_type") else "embeddings"
    found = _LAYER.match(path)
    if not found:
        return "head"
    layer, part = found.groups()
    return f"{layer}.{'qkv' if part in ('query', 'key', 'value') else part}"
