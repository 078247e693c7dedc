"""A seal on a folder of files: their sizes and checksums, to know later that nothing changed.

The array storage below Orbax notices most damage but not all: one flipped bit inside a chunk of
float32 numbers restores without a word. A truncated file is noticed only after memory was
allocated, in background threads that print tracebacks. So a checkpoint is sealed just before it
is committed, and the seal is checked before anything else opens it.
"""

import json
import os
from pathlib import Path

from distilflax import json_file
from distilflax.text.on_disk import checksum

FILE = "seal.json"

# A quick check reads only files up to this size: the metadata that must parse before a folder can
# be listed. The rest it judges by size.
SMALL = 64 * 1024


def write_seal(folder: Path) -> None:
    """Write down size and CRC-32 of every file in the subfolders of `folder`.

    Files directly in `folder` are left out: there the writer keeps its own commit marks.

    Raises:
      OSError: a file cannot be read, or the seal not written.
    """
    paths = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, checksum(path)] for path in paths
    }
    with open(folder / FILE, "w") as out:
        json.dump({"files": files}, out)
        out.flush()
        os.fsync(out.fileno())


def broken_seal(folder: Path, *, quick: bool = False) -> str | None:
    """What is wrong with a sealed folder, as a clause for a sentence; None if nothing is.

    `quick` compares all sizes but reads only small files.
    """
    try:
        files = json_file.parse((folder / FILE).read_bytes(), FILE)["files"]
        expected = {name: (int(size), int(value)) for name, (size, value) in files.items()}
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} cannot be read"
    for name, (size, value) in expected.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
            if (size <= SMALL or not quick) and checksum(path) != value:
                return f"the contents of {name} have changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
