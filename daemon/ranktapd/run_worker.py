"""A run's worker: a process that tails the run's journal and keeps its files complete.

It is told, on standard input, up to which entry the journal is on disk, and says, on
standard output, how far it has come; see supervisor.py for the words. It keeps nothing
that is not in the journal or those files, so it may die at any moment. It ends when
it is told to finish, or when its input ends, because then the main process is gone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ranktap_wire.segment import Damage, Entry, Position, segments
from ranktapd import checkpoint, logs
from ranktapd.dirlock import FileLock, LockedError
from ranktapd.output import Output
from ranktapd.runs import RunPlace, quarantined

logger = logging.getLogger("ranktapd")

P = ParamSpec("P")
T = TypeVar("T")

WRITE_BYTES = 24 << 20
"""What waits to be written at most, about: three groups of pictures, of which two are being
drawn while the first is written."""
TOGETHER_BYTES = 4 << 20
"""At least so much is written at a time then: scalars come in small groups."""
DRAWING_THREADS = 4
"""A picture of 512x512x3 takes 3 ms. Arbitrary: measured on two cores only."""
LOCK_WAIT_S = 30.0
"""The worker of a main process that was killed ends within a round of its own. Less than
`supervisor.SILENT_S`."""
OVERVIEW_S = 1.0
"""How often it says how the run looks, at most: a person's second."""
ROUND_S = 0.02
"""How finely it is known when windows began; a hundredth of the shortest sensible wait."""


class Controls:
    """The pipe to the main process."""

    def __init__(self) -> None:
        self.committed = -1
        self.finish = False
        self.ended = False
        self._unread = b""
        os.set_blocking(0, False)

    def wait(self, timeout_s: float | None) -> None:
        """Until there is something to hear, or the time is over."""
        select.select([0], [], [], timeout_s)
        self.hear()

    def hear(self) -> None:
        while True:
            try:
                said = os.read(0, 1 << 16)
            except BlockingIOError:
                return
            if not said:
                self.ended = True
                return
            *lines, self._unread = (self._unread + said).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self.committed = message.get("committed", self.committed)
                self.finish = self.finish or "finish" in message

    def say(self, **words: Any) -> None:
        line = json.dumps(words).encode() + b"\n"
        while line:
            # In one piece up to what a pipe takes at a time, unless it is stopped in between.
            line = line[os.write(1, line) :]


class AtOnce(Executor):
    """Draws in the caller: whatever ends the process does so at the entry that it has named."""

    def submit(self, fn: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*arguments, **named))
        except ValueError as error:
            # A picture that cannot be drawn, which is no reason to end. All else is.
            future.set_exception(error)
        return future


def _drawing_threads() -> Executor:
    # Drawing spends its time in numpy and deflate, which let go of the interpreter.
    return ThreadPoolExecutor(min(DRAWING_THREADS, os.cpu_count() or 1))


class RunWorker:
    """Folds one run's journal into its files."""

    def __init__(
        self, place: RunPlace, controls: Controls, straggler_timeout_s: float, careful: bool
    ) -> None:
        self._place = place
        self._controls = controls
        self._straggler_timeout_s = straggler_timeout_s
        self._careful = careful
        self._skipped = quarantined(place)
        self._executor = AtOnce() if careful else _drawing_threads()
        self._folded = 0
        standing = checkpoint.recover(
            place, controls.committed, self._skipped, self._executor, self._wait_for_room
        )
        self._fold = standing.fold
        self._reader = standing.reader
        self._files = standing.files
        self._unwritten: list[tuple[Position, Output]] = []
        """Groups, each with where it ends."""
        self._unwritten_bytes = 0
        self._snapshot_segment = self._reader.position.segment
        self._at_group_end = True
        # (when, up to which entry): how long the records that wait have waited.
        self._rounds: deque[tuple[float, int]] = deque()
        self._asked = -1
        self._limits_said = 0
        self._next_overview = 0.0
        self._has_news = False
        """Something was written since it was last said how the run looks."""
        if min(segments(place.journal)) < self._snapshot_segment:
            # The worker before this one ended when it was about to leave them.
            self._leave_segment(self._reader.position)

    def run(self) -> None:
        """Until told to finish, or left alone."""
        while True:
            self._fold_upto(self._controls.committed)
            self._controls.hear()
            if self._unwritten and not self._has_more():
                self._write()
            if self._controls.ended:
                logger.info("run %(run)r: the main process is gone", {"run": self._place.name})
                return
            if self._has_more():
                continue
            if self._controls.finish:
                # Where it can be continued from, when its journal has gone.
                if self._at_group_end:
                    self._leave_segment(self._reader.position)
                self._files.sync()
                self._say_overview()
                return
            patience_s = self._ask_to_expire()
            if self._has_news:
                due_s = max(0.0, self._next_overview - time.monotonic())
                patience_s = due_s if patience_s is None else min(patience_s, due_s)
            self._controls.wait(patience_s)
            if self._has_news and time.monotonic() >= self._next_overview:
                self._say_overview()

    def close(self) -> None:
        """Let go of its files and threads."""
        self._reader.close()
        self._files.close()
        self._executor.shutdown()

    def fold_upto(self, sequence: int) -> None:
        """Bring the files to where the journal is."""
        self._fold_upto(sequence)
        if self._unwritten:
            self._write()

    def _has_more(self) -> bool:
        """Whether more was told of while it folded."""
        return self._reader.position.sequence < self._controls.committed

    def _fold_upto(self, sequence: int) -> None:
        """Bring the fold to there, and the files as far as pictures are drawn."""
        for entry in self._reader.entries(sequence):
            self._at_group_end = isinstance(entry, Entry) and entry.ends_group
            if isinstance(entry, Damage):
                logger.error("run %(run)r: %(damage)s", {"run": self._place.name, "damage": entry})
                continue
            self._apply(entry)
            if not entry.ends_group:
                continue
            output = self._fold.close_group(str(entry.after))
            self._unwritten.append((entry.after, output))
            self._unwritten_bytes += output.nbytes
            if self._careful:
                self._controls.say(at=0)  # a full disk on which it waits is no entry's fault
            if self._unwritten_bytes > WRITE_BYTES or self._careful:
                self._write(0 if self._careful else WRITE_BYTES - TOGETHER_BYTES)
                self._controls.hear()
                if self._controls.ended:
                    return
            if entry.after.segment != self._snapshot_segment:
                self._leave_segment(entry.after)
        drawn = 0
        while drawn < len(self._unwritten) and self._unwritten[drawn][1].is_drawn:
            drawn += 1
        self._write_first(drawn)

    def _apply(self, entry: Entry) -> None:
        if entry.sequence in self._skipped:
            return
        if self._careful:
            self._controls.say(at=entry.sequence)
        self._fold.apply(entry)

    def _write(self, leave_bytes: int = 0) -> None:
        """Write what waits, the first first, until there is no more than that."""
        count, left = 0, self._unwritten_bytes
        while count < len(self._unwritten) and (left > leave_bytes or not leave_bytes):
            left -= self._unwritten[count][1].nbytes
            count += 1
        self._write_first(count)

    def _write_first(self, count: int) -> None:
        """Write so many groups, once they are drawn, and say how far all is written."""
        written, self._unwritten = self._unwritten[:count], self._unwritten[count:]
        if self._unwritten and not written:
            return
        self._unwritten_bytes = sum(output.nbytes for _, output in self._unwritten)
        self._files.write([output for _, output in written])
        position = written[-1][0] if self._unwritten else self._reader.position
        self._folded = position.sequence
        self._controls.say(
            folded=position.sequence, segment=position.segment, offset=position.offset
        )
        for limit, text in [*self._fold.limits_met.items()][self._limits_said :]:
            self._controls.say(limit=limit, text=text)
        self._limits_said = len(self._fold.limits_met)
        now = time.monotonic()
        if not self._rounds or now - self._rounds[-1][0] > ROUND_S:
            self._rounds.append((now, self._folded))
        else:
            self._rounds[-1] = (now, self._folded)
        self._has_news = True
        if now >= self._next_overview:
            self._say_overview()

    def _say_overview(self) -> None:
        self._next_overview = time.monotonic() + OVERVIEW_S
        self._has_news = False
        self._controls.say(overview=self._fold.overview())

    def _wait_for_room(self, timeout_s: float) -> None:
        self._controls.say(waiting=self._folded)
        self._controls.wait(timeout_s)
        if self._controls.ended:
            raise BrokenPipeError("the main process is gone")

    def _leave_segment(self, position: Position) -> None:
        self._write()
        self._files.sync()
        self._snapshot_segment = position.segment
        try:
            checkpoint.save_snapshot(self._place, self._fold, position)
        except OSError as error:
            # A full disk. The segments stay, and the next one that is left takes them along.
            logger.error(
                "run %(run)r: no snapshot can be kept: %(error)s",
                {"run": self._place.name, "error": error},
            )

    def _ask_to_expire(self) -> float | None:
        """Ask that windows that have waited too long be given up on; how long until the next."""
        waits_since = self._fold.waits_since()
        if waits_since is None or self._fold.is_held:
            # What waits when nobody is behind any more has waited since then.
            self._rounds.clear()
            return None
        now = time.monotonic()
        while self._rounds and self._rounds[0][1] < waits_since:
            self._rounds.popleft()
        overdue = -1
        for when, sequence in self._rounds:
            if now - when < self._straggler_timeout_s:
                break
            overdue = sequence
        if overdue > self._asked:
            self._asked = overdue
            self._controls.say(expire=overdue)
        return self._straggler_timeout_s / 10


def _lock(place: RunPlace, controls: Controls) -> bool:
    """Become the run's one writer; False: the main process is gone."""
    lock = FileLock(place.state / "writer.lock")
    while not controls.ended:
        try:
            lock.acquire(f"another process writes run {place.name!r}", LOCK_WAIT_S)
        except LockedError as error:
            # The worker of a main process that was killed, or a compaction that takes long.
            logger.warning(
                "run %(run)r: %(error)s: waiting for it", {"run": place.name, "error": error}
            )
            controls.say(waiting=0)
            controls.hear()
        else:
            return True
    return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ranktapd run worker")
    parser.add_argument("--run", required=True)
    parser.add_argument("--logdir", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--straggler-timeout", type=float, required=True)
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")
    parser.add_argument("--careful", action="store_true")
    options = parser.parse_args(arguments)
    logs.to_stderr(options.log_format, options.run)
    # The main process tells it when to end; a signal to the whole group is not for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # In a fresh process glibc returns each large temporary to the kernel, which doubles what
    # encoding costs; once a block of this size was freed, it keeps them, and up to twice as
    # much at the end of its heap. It learns nothing from blocks of more than 32 MiB.
    np.empty(31 << 20, np.uint8)
    place = RunPlace.of(options.logdir, options.state_dir, options.run)
    controls = Controls()
    if not _lock(place, controls):
        return 0
    while controls.committed < 0 and not controls.ended:
        controls.wait(None)
    if controls.ended:
        return 0
    try:
        RunWorker(place, controls, options.straggler_timeout, options.careful).run()
    except BrokenPipeError:
        return 0  # the main process is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
