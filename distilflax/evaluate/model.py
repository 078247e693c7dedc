"""A model as the evaluation sees it: a name, a role, and what is needed to run it."""

from dataclasses import dataclass

import jax

from distilflax import settings
from distilflax.errors import UserError, choose_from

# What a model is in a comparison. The first of them is what the others are held against.
ROLES = {
    "teacher": "the model that was distilled",
    "copied": "the student as cut out of the teacher, not trained",
    "mlm_only": "the same student trained on masked-LM alone, on as many tokens",
    "distilled": "the student trained against the teacher",
    "other": "any other model, for comparison",
}


@dataclass(frozen=True, eq=False)
class Model:
    """One row of a report.

    Attributes:
      name: how the report calls it; unique among the models compared.
      encoder: its architecture.
      params: {"encoder": ..., "mlm_head": ...?}, numpy or jax arrays.
      role: one of `ROLES`.
      about: what it is, in a phrase for the report; that of its role if empty.
    """

    name: str
    encoder: settings.Encoder
    params: dict
    role: str = "other"
    about: str = ""

    def __post_init__(self):
        if self.role not in ROLES:
            raise UserError(
                f"Model {self.name!r} has the role {self.role!r}; {choose_from(self.role, ROLES)}"
            )

    @property
    def has_head(self) -> bool:
        """Whether it can fill in masked words."""
        return self.params.get("mlm_head") is not None


def on_device(model: Model) -> dict:
    """The model's parameters on the device, once: numpy arrays would travel with every batch."""
    return jax.device_put(model.params)
