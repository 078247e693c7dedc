"""DistilBERT in JAX/Flax: distil a BERT-like encoder into a student of half its depth.

model = distilflax.load("a/folder")     # classify, tag, answer, encode, search
"""

from typing import Any


def load(path: Any, **options: Any) -> Any:
    """The model at `path`, ready to be called; see `distilflax.predict.load`."""
    # Imported here: who only trains, or reads the version, need not wait for it.
    from distilflax import predict

    return predict.load(path, **options)
