"""`some.key=value` for several configs at once, as --config.some.key=value is for one."""

import ast

import ml_collections

from distilflax import losses
from distilflax.errors import UserError, choose_from
from experiments import command


def change(config: ml_collections.ConfigDict, given: str, flag: str) -> None:
    """Sets what `given` says in `config`; a term that is not there yet is put there.

    Raises:
      UserError: no such key, or a value of another kind; `flag` is what the user wrote.
    """
    key, _, text = given.partition("=")
    parts = key.split(".")
    if parts[-3:-2] == ["losses"] and parts[-2] in losses.TERMS:
        command.add_term(config, parts[:-2], parts[-2])
    node = config
    for part in parts:
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            there = node if isinstance(node, ml_collections.ConfigDict) else ()
            raise UserError(f"{flag}: there is no {part!r}; {choose_from(part, there)}")
        parent, node = node, node[part]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    try:
        parent[parts[-1]] = value
    except TypeError as error:
        raise UserError(f"{flag}: {error}.") from None
