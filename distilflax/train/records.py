"""What a run writes down: JSON lines while it goes, TensorBoard if asked, JSON at its end."""

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.text.on_disk import replacing, sync


class JsonLines:
    """A file of one JSON object a line, each with a `step`: `metrics.jsonl`.

    A run that is taken up at `start_step` first drops the lines that the lost steps had written,
    and a last line cut short, so that the file holds each step once.
    """

    def __init__(self, path: Path, start_step: int):
        """
        Raises:
          UserError: the file cannot be written.
        """
        self._path = Path(path)
        try:
            if self._path.exists():
                _keep_until(self._path, start_step)
            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115 - see close.
        except OSError as error:
            raise self._trouble(error) from error

    def write(self, kind: str, step: int, values: Mapping[str, int | float | None]) -> None:
        """Append a line; what is not finite becomes null, for JSON has no NaN.

        Raises:
          UserError: the disk is full.
        """
        finite = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in values.items()
        }
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        except OSError as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Raises as `write`: what a full disk did not take is tried once more."""
        try:
            self._file.close()
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> UserError:
        return UserError(
            f"{self._path} cannot be written ({error.strerror}); make room there or choose another "
            "--workdir, and run the same command again."
        )


def plain(value: Any) -> Any:
    """`value` as JSON knows it: tuples become lists, numpy's numbers Python's, NaN and ∞ null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | Path, content: Mapping) -> None:
    """`write_text` of JSON, which has no NaN: a figure that there is not is None.

    Raises:
      ValueError: a NaN or an infinity, which strict readers would refuse.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, keys: Collection[str], remedy: str = "") -> dict[str, Any]:
    """What `write_json` left in a file, with `keys` in it.

    Args:
      remedy: what to do about a file that is damaged; to delete it and run again if it is empty.

    Raises:
      UserError: the file is not there, or not as it was written.
    """
    remedy = remedy or "delete it, and the same command makes it again"
    try:
        content = json_file.read(path)
    except UserError:
        raise UserError(f"{path} is damaged or cannot be read; {remedy}.") from None
    missing = [key for key in keys if key not in content]
    if missing:
        raise UserError(f"{path} is damaged (it has no {' and no '.join(missing)}); {remedy}.")
    return content


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of text."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """A file, whole or not at all: one that is there says that what it tells has ended.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as part:
            part.write_bytes(content)
            # Else a machine that loses power may keep the new name and none of what it stands for.
            sync(part)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); make room there or give another place."
        ) from None


def curve(path: Path) -> dict[str, list]:
    """The loss by term at every training step, from a run's `metrics.jsonl`, all of one length.

    None where a term had nothing to cover, as when masking spared every row of a small batch.
    """
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    rows = [line for line in lines if line["kind"] == "train"]
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("loss"))
    return {"step": [row["step"] for row in rows]} | {
        name.removeprefix("loss/"): [row.get(name) for row in rows] for name in names
    }


def gradients(path: Path) -> list[dict]:
    """The gradient accounts in a run's `metrics.jsonl`, by step; empty if none were asked for."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [line for line in lines if line["kind"] == "gradients"]


class TensorBoard:
    """The same numbers as event files, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, start_step: int):
        """
        Raises:
          UserError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "config.training.tensorboard needs tensorboardX: "
                "pip install 'distilflax[tensorboard]', or set it to False."
            ) from error
        # TensorBoard hides what an earlier process wrote at or after the purged step.
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, int | float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop lines of later steps, and everything when the run starts afresh (step 0)."""
    part = path.with_suffix(".part")
    with open(path, errors="replace") as lines, open(part, "w") as out:
        out.writelines(line for line in lines if step > 0 and _is_until(line, step))
    os.replace(part, path)


def _is_until(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
