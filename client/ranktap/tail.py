"""`ranktap tail`: `ranktapd tail` on the logdir of the daemon that is asked for.

What a run logs is read from its event file, which takes TensorBoard's own descriptions of it, and
the file itself: so the daemon's package does it, on the machine where the logdir is.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ranktap import status
from ranktap_wire import places


class TailError(Exception):
    """There is nothing to show; the message is for the person who asked."""


def run(run_name: str, *, address: str, logdir: Path | None, arguments: Sequence[str]) -> int:
    """Become `ranktapd tail` for that run; `arguments` are for it.

    `logdir` is where the run's event files are; None: where the daemon at HOST:PORT writes.

    Raises:
        StatusError: nothing answers there.
        TailError: it writes elsewhere, or what reads event files is not installed.
    """
    if logdir is None:
        said = Path(status.fetch(address, "")["logdir"])
        if not said.is_dir():
            there = shlex.join(["ranktapd", "tail", run_name, "--logdir", str(said)])
            raise TailError(
                f"the daemon at {address} writes to {said}, which is not on this machine: give "
                f"--logdir where it is mounted, or there: {there}"
            )
        logdir = said
    missing = places.daemon_lacks()
    if missing:
        raise TailError(f"lacks {', '.join(missing)}: pip install 'ranktap[daemon]'")
    sys.stdout.flush()
    # -P: what lies in this directory (a queue.py, a json.py) is not for it.
    command = [sys.executable, "-P", "-m", "ranktapd", "tail", f"--logdir={logdir}", *arguments]
    os.execv(sys.executable, [*command, "--", run_name])
