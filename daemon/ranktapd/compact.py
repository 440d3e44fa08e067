"""`ranktapd compact`: a finished run's event files, without what TensorBoard does not show of them.

See compaction.py for what goes and how. The daemon may be running: while the run's writer lock
is held here, a worker of it waits, and the run goes on in the new file.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ranktap_wire import places, rules
from ranktapd import compaction
from ranktapd.compaction import CompactionError, Plan, Progress
from ranktapd.dirlock import FileLock, LockedError
from ranktapd.retention import Rest
from ranktapd.runs import RunPlace
from ranktapd.summary_writer import FileStart

PROGRESS_S = 1.0
"""How often a line says how far it has come, where there is no terminal."""
NAMED = 5
"""Runs that are named to who asks for one that is not there."""

_DESCRIPTION = """\
Rewrites the event files of a run that has finished, and of its sub-runs: checkpoints go, and
points in whose place a resumed job has logged others. TensorBoard shows the same as before, also
one that is running. The daemon may be running, and the run may go on afterwards.

  ranktapd compact digits/lr=0.1 --logdir runs --dry-run
  ranktapd compact digits/lr=0.1 --logdir /var/log/ranktap --state-dir /var/lib/ranktap

The status is 0 when it was done, or nothing is to be gained; 1 when a directory was left as it
is, which is said; 2 when nothing can be done.
"""


class CompactError(Exception):
    """Nothing was done; the message is for the person who tried."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ranktapd compact",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run, as TensorBoard names it; its sub-runs come with it")
    add("--logdir", type=Path, metavar="DIR", required=True, help="its daemon's")
    add("--state-dir", type=Path, metavar="DIR", help="its daemon's (LOGDIR/.ranktap)")
    add("--dry-run", action="store_true", help="only say what would be gained")
    options = parser.parse_args(arguments)
    logdir = options.logdir.absolute()
    try:
        state_dir = (options.state_dir or places.state_directory(logdir)).absolute()
        return compact(logdir, state_dir, options.run, dry=options.dry_run)
    except (CompactError, OSError) as error:
        print(f"ranktapd compact: {error}", file=sys.stderr)
        return 2


def compact(logdir: Path, state_dir: Path, run: str, *, dry: bool) -> int:
    """Compact a run's directories; 1 when one of them was left as it is, else 0.

    Raises:
        CompactError: there is no such run, it has not finished, or is another user's.
        OSError: files cannot be read or written.
    """
    place = _find(logdir, state_dir, run)
    lock = FileLock(place.state / "writer.lock")
    try:
        lock.acquire(
            f"RUN: expected one that has finished, got {run!r}, which is being written: its worker "
            "ends 30 s after its last record"
        )
    except LockedError as error:
        raise CompactError(str(error)) from None
    try:
        compaction.complete(place)  # one that was interrupted
        if Rest.read(place.state) is None:
            raise CompactError(
                f"RUN: expected one that has finished, got {run!r}: it has open sessions, or its "
                "daemon has not written all of it (and closed it) yet"
            )
        left_alone = 0
        for sub_run in ["", *_sub_runs(place)]:
            name = f"{run}/{sub_run}" if sub_run else run
            try:
                _compact(place, sub_run, name, dry)
            except CompactionError as error:
                left_alone = 1
                print(f"{name}: left as it is: {error}", file=sys.stderr)
        return left_alone
    finally:
        lock.release()


def _find(logdir: Path, state_dir: Path, run: str) -> RunPlace:
    try:
        rules.check_run(run)
    except ValueError as error:
        raise CompactError(f"RUN: {error}") from None
    place = RunPlace.of(logdir, state_dir, run)
    if not place.state.is_dir():
        there = sorted(
            rules.run_of_directory_name(path.name) for path in place.state.parent.glob("*")
        )
        named = ", ".join(map(repr, there[:NAMED])) + (", ..." if len(there) > NAMED else "")
        raise CompactError(
            f"RUN: expected one of which {state_dir} has a journal "
            f"({f'there are {named}' if there else 'there is none'}), got {run!r}"
        )
    owner = place.state.stat().st_uid
    if owner != os.geteuid():
        # What it made would be files that the daemon cannot write.
        raise CompactError(f"run it as the daemon's user, {_user(owner)}, not as "
                           f"{_user(os.geteuid())}")  # fmt: skip
    return place


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _sub_runs(place: RunPlace) -> list[str]:
    pointers = place.pointer("x").parent
    return sorted(rules.run_of_directory_name(path.name) for path in pointers.glob("[!.]*"))


def _compact(place: RunPlace, sub_run: str, name: str, dry: bool) -> None:
    pointer = place.pointer(sub_run)
    if not pointer.exists():
        raise CompactionError("it has no event file yet")
    start = FileStart(**json.loads(pointer.read_bytes()))
    directory = place.events / sub_run
    total = sum(path.stat().st_size for path in directory.glob("*tfevents*"))
    with _progress(name, total if dry else 2 * total) as progress:
        plan = compaction.plan(directory, start, progress)
        if plan.gains and not dry:
            compaction.carry_out(place, sub_run, plan, progress)
    print(f"{name}: {_said(plan, dry)}")


def _said(plan: Plan, dry: bool) -> str:
    files = f"{len(plan.sources)} file{'s' if len(plan.sources) > 1 else ''}"
    if not plan.gains:
        return f"nothing to gain: {files}, {_size(plan.before_bytes)}, {plan.records:,} records"
    return (
        f"{files}, {_size(plan.before_bytes)} {'would become' if dry else 'became'} 1 file, "
        f"{_size(plan.after_bytes)}; {plan.records - plan.dropped:,} records kept, "
        f"{plan.dropped:,} that TensorBoard does not show dropped"
    )


def _size(nbytes: int) -> str:
    return f"{nbytes:,} bytes" if nbytes < 1_000_000 else f"{nbytes / 1e6:,.1f} MB"


@contextmanager
def _progress(name: str, total: int) -> Iterator[Progress]:
    """Shows how much is done: a bar on a terminal, else lines."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(escape(name), total=total)
            yield lambda nbytes: bar.advance(task, nbytes)
        return
    done, said_at = 0, time.monotonic()

    def say(nbytes: int) -> None:
        nonlocal done, said_at
        done += nbytes
        if time.monotonic() - said_at >= PROGRESS_S:
            said_at = time.monotonic()
            print(f"{name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", file=sys.stderr)

    yield say
