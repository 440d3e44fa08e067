"""`ranktap sync`: sends what jobs have left in spools, and says what became of it."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ranktap import keys, opening, ranks
from ranktap.resend import Context, ResendError, Stream, context_for, send_together
from ranktap.spooled import MARKER, SpoolError, session_directories
from ranktap.unsent import Life, find_sessions, lives_of, ranks_text
from ranktap_wire import places
from ranktap_wire.journal import JournalError

PLAIN_INTERVAL_S: Final = 5.0
"""Between two lines that say how far it has come, where there is no terminal."""


class SyncError(Exception):
    """Nothing can be sent; the message is for the person who asked."""


def run(
    *,
    spools: Sequence[Path],
    endpoint: str | None,
    logdir: Path | None,
    partial: bool,
    patience_s: float,
) -> int:
    """Send all that is in these spools. 0: nothing is left there; 1: something is, which was said.

    Raises:
        SyncError: a directory is no spool, or there is no daemon.
        KeyboardInterrupt: it was broken off, and can be begun again.
    """
    for spool in spools:
        _check_spool(spool)
    try:
        own_keys = keys.from_environment()
        locate = opening.find_daemon(endpoint, logdir, ranks.Identity(0, 1, 0, None, "none"))
    except LookupError:
        raise SyncError(
            "no daemon to send to: give --endpoint (or set RANKTAP_ENDPOINT), or --logdir to have "
            f"one started here; {places.SERVICE_SOCKET} does not answer"
        ) from None
    except (ValueError, ModuleNotFoundError, OSError) as error:
        raise SyncError(str(error)) from None
    sessions, failed = find_sessions(spools)
    with contextlib.ExitStack() as cleanup:
        for session in sessions:
            cleanup.callback(session.close)
        for directory, why in failed:
            print(f"left: {directory}: {why}")
        if not sessions:
            print(f"nothing to send in {_names(spools)}" if not failed else "nothing was sent")
            return 1 if failed else 0
        _allow_descriptors(len(sessions))
        context = context_for(len(sessions))
        cleanup.callback(context.destroy, linger=0)
        sync = _Sync(context, locate, own_keys, partial, patience_s)
        is_all = True
        for lives in lives_of(sessions).values():
            is_all &= sync.send_run(lives)
        return 0 if is_all and not failed else 1


def _check_spool(spool: Path) -> None:
    if not spool.is_dir():
        what = "no directory" if spool.exists() else "no such directory"
        raise SyncError(f"{spool}: {what}")
    if not (spool / MARKER).exists() and next(session_directories(spool), None) is None:
        raise SyncError(
            f"{spool}: no spool; one is what `spool=` of ranktap.init, or RANKTAP_SPOOL, names"
        )


class _Sync:
    """Sends runs, one after the other."""

    def __init__(
        self,
        context: Context,
        locate: Callable[[], keys.Address],
        own_keys: keys.Keys | None,
        partial: bool,
        patience_s: float,
    ) -> None:
        self._context = context
        self._locate = locate
        self._keys = own_keys
        self._partial = partial
        self._patience_s = patience_s

    def send_run(self, lives: list[Life]) -> bool:
        """Send what is here of a run; whether that was all."""
        for number, life in enumerate(lives):
            why = life.why_not(partial=self._partial)
            if why is None:
                why = self._send(life)
            if why is not None:
                print(f"run {life.run!r}: left: {why}")
                if lives[number + 1 :]:
                    # A rank's later session ends its earlier ones for good.
                    print(f"run {life.run!r}: left: what was logged after that")
                return False
        return True

    def _send(self, life: Life) -> str | None:
        """Send a life; why not all of it has gone, or None."""
        streams: list[Stream] = []
        began = time.monotonic()
        try:
            for session in life.sessions:
                streams.append(Stream(self._context, session, self._locate, self._keys))
            with _progress(life) as show:
                send_together(
                    streams, self._patience_s, lambda: show(sum(s.sent_bytes for s in streams))
                )
        except ResendError as error:
            raise SyncError(f"{error}; what has not arrived is still there: run it again") from None
        except (JournalError, SpoolError, OSError) as error:
            return str(error)
        finally:
            for stream in streams:
                stream.disconnect()
        done = [stream for stream in streams if stream.done]
        if done:
            _report(life, done, time.monotonic() - began)
        refusals = {s.failure: s.session.hello.rank for s in streams if s.failure is not None}
        if refusals:
            return "; ".join(f"{ranks_text([rank])}: {why}" for why, rank in refusals.items())
        return None


def _report(life: Life, done: list[Stream], seconds: float) -> None:
    batches = sum(stream.sent_batches for stream in done)
    nbytes = sum(stream.sent_bytes for stream in done)
    print(
        f"run {life.run!r}: sent {ranks_text([s.session.hello.rank for s in done])}: "
        f"{batches:,} batches, {nbytes / 1e6:,.1f} MB in {seconds:.1f} s"
    )
    for stream in done:
        rank, session = stream.session.hello.rank, stream.session
        if stream.moved_to is not None:
            print(
                f"run {life.run!r}: another job writes to it; rank {rank} is in run "
                f"{stream.moved_to!r}"
            )
        if session.cut is not None:
            print(
                f"run {life.run!r}: rank {rank} was ended in the middle of a write: "
                f"the last {session.cut.nbytes:,} bytes were not whole"
            )
        for damage in session.reader.damages if session.reader is not None else ():
            print(f"run {life.run!r}: rank {rank}: {damage}; the rest was sent")
        if stream.refused:
            print(
                f"run {life.run!r}: rank {rank}: ranktapd refused {stream.refused} batches: "
                f"{stream.said}"
            )


@contextlib.contextmanager
def _progress(life: Life) -> Iterator[Callable[[int], None]]:
    """Shows how many bytes have arrived: a bar on a terminal, else a line from time to time."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        from rich import progress
        from rich.console import Console

        with progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bar:
            task: Any = bar.add_task(f"run {life.run!r}", total=life.nbytes)
            yield lambda sent: bar.update(task, completed=sent)
        return
    last = time.monotonic()

    def show(sent: int) -> None:
        nonlocal last
        if time.monotonic() - last > PLAIN_INTERVAL_S:
            last = time.monotonic()
            print(f"run {life.run!r}: {sent / 1e6:,.1f} of {life.nbytes / 1e6:,.1f} MB", flush=True)

    yield show


def _allow_descriptors(sessions: int) -> None:
    """A socket takes two or three, a session's files three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * sessions + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _names(spools: Sequence[Path]) -> str:
    return ", ".join(map(str, spools))
