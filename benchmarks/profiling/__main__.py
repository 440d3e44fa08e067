"""python -m benchmarks.profiling CASE: where the CPU time of a case goes, in every process of it.

The case runs once, on one side, with a profile of each thread of the training process, of the
daemon and of the run's worker. The report names, for each thread, the share of memory copies,
checksums, deflate, numpy, system calls and Python, and the functions that take most.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import registry, rivals
from benchmarks.profiling.report import report

ROOT = Path(__file__).parents[2]
INJECTED = Path(__file__).parent / "injected"
WAIT_S = 15.0
"""An embedded daemon ends 2 s after its last session."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("case", metavar="CASE", help="see python -m benchmarks --list")
    parser.add_argument("--side", default="ranktap", help="whose (ranktap)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(build/profiles/CASE-SIDE.txt)")
    parser.add_argument("--smoke", action="store_true", help="a little of it")
    options = parser.parse_args()
    try:
        case, *others = registry.choose([options.case], [])
    except registry.UnknownError as error:
        parser.error(str(error))
    if others:
        parser.error(f"CASE: expected one, got {options.case!r}, which matches {1 + len(others)}")
    here = [side for side in case.sides if side not in rivals.DISTRIBUTIONS]
    if options.side not in here:
        parser.error(f"--side: expected one of {', '.join(here)}, got {options.side!r}")
    out = options.out or ROOT / "build" / "profiles" / f"{case.name}-{options.side}.txt"
    with tempfile.TemporaryDirectory(prefix="ranktap-profile-") as made:
        profiles, work = Path(made) / "profiles", Path(made) / "work"
        profiles.mkdir()
        work.mkdir()
        said = _run(case.name, options.side, profiles, work, smoke=options.smoke)
        text = f"{case.name}, {options.side}: {case.what}\nfigures under a profile: {said}\n"
        text += report(profiles)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(text)
    print(f"written to {out}", file=sys.stderr)
    return 0


def _run(case: str, side: str, profiles: Path, work: Path, *, smoke: bool) -> str:
    """Run it; what it printed. Raises CalledProcessError when it fails."""
    path = os.pathsep.join(filter(None, (str(INJECTED), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {
        "PYTHONPATH": path,
        "RANKTAP_BENCH_PROFILE": str(profiles),
        "RANKTAP_BENCH_ROOT": str(ROOT),
    }
    command = [sys.executable, "-m", "benchmarks.child", case, side, str(work)]
    command += [f"--profile={profiles}", *(["--smoke"] if smoke else [])]
    child = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    # Daemons outlive the training process, and write their profiles at their end.
    deadline = time.monotonic() + WAIT_S
    while any(_is_held(lock) for lock in work.rglob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return child.stdout.splitlines()[-1]


def _is_held(lock: Path) -> bool:
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
