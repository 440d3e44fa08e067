"""Imported by every Python that has this directory on its path: profiles ranktapd's processes.

They are started by others (the embedded daemon by its first rank, a worker by its daemon), so
that the environment is the one way to reach them.
"""

from __future__ import annotations

import os
import sys

_directory = os.environ.get("RANKTAP_BENCH_PROFILE")
_said = " ".join(sys.orig_argv)
if _directory and " -m ranktapd" in _said:
    sys.path.append(os.environ["RANKTAP_BENCH_ROOT"])
    from pathlib import Path

    from benchmarks.profiling import collect

    _is_worker = "ranktapd.run_worker" in _said
    collect.begin_on_signal(
        Path(_directory), "the run's worker" if _is_worker else "the daemon's main process"
    )
