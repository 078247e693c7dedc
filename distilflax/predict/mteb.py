"""A model as mteb's tasks call it (mteb 2, `EncoderProtocol`), for tasks whose data is at hand.

    import mteb
    from distilflax.predict.mteb import Encoder

    mteb.evaluate(Encoder("runs/mine/distilled/model"), mteb.get_tasks(tasks=["STSBenchmark"]))

mteb keeps what it has computed by a model's name and revision; the revision is here made of the
model's fingerprint and of the options, so that a folder that was trained again, or is asked in
another way, is measured again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from distilflax.errors import UserError
from distilflax.predict.predictor import Predictor, load
from distilflax.weights import short_name


class Encoder:
    """See the module's docstring.

    `path` is what `distilflax.load` takes, and so are the options; revision and device are mteb's,
    and decide nothing here.

    Raises:
      UserError: no mteb, or as `distilflax.load` does.
    """

    def __init__(
        self, path: str | Path, revision: str | None = None, *, device: Any = None, **options: Any
    ):
        del revision, device
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        except ImportError:
            raise UserError(
                "mteb is not installed; pip install 'distilflax[mteb]', or measure your own files "
                "with experiments.evaluate."
            ) from None
        self.model: Predictor = load(path, **options)
        own = (self.model.fingerprint, self.model.max_length, self.model.by_cosine)
        asked = (*own, options.get("compute"))
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"distilflax/{short_name(str(path)).replace('/', '-')}",
                "revision": hashlib.sha256(repr(asked).encode()).hexdigest(),
                "max_tokens": self.model.max_length,
                "embed_dim": self.model.encoder.hidden_size,
                "similarity_fn_name": ScoringFunction("cosine" if self.model.by_cosine else "dot"),
            }
        )

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **options: Any
    ) -> Float[np.ndarray, "n D"]:
        """The vectors of the batches' texts, with the model's own prompt for queries or documents
        where it has one. What else mteb tells (its task, split and batch size) changes nothing."""
        del options
        texts = [text for batch in inputs for text in batch["text"]]
        kinds = {"query": self.model.encode_query, "document": self.model.encode_document}
        return kinds.get(getattr(prompt_type, "value", None), self.model.encode)(texts)

    def similarity(self, first: np.ndarray, second: np.ndarray) -> Any:
        """The cosines of all pairs, or the inner products if the model's files say so, as mteb
        computes them (a torch tensor)."""
        from mteb.similarity_functions import cos_sim, dot_score

        return (cos_sim if self.model.by_cosine else dot_score)(first, second)

    def similarity_pairwise(self, first: np.ndarray, second: np.ndarray) -> Any:
        """The same of each pair."""
        from mteb.similarity_functions import pairwise_cos_sim, pairwise_dot_score

        return (pairwise_cos_sim if self.model.by_cosine else pairwise_dot_score)(first, second)
