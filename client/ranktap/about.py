"""What a rank says about itself, for the job's summary: each a short line under a short name.

    job      what tells this job from another one of the same run's name
    device   what torch computes on, as far as it has begun to
    python, torch, ranktap      versions
    command  the command line
    git      the commit of the code, of rank 0: "+" behind it when files have changed since

Nothing is imported for it, no device is woken up, and no other program is run.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Final

from ranktap import git_state
from ranktap.ranks import Identity, job_mark
from ranktap_wire import limits

_CUT: Final = "..."


def gather(identity: Identity, *, is_given: bool) -> dict[str, str]:
    """What can be said at once. `is_given`: rank and world size were said by hand, and nothing
    tells this job's ranks from another's."""
    found = {
        "job": None if is_given and identity.launcher == "none" else job_mark(identity),
        "device": _device(),
        "python": platform.python_version(),
        "torch": getattr(sys.modules.get("torch"), "__version__", None),
        "ranktap": getattr(sys.modules.get("ranktap"), "__version__", None),
        "command": shlex.join(sys.orig_argv),
    }
    return {name: line(value) for name, value in found.items() if value}


def add_commit(about: dict[str, str]) -> None:
    """Say which commit runs, too. It reads files, some hundred milliseconds at most."""
    program = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    # Of the program; of where it was started, if it is one that runs others' code.
    for place in (program, "."):
        try:
            directory = Path(place).resolve()
            commit = git_state.commit_of(directory if place == "." else directory.parent)
        except (OSError, ValueError):
            continue
        if commit is not None:
            about["git"] = line(commit)
            return


def line(text: object) -> str:
    """A text as it may travel: without control characters, and cut where it is too long."""
    clean = "".join(each if each.isprintable() else " " for each in str(text))
    encoded = clean.encode(errors="replace")
    if len(encoded) <= limits.ABOUT_VALUE_BYTES:
        return encoded.decode()
    return encoded[: limits.ABOUT_VALUE_BYTES - len(_CUT)].decode(errors="ignore") + _CUT


def _device() -> str | None:
    torch = sys.modules.get("torch")
    try:
        if torch is None:
            return None
        if torch.cuda.is_initialized():
            index = torch.cuda.current_device()
            return f"cuda:{index} {torch.cuda.get_device_name(index)}"
        has_none = torch.version.cuda is None and torch.version.hip is None
        return f"cpu, {os.cpu_count()} cores" if has_none else None
    # A device that has failed; or torch, while another thread imports it.
    except (AttributeError, RuntimeError):
        return None
