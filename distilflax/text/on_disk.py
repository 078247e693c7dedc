"""What whoever writes where others do needs: turns, whole files, and a full disk told."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

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

# Seconds that nobody writes one file for: what is older was left by a process that was killed.
_ABANDONED = 86_400


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock that the operating system releases even if this process is killed.

    The lock is of the file `path`, which is gone when the block ends. `what` another process may be
    doing: "preparing this corpus".
    """
    with _locked(path, what):
        try:
            yield
        finally:
            # While it is locked: who waits for it finds it gone, and makes another one.
            with contextlib.suppress(OSError):
                path.unlink()


def _locked(path: Path, what: str) -> TextIO:
    """The file `path`, made if need be, and locked until it is closed."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 - closed below, or by who holds it.
        try:
            _lock(file, what)
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: TextIO, what: str) -> None:
    # Some network file systems have no locks: there the user must take care.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        print(f"Another process is {what}; waiting for it.", file=sys.stderr)
    except OSError:
        return
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file still has that name; if not, another one may have it by now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:  # gone; a network file system says so of the open one, too
        return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside `path`, which takes its place when the block ends well.

    No other process has that name, so that of those who write `path` at once the last one's stays,
    whole. A block that ends in an error leaves nothing; what a killed one left goes later.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 16}.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


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


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Asks that a file or a folder be on the disk, not only in memory, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
