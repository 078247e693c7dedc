"""DistilBERT in JAX/Flax: distil a BERT-like encoder into a student of half its depth.

model = distilflax.load("a/folder")     # classify, tag, answer, encode, search
"""

from importlib import metadata
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("distilflax")
    raise AttributeError(f"module 'distilflax' has no attribute {name!r}")


def load(path: Any, **options: Any) -> Any:
    """The model at `path`, ready to be called; see `distilflax.predict.load`."""
    # Imported here: who only trains need not wait for it.
    from distilflax import predict

    return predict.load(path, **options)
