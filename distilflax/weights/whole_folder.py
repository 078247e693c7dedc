"""A folder that is written whole or not at all, whatever stops the writing."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from distilflax.errors import UserError
from distilflax.text.on_disk import exclusive


@contextlib.contextmanager
def written(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to write into; it takes the place of `folder` when the block ends well.

    It is made beside its place, so that an error, a kill or a full disk leaves what was there.
    A link stays one, and what it leads to is replaced. Those who write the same folder wait for
    each other, and the last one's stays.

    Raises:
      UserError: the disk does not take it.
    """
    folder = folder.resolve()
    making, aside = _beside(folder)
    new = [parent for parent in making.parents if not parent.exists()]
    try:
        with exclusive(folder.with_name(f".{folder.name}.lock"), f"writing {folder}"):
            try:
                _clear_up(folder)
                making.mkdir()
                yield making
                move_into_place(making, folder, aside)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{folder} could not be written ({reason}); nothing there was changed. Free some space "
            "or give another folder."
        ) from None
    finally:
        for parent in new:  # the nearest first; those that hold something stay
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def made_once(folder: Path, what: str) -> Iterator[bool]:
    """Tells whether `folder` is missing, and the block then has to write it.

    Of those who ask at once one is told so, and the others wait until its block has ended; `what`
    it is doing is as of `exclusive`.
    """
    if folder.is_dir():
        yield False
        return
    # Not the lock of `written`, which is taken in the block.
    with exclusive(folder.with_name(f".{folder.name}.once"), what):
        yield not folder.is_dir()


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the new folder is made, and where the old one waits: same disk, so renaming works."""
    return (
        folder.with_name(f".{folder.name}.saving"),
        folder.with_name(f".{folder.name}.replaced"),
    )


def _clear_up(folder: Path) -> None:
    """Undo what a killed writer left: halves go, and an old folder that was aside comes back."""
    making, aside = _beside(folder)
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    for path in (making, aside):
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)


def move_into_place(making: Path, folder: Path, aside: Path) -> None:
    """Put `making` at `folder`. A folder cannot be renamed over another: the old one steps aside
    first, and comes back if the second rename fails. A kill between the two leaves both, whole."""
    if folder.exists():
        folder.rename(aside)
    try:
        making.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
