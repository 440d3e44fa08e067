"""Files that are there whole or not at all, whatever ends this process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ranktap_wire.journal import sync_directory


def replace_file(path: Path, pieces: Iterable[bytes], mode: int = 0o640) -> None:
    """Write a file, or another in its place; its directory must be there.

    Raises:
        OSError: it cannot be written; then it is as it was.
    """
    # One writer a directory; and no name of a file that this one takes begins with a dot.
    partial = path.with_name(".partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    partial.replace(path)
    sync_directory(path.parent)
