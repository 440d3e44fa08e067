"""`ranktapd replay`: a run's journal folded again, into fresh files in another place.

The files of a run are a function of its journal, so they are the bytes that its worker wrote.
The journal is only read, and its daemon may be running: a link to it stands in a directory of
our own, which is what the fold sees as the run's state. Where it ends is what the daemon would
find after a restart: its last segment is copied and recovered there, so a group that is being
appended now, or was cut off, does not count.

A daemon deletes segments that are in the event files and on the disk. Of what was in those
there is a snapshot of the fold, and what is replayed begins behind it.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ranktap_wire import places, rules
from ranktap_wire.journal import JournalError, JournalWriter
from ranktap_wire.segment import Damage, Position, segment_path, segments
from ranktapd import checkpoint
from ranktapd.checkpoint import RecoveryError, Standing
from ranktapd.output import Output
from ranktapd.run_worker import WRITE_BYTES
from ranktapd.runs import RunPlace, quarantined

PROGRESS_S = 1.0
"""How often a line says how far it has come, where there is no terminal."""

_DESCRIPTION = """\
Folds a run's journal again, into fresh event files in OUT/RUN: the same bytes that its worker
wrote. The journal is only read, also while its daemon is running.

  ranktapd replay /var/lib/ranktap/runs/digits%2Flr=0.1 --logdir /tmp/again
  cmp /var/log/ranktap/digits/lr=0.1/events* /tmp/again/digits/lr=0.1/events*

The status is 0 when all of the run was replayed; 1 when something is missing, which is said:
parts that are damaged or were set aside, or what its daemon has deleted because it is in the
event files; 2 when nothing can be replayed.
"""


class ReplayError(Exception):
    """It cannot be replayed; the message is for the person who tried."""


@dataclass(frozen=True, slots=True)
class Source:
    """A journal, and what a daemon keeps beside it."""

    run: str
    journal: Path
    state: Path | None
    """The run's directory in a state directory; None: the journal stands alone."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ranktapd replay",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("journal", type=Path, metavar="JOURNAL", help="STATE/runs/RUN, or its directory 'journal'")
    add("--logdir", type=Path, metavar="OUT", required=True,
        help="where to write: not a daemon's logdir")  # fmt: skip
    add("--run", metavar="NAME", help="the run's name below OUT (as the journal's directory says)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="ranktapd replay: %(message)s")
    try:
        source = find_source(options.journal, options.run)
        return 1 if replay(source, options.logdir) else 0
    except KeyboardInterrupt:
        print(f"\nranktapd replay: interrupted; what there is in {options.logdir} is not all of it",
              file=sys.stderr)  # fmt: skip
        return 130
    except (ReplayError, RecoveryError, JournalError, OSError) as error:
        print(f"ranktapd replay: {error}", file=sys.stderr)
        return 2


def find_source(path: Path, run: str | None) -> Source:
    """The journal that is meant by a path. `run` is its name, when it was given.

    Raises:
        ReplayError: there is none, or its name is none.
    """
    if not path.is_dir():
        raise ReplayError(f"JOURNAL: expected a directory, got {str(path)!r}")
    path = path.resolve()
    journal = path if segments(path) else path / "journal"
    if not segments(journal):
        raise ReplayError(
            f"JOURNAL: expected a run's journal (files %020d.journal) or STATE/runs/RUN, got "
            f"{str(path)!r}, which has none"
        )
    is_kept = journal.name == "journal"
    named = journal.parent.name if is_kept else journal.name
    name = run if run is not None else rules.run_of_directory_name(named)
    try:
        rules.check_run(name)
    except ValueError as error:
        raise ReplayError(f"--run: {error}") from None
    return Source(name, journal, journal.parent if is_kept else None)


def replay(source: Source, logdir: Path) -> int:
    """Fold it into files below `logdir`; how many things are missing, each of which was said.

    Raises:
        ReplayError: the place is taken, there is no room, or an entry cannot be folded.
        RecoveryError, JournalError: parts that are needed are gone.
        OSError: files cannot be read or written.
    """
    logdir = logdir.absolute()
    if places.lock_path(logdir).exists():
        raise ReplayError(f"--logdir: {logdir} is a daemon's; expected another directory")
    with tempfile.TemporaryDirectory(prefix="ranktapd-replay-") as own:
        place = RunPlace.of(logdir, Path(own), source.run)
        if place.events.exists() and any(place.events.iterdir()):
            raise ReplayError(
                f"--logdir: {place.events} has files; expected a directory without run "
                f"{source.run!r}"
            )
        last = _last_entry(source.journal, Path(own) / "end")
        _link(source, place)
        threads = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            standing = checkpoint.recover(place, last, quarantined(place), threads, _no_room)
            try:
                return _fold(standing, place, last)
            except JournalError:
                _check_there(place, standing.reader.position.sequence + 1)
                raise
            finally:
                standing.reader.close()
                standing.files.close()
        finally:
            threads.shutdown(cancel_futures=True)


def _last_entry(journal: Path, copy: Path) -> int:
    """The last entry of the last whole group, found in a copy of the last segment."""
    last = segments(journal)[-1]
    copy.mkdir()
    shutil.copyfile(segment_path(journal, last), segment_path(copy, last))
    writer = JournalWriter(copy, sync=False)
    writer.close()
    if writer.cut is not None:
        print(
            f"{segment_path(journal, last)}: {writer.cut.nbytes} bytes at its end are of no whole "
            "group: passed over, as nobody was told that they are kept",
            file=sys.stderr,
        )
    shutil.rmtree(copy)
    return writer.last


def _link(source: Source, place: RunPlace) -> None:
    """Make the run's state of links: what is there is read, what is written is ours."""
    place.state.mkdir(parents=True)
    place.journal.symlink_to(source.journal)
    if source.state is not None:
        for name in ("snapshots", "quarantine"):
            if (source.state / name).exists():
                (place.state / name).symlink_to(source.state / name)


def _no_room(_retry_s: float) -> None:
    raise ReplayError("--logdir: no room on its disk")


def _check_there(place: RunPlace, sequence: int) -> None:
    """Raise ReplayError when an entry cannot be read because its daemon has just deleted it."""
    if min(segments(place.journal), default=0) > sequence:
        raise ReplayError(
            f"run {place.name!r}: its daemon has deleted entry {sequence} before it was read, as "
            f"the event files have it: delete {place.events} and try again"
        )


def _fold(standing: Standing, place: RunPlace, last: int) -> int:
    """Everything up to entry `last`; how many things are missing."""
    reader, files = standing.reader, standing.files
    missing = 0

    def tell(text: object) -> None:
        nonlocal missing
        missing += 1
        print(text, file=sys.stderr)

    if reader.position.sequence:
        tell(
            f"run {place.name!r}: begins behind entry {reader.position.sequence}; what came before "
            "is in the run's own event files, and its journal was deleted"
        )
    skipped = quarantined(place)
    for sequence in sorted(skipped):
        tell(f"run {place.name!r}: entry {sequence} was set aside, and is left out")
    unwritten: list[Output] = []
    nbytes = 0
    with _progress(place) as progress:
        for entry in reader.entries(last):
            if isinstance(entry, Damage):
                _check_there(place, entry.first)
                tell(entry)
                continue
            if entry.sequence not in skipped:
                try:
                    standing.fold.apply(entry)
                except ValueError as error:
                    raise ReplayError(
                        f"run {place.name!r}: entry {entry.sequence} cannot be folded: {error}"
                    ) from error
            if not entry.ends_group:
                continue
            output = standing.fold.close_group(str(entry.after))
            unwritten.append(output)
            nbytes += output.nbytes
            if nbytes > WRITE_BYTES:
                files.write(unwritten)
                unwritten.clear()
                nbytes = 0
            progress(entry.after)
        files.write(unwritten)
        files.sync()
    print(f"run {place.name!r}: replayed up to entry {last}, into {place.events}", file=sys.stderr)
    return missing


# -- how far it has come ----------------------------------------------------------------


@contextmanager
def _progress(place: RunPlace) -> Iterator[Callable[[Position], None]]:
    """Shows how much of the journal is folded: a bar on a terminal, else lines."""
    before, total = {}, 0
    for number in segments(place.journal):
        before[number] = total
        total += segment_path(place.journal, number).stat().st_size
    if sys.stderr.isatty() and find_spec("rich") is not None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(escape(place.name), total=total)
            yield lambda position: bar.update(
                task, completed=before.get(position.segment, 0) + position.offset
            )
        return
    said_at = time.monotonic()

    def say(position: Position) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= PROGRESS_S:
            said_at = time.monotonic()
            done = before.get(position.segment, 0) + position.offset
            print(f"{place.name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", file=sys.stderr)

    yield say
