"""How every entry point starts: flags in, one sentence out when something is wrong."""

import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import app, flags, logging

from distilflax import losses
from distilflax.errors import UserError, choose_from
from distilflax.settings import Experiment, from_config, term
from distilflax.train import memory

USER_MISTAKE = 2


def main(run: Callable[[], int | None]) -> None:
    """Parse the command line, call `run`, and exit with its status.

    A `UserError` is printed as one line, `error: ...`, and exits with status 2; so does a command
    line that does not parse. Anything else is a bug and keeps its traceback.
    """
    memory.keep_freed()
    # JAX tells at INFO which accelerators it did not find.
    logging.set_verbosity(logging.WARNING)
    app.run(lambda _: _call(run), flags_parser=_parse)


def _call(run: Callable[[], int | None]) -> None:
    try:
        status = run()
    except UserError as mistake:
        _fail(str(mistake))
    except KeyboardInterrupt:
        status = 130
    sys.exit(status or 0)


def _fail(sentence: str) -> None:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(USER_MISTAKE)


class _WithTerms(flags.ArgumentParser):
    """Loads the file of `--config`, with every term that the command line names among its losses:
    one that the file leaves out is there at weight 0, for the overrides to change."""

    def __init__(self, file: flags.ArgumentParser, argv: Sequence[str]):
        self._file = file
        self._named = [
            match.groups()
            for argument in argv[1:]
            if (match := re.match(r"--?config\.((?:\w+\.)*losses)\.(\w+)\.", argument))
        ]

    def parse(self, path: str) -> ml_collections.ConfigDict:
        config = self._file.parse(path)
        name, _, variant = path.partition(":")
        if variant and config == self._file.parse(name):
            # Most files take any word, and would start the whole run for a mistyped one.
            raise UserError(
                f"{variant!r} changes nothing in {name}; its first lines name variants."
            )
        for place, name in self._named:
            if name in losses.TERMS:
                _add_term(config, place.split("."), name)
        return config

    def flag_type(self) -> str:
        return self._file.flag_type()


def _add_term(config: ml_collections.ConfigDict, place: Sequence[str], name: str) -> None:
    for key in place:
        if not isinstance(config, ml_collections.ConfigDict) or key not in config:
            return  # Said by whoever sets it.
        config = config[key]
    if name not in config:
        with config.unlocked():
            config[name] = term()


def _parse(argv: Sequence[str]) -> list[str]:
    if "config" in flags.FLAGS:
        flag = flags.FLAGS["config"]
        flag.parser = _WithTerms(flag.parser, argv)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as mistake:
        _fail(str(mistake))
    except (AttributeError, KeyError):
        # The first where the last name of the path is not there, the second where another is not.
        if sentence := _unknown_key(argv):
            _fail(sentence)
        raise
    except OSError:
        _fail(f"--config={_named(argv)[0]} is not there; see configs/.")
    except UserError as mistake:
        _fail(str(mistake))
    if len(rest) > 1:
        _fail(f"{rest[1]!r} is not a flag; values are given as --name=value, see --help.")
    return rest


def values_of(config: flags.FlagHolder) -> dict:
    """What `--config` and its overrides say, not yet checked."""
    if config.value is None:
        raise UserError("--config is missing; give a file such as --config=configs/demo.py.")
    try:
        # ml_collections keeps an error of loading until the config is first read.
        return config.value.to_dict()
    except OSError:
        raise UserError(f"--config={_named(sys.argv)[0]} is not there; see configs/.") from None


def settings_of(config: flags.FlagHolder) -> Experiment:
    """The experiment that `--config` and its overrides describe, checked."""
    experiment = from_config(values_of(config))
    losses.check(experiment.losses, experiment.data.layout)
    return experiment


def required(flag: flags.FlagHolder) -> Path:
    """The path that a flag must give."""
    if not flag.value:
        raise UserError(f"--{flag.name} is missing; give a folder such as runs/mine.")
    return Path(flag.value).expanduser()


def file_of(flag: flags.FlagHolder) -> Path | None:
    """The file that a flag names, in a folder that is there: asked before an hour of measuring."""
    if not flag.value:
        return None
    path = Path(flag.value).expanduser()
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UserError(f"--{flag.name}={flag.value} is no file in a folder that is there.")
    return path


def _named(argv: Sequence[str]) -> tuple[str, str]:
    """(path, variant) of `--config=path:variant`."""
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            path, _, variant = value.partition(":")
            return path, variant
    return "", ""


def _unknown_key(argv: Sequence[str]) -> str | None:
    """The sentence for the first `--config.a.b=...` whose path the config does not have."""
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if not name.startswith("config."):
            continue
        # absl drops the config when an override fails: load it again, without overrides.
        path, variant = _named(argv)
        node = runpy.run_path(path)["get_config"](*([variant] if variant else []))
        place = "config"
        for key in name.split(".")[1:]:
            if not isinstance(node, ml_collections.ConfigDict):
                return f"--{name}: {place} is a value and has no {key!r}."
            terms = losses.TERMS if place.endswith(".losses") else ()
            if key not in node and key not in terms:
                return f"--{name}: {place} has no {key!r}; {choose_from(key, terms or node)}"
            node, place = (node[key] if key in node else term()), f"{place}.{key}"
    return None
