"""How every entry point starts: flags in, one sentence out when something is wrong."""

import errno
import os
import re
import runpy
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags, logging

from distilflax import losses
from distilflax.errors import UserError, choose_from
from distilflax.settings import Experiment, from_config, term

USER_MISTAKE = 2
CLOSED = 141  # as the shell reports SIGPIPE


def main(run: Callable[[], int | None]) -> None:
    """Parse the command line, call `run`, and exit with its status.

    A `UserError` is printed as one line, `error: ...`, and exits with status 2; so does a command
    line that does not parse. Anything else is a bug and keeps its traceback.
    """
    # JAX tells at INFO which accelerators it did not find.
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(lambda _: _call(run), flags_parser=_parse)
    except BrokenPipeError:
        # As `--help | head` does.
        stop_output()
        sys.exit(CLOSED)


def typed(name: str) -> str:
    """The command line of this run of experiments/NAME.py, as a shell takes it again."""
    return shlex.join(["python", "-m", f"experiments.{name}", *sys.argv[1:]])


def stop_output() -> None:
    """For a reader that has gone: closing what is left to be written must not complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _call(run: Callable[[], int | None]) -> None:
    try:
        status = run()
    except UserError as mistake:
        _fail(str(mistake))
    except OSError as trouble:
        # Whoever writes says it better; this is for the places where nobody thought of it.
        if trouble.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({trouble.filename})" if trouble.filename else ""
        _fail(f"{trouble.strerror}{where}; make room and run the same command again.")
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
        if not issubclass(type(config), ml_collections.ConfigDict):
            return config  # `_parse` says what it is.
        name, _, variant = path.partition(":")
        words = variant.split(",") if variant else []
        for place, word in enumerate(words):
            # Most files take any word, and would start the whole run for a mistyped one.
            others = ",".join(words[:place] + words[place + 1 :])
            if config == self._without(f"{name}:{others}" if others else name):
                raise UserError(
                    f"{word!r} changes nothing in {name}; its first lines name variants."
                )
        for place, name in self._named:
            if name in losses.TERMS:
                add_term(config, place.split("."), name)
        return config

    def _without(self, path: str) -> ml_collections.ConfigDict | None:
        """The config of a shorter path; None where its file cannot do without a variant."""
        try:
            return self._file.parse(path)
        except Exception:  # whatever the file raises
            return None

    def flag_type(self) -> str:
        return self._file.flag_type()


def add_term(config: ml_collections.ConfigDict, place: Sequence[str], name: str) -> None:
    """Puts the term into the losses at `place`, at weight 0, if it is not there."""
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
    except Exception as mistake:
        # What absl and ml_collections make of a mistake in a config file is its whole traceback,
        # if they catch it at all: look for it where it is.
        sentence = _wrong_config(argv) or _wrong_override(argv)
        if sentence is None and not isinstance(mistake, flags.Error | UserError):
            raise
        _fail(sentence or str(mistake))
    # Some errors of loading ml_collections keeps until the config is first read.
    if _named(argv) and not issubclass(
        type(flags.FLAGS["config"].value), ml_collections.ConfigDict
    ):
        _fail(_wrong_config(argv) or "--config cannot be read.")
    if len(rest) > 1:
        _fail(f"{rest[1]!r} is not a flag; values are given as --name=value, see --help.")
    return rest


def values_of(config: flags.FlagHolder) -> dict:
    """What `--config` and its overrides say, not yet checked."""
    if config.value is None:
        raise UserError("--config is missing; give a file such as --config=configs/demo.py.")
    return config.value.to_dict()


def task_values_of(config: flags.FlagHolder, data: flags.FlagHolder) -> dict:
    """The same of a task, whose folder `--data`, where it is given, stands for the config's."""
    values = values_of(config)
    if data.value:
        values["data"]["folder"] = str(Path(data.value).expanduser().absolute())
    return values


def is_named(flag: str) -> bool:
    """Whether the command line has the flag, be it as nothing: a shell's variable may be empty."""
    return not flags.FLAGS[flag].using_default_value


def settings_of(config: flags.FlagHolder) -> Experiment:
    """The experiment that `--config` and its overrides describe, checked."""
    values = values_of(config)
    if "task" in values:
        raise UserError("--config describes a task; give it to experiments.finetune.")
    experiment = from_config(values)
    losses.check(experiment.losses, experiment.data.layout)
    return experiment


def required(flag: flags.FlagHolder) -> Path:
    """The path that a flag must give."""
    if not flag.value:
        raise UserError(f"--{flag.name} is missing; give a folder such as runs/mine.")
    _check_is_path(flag)
    return Path(flag.value).expanduser()


def _check_is_path(flag: flags.FlagHolder) -> None:
    if "://" in flag.value:
        raise UserError(
            f"--{flag.name}={flag.value} is an address, and this writes to folders; give one, such "
            "as where a bucket is mounted."
        )


def file_of(flag: flags.FlagHolder) -> Path | None:
    """The file that a flag names, in a folder that is there: asked before an hour of measuring."""
    if not flag.value:
        return None
    _check_is_path(flag)
    path = Path(flag.value).expanduser()
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UserError(f"--{flag.name}={flag.value} is no file in a folder that is there.")
    return path


def texts(given: str, column: str, most: int) -> list[str]:
    """The first `most` texts of --texts=`given`.

    Raises:
      UserError: there is none, or as `samples.documents` does.
    """
    # Imported here: most commands read no texts, and need not wait for it.
    from distilflax.export import samples

    found = list(islice(samples.documents(given, column), most))
    if not found:
        raise UserError(f"--texts={given} holds no text; give a file with a text on a line.")
    return found


def keep_to_cores(number: int) -> None:
    """Run on so many cores from now on, where the system lets a process choose: what is compared
    then has no more than that, whatever it makes of its own number of threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


def _named(argv: Sequence[str]) -> tuple[str, str] | None:
    """(path, variant) of `--config=path:variant` or `--config path:variant`, if it is given."""
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, given, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            path, _, variant = (value if given else following).partition(":")
            return path, variant
    return None


def _load(path: str, variant: str) -> Any:
    defined = runpy.run_path(path)
    if "get_config" not in defined:
        raise UserError("it has no function get_config(variant); see configs/.")
    return defined["get_config"](*([variant] if variant else []))


def _wrong_config(argv: Sequence[str]) -> str | None:
    """The sentence for a config that cannot be loaded; None where it can, or none is given."""
    if (named := _named(argv)) is None:
        return None
    path, variant = named
    if not Path(path).is_file():
        return f"--config={path} is not a file that is there; see configs/."
    try:
        made = _load(path, variant)
    except UserError as mistake:
        return f"--config={path}: {mistake}"
    except Exception as mistake:
        what = f"{type(mistake).__name__}: {getattr(mistake, 'msg', mistake)}"
        return f"--config={path} cannot be run ({what}, {_line(mistake, path)}); mend that file."
    if not isinstance(made, ml_collections.ConfigDict):
        return (
            f"--config={path}: get_config returns {type(made).__name__} and not a ConfigDict; "
            "begin it with default_config() as those in configs/ do."
        )
    return None


def _line(mistake: Exception, path: str) -> str:
    """Where in the file the mistake came up."""
    if isinstance(mistake, SyntaxError):
        return f"line {mistake.lineno}"
    frames = traceback.extract_tb(mistake.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f"line {lines[-1]}" if lines else "called as get_config(variant)"


def _wrong_override(argv: Sequence[str]) -> str | None:
    """The sentence for the first `--config.a.b=...` that the config has no place for."""
    named = _named(argv)
    for argument in argv[1:]:
        name, given, value = argument.lstrip("-").partition("=")
        if not name.startswith("config."):
            continue
        if named is None:
            return f"--{name} is given without --config; name the file that it changes."
        # absl drops the config when an override fails: load it again, without overrides.
        node, place = _load(*named), "config"
        for key in name.split(".")[1:]:
            if not isinstance(node, ml_collections.ConfigDict):
                return f"--{name}: {place} is a value and has no {key!r}."
            terms = losses.TERMS if place.endswith(".losses") else ()
            if key not in node and key not in terms:
                return f"--{name}: {place} has no {key!r}; {choose_from(key, terms or node)}"
            node, place = (node[key] if key in node else term()), f"{place}.{key}"
        if given and (wanted := _not_of_its_kind(node, value)):
            return f"--{name} is {value!r}; it must be {wanted}."
    return None


def _not_of_its_kind(now: Any, value: str) -> str | None:
    """What `value` must be to take the place of `now`, if it is not that."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    try:
        if type(now) in (int, float):
            type(now)(value)
        elif isinstance(now, bool):
            flags.BooleanParser().parse(value)
    except ValueError:
        return kinds[type(now)]
    return None
