"""Which run writes to which directory of the logdir, so that no two ever write to one.

A run writes to its own directory and to those of its sub-runs, and one run's sub-run can
have the name of another run: sub-run `b` of run `a` and run `a/b` are both LOGDIR/a/b.
Whichever comes first has the directory, for good:

    STATE/directories/a%2Fb     holds the name of the run that has it

(Where the name of both together is longer than a run's may be, its SHA-256 stands for it.)
The file is linked into its place when it is whole, so that of two processes that claim a
directory at once one finds the other's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
from pathlib import Path
from typing import Final

from ranktap_wire import rules
from ranktap_wire.journal import make_directory, sync_directory

_NAME_BYTES: Final = 240
"""Of a file. A name has at most 255; `rules.check_run` keeps a run's below this."""


def claim(state_dir: Path, run: str, sub_run: str = "") -> str | None:
    """Take the directory of a run, or of a sub-run of it; who has it, if that is another run.

    Raises:
        OSError: the claim cannot be read or written.
    """
    directory = posixpath.normpath(posixpath.join(run, sub_run))
    name = rules.run_directory_name(directory)
    if len(name.encode()) > _NAME_BYTES:
        name = hashlib.sha256(name.encode()).hexdigest()
    path = state_dir / "directories" / name
    owner = _owner(path)
    if owner is None:
        if sub_run and (state_dir / "runs" / name).exists():
            return directory  # a run that has claimed nothing yet
        _put(path, run)
        owner = _owner(path)
    return None if owner == run else owner


def _owner(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _put(path: Path, run: str) -> None:
    make_directory(path.parent)
    # No run's name begins with a dot, and no other process has this number.
    partial = path.with_name(f".{os.getpid()}.partial")
    # One that was left behind may be another name of a claim: never to be written to.
    partial.unlink(missing_ok=True)
    with open(partial, "x") as file:
        file.write(run)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):  # another was quicker
        os.link(partial, path)
    partial.unlink()
    sync_directory(path.parent)
