"""What whoever writes into a folder of caches needs: one writer at a time, and a full disk told."""

import contextlib
import errno
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from distilflax.errors import UserError

# Where nothing can be written, whatever room there is. ENOENT: a folder of /proc, or one that
# somebody removes meanwhile.
_NO_PLACE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
)


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock that the operating system releases even if this process is killed.

    `what` another process may be doing: "preparing this corpus".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Another process is {what}; waiting for it.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing_to(
    folder: Path, setting: str, left: str = "Nothing was left behind."
) -> Iterator[None]:
    """A block that writes below `folder`, which `setting` names.

    Raises:
      UserError: the disk is full or the folder cannot be written to; `left` says what remains.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk is full under {folder} ({error.strerror}); free some space, or give a "
                f"folder on another disk as {setting}. {left}"
            ) from None
        if error.errno in _NO_PLACE:
            raise UserError(
                f"{folder} cannot be written to ({error.strerror}); give another folder as "
                f"{setting}."
            ) from None
        raise


def checksum(path: Path) -> int:
    """The CRC-32 of a file: it tells damage, not malice. Raises OSError where it cannot be read."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def sync(path: Path) -> None:
    """Asks that a file or a folder be on the disk, not only in memory, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
