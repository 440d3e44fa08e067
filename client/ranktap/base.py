"""What every method of a tap stands on: the step, checks, drops, the beginning and the end."""

from __future__ import annotations

import atexit
import functools
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from time import time as wall_clock
from typing import TYPE_CHECKING, Any

import numpy as np

from ranktap import staging, used_memory
from ranktap.closing import Closing
from ranktap.keys import Address
from ranktap.outbox import Outbox
from ranktap.sender import Sender
from ranktap.spool import Spool
from ranktap.staging import Described, Snapshot
from ranktap_wire import kinds, limits, records, rules
from ranktap_wire.messages import Hello
from ranktap_wire.records import STEP_MAX, STEP_MIN, Across, Blob, Kind, Style
from ranktap_wire.shown import shown_as, shown_name

if TYPE_CHECKING:
    from ranktap.recorder import Recorder

logger = logging.getLogger("ranktap")

TIMEOUT_S = 10.0
CHECKED_FORMS = 10_000
"""Forms of records that are remembered as right, of 500 bytes each: tags come again and again,
and where they do not, remembering them is of no use."""


@dataclass(frozen=True, slots=True)
class Late:
    """What does not travel itself, but is needed to make what does.

    Once it is here the sender's thread calls `finish`, which changes the record, within the
    bytes that both have taken.
    """

    values: Mapping[str, Described]
    finish: Callable[[Blob, Mapping[str, Snapshot]], None]


class BaseTap(Closing):
    """A tap that can be opened, flushed and closed, and to which checked records are added."""

    def __init__(
        self,
        hello: Hello,
        locate: Callable[[], Address],
        memory_bytes: int,
        spool: Path | None = None,
    ) -> None:
        self.run = hello.run
        self.rank = hello.rank
        self.world_size = hello.world_size
        self._step = 0
        self._has_steps = False
        self._step_began = 0.0
        """By `perf_counter`. Taken only where there are other ranks."""
        self._recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
        self._outbox = Outbox(memory_bytes)
        self._rows = self._outbox.rows
        # Tag to index, a dict for each way in which scalars are named and merged; the usual
        # one has its own name. And index by full name: see scalars.py.
        self._mean: dict[str, int] = {}
        self._tables: dict[tuple[str, ...], dict[str, int]] = {("", "mean", "simple"): self._mean}
        self._indices: dict[tuple[str, Style], int] = {}
        self._own: dict[str, int] = {}
        """Those of tags of our own."""
        # What each name is to TensorBoard.
        self._kinds: dict[str, str] = {}
        self._checked: dict[tuple[object, ...], tuple[str, dict[str, Any]]] = {}
        """Records that were found right, but for their data: name and parameters as they travel."""
        self._inert = False
        self._closed = False
        self._journaled = False
        self._told_dropped = False
        kept = None if spool is None else Spool(spool, hello)
        self._sender = Sender(self._outbox, hello, locate, kept)
        _living.add(self)
        self._sender.start()
        atexit.register(self.close)

    def step(self, n: int) -> None:
        """Set the step of everything that follows without `step=`.

        With more ranks than one the time until `n` changes again is logged, in seconds, as
        `step_time/total` of this step.

        Raises:
            TypeError, ValueError: `n` is no integer of 64 bits.
        """
        n = rules.check_step(n, "n")
        for recorder in list(self._recorders) if self._recorders else ():
            recorder.step_changes(n)
        if self.world_size > 1 and (n != self._step or not self._has_steps):
            now = perf_counter()
            if self._has_steps:
                self._log_own("step_time/total", now - self._step_began, self._step)
            self._step_began = now
        self._step = n
        self._has_steps = True

    # -- records other than scalars ---------------------------------------------------

    def _add(
        self,
        kind: Kind,
        tag: str,
        data: Described,
        step: int | None,
        walltime: float | None,
        *,
        parameters: Mapping[str, Any] | None = None,
        parts: Mapping[str, Described] | None = None,
        across: Across = Across.EACH,
        sub_run: str = "",
        late: Late | None = None,
    ) -> None:
        """Check everything, then copy, then hand over."""
        parts = parts or {}
        if type(step) is not int or not STEP_MIN <= step <= STEP_MAX:
            step = self._step if step is None else rules.check_step(step)
        blob = Blob(
            kind=kind,
            tag=tag,
            step=step,
            wall_time=wall_clock() if walltime is None else rules.check_walltime(walltime),
            across=across,
            dtype=data.dtype,
            shape=data.shape,
            parameters=dict(parameters or {}),
            data=b"",
            parts={},
        )
        # Of their length, which is what can be checked already.
        for part, given in parts.items():
            blob.parts[part] = np.empty(given.nbytes, np.uint8)
        late_values = () if late is None else late.values.values()
        nbytes, shown = self._check_record(blob, sub_run, [data, *parts.values(), *late_values])
        # What is asked in them is mostly seen without a call, which is not free, see below.
        if (self._inert or self._closed or across is Across.RANK0) and not (
            self._has_part(across) and self._accepts()
        ):
            return
        if shown is not None:
            self._kinds[shown] = shown_as(kind)
        if not self._outbox.has_room_for(nbytes):
            self._tell_dropped()
            return
        copies = [data.copied()]
        blob.data = copies[0].bits.reshape(-1)
        for part, given in parts.items():
            copies.append(given.copied())
            blob.parts[part] = copies[-1].bits.reshape(-1)
        if late is None:
            arrived = staging.all_arrived(copies)
        else:
            waited_for = {name: given.copied() for name, given in late.values.items()}
            arrived = staging.all_arrived([*copies, *waited_for.values()])
            arrived = staging.then(arrived, functools.partial(late.finish, blob, waited_for))
        if not self._outbox.add_blob(blob, arrived, nbytes):
            self._tell_dropped()
        elif self._outbox.pending_blob_bytes >= limits.BATCH_TARGET_BYTES:
            self._sender.wake()

    def _check_record(
        self, blob: Blob, sub_run: str, everything: Sequence[Described]
    ) -> tuple[int, str | None]:
        """Hold a record against all rules, and bring its name and parameters into normal form.

        Returns its bytes, and the name whose kind is to be remembered, if there is one.
        """
        # After 50 ms of training each function that is called costs 2.5 us: its code is in no
        # cache any more. So what was found right before is not checked again. Types count:
        # True equals 1, but is not a number of pictures.
        form: tuple[object, ...] | None = None
        if len(everything) == 1:
            values = blob.parameters.values()
            form = (
                blob.kind, sub_run, blob.tag, blob.across, blob.dtype, blob.shape,
                *values, *map(type, values),
            )  # fmt: skip
            try:
                known = self._checked.get(form)
            except TypeError:
                form = known = None  # a list among them, or something that is wrong
            if known is not None:
                blob.tag, blob.parameters = known
                return everything[0].nbytes, None
        blob.tag = records.join_name(sub_run, rules.check_tag(blob.tag))
        nbytes = _check_size(everything)
        kinds.check_head(blob)
        shown = shown_name(blob.kind, blob.tag)
        if shown is not None:
            self._check_kind(shown, shown_as(blob.kind))
        if form is not None and len(self._checked) < CHECKED_FORMS:
            self._checked[form] = blob.tag, blob.parameters
        return nbytes, shown

    def _keep(self, blobs: Sequence[Blob], arrived: staging.Arrived) -> None:
        """Take records of moments, whose data is this tap's own already."""
        for blob in blobs:
            if self._accepts() and not self._outbox.add_blob(blob, arrived):
                self._tell_dropped()
        if self._outbox.pending_blob_bytes >= limits.BATCH_TARGET_BYTES:
            self._sender.wake()

    # -- the end ----------------------------------------------------------------------

    def flush(self, timeout: float = TIMEOUT_S) -> bool:
        """Wait until the daemon has journaled all that was logged; True when it has.

        `timeout` is in seconds. False: not all in this time; nothing is lost by that. With a
        spool, also as soon as all of it is there and no daemon answers.

        Raises:
            TypeError, ValueError: `timeout` is no finite number from 0 on.
        """
        timeout = _check_timeout(timeout)
        if self._inert:
            return True
        self._end_steps()
        return self._sender.flush(timeout)

    def close(self, timeout: float = TIMEOUT_S) -> bool:
        """Flush, then end. What is logged afterwards is counted as dropped.

        Called at the interpreter's exit too. True when everything was journaled by the daemon.
        With a spool, what was not is put there within the time, and the logger says how to send
        it: then it is False, as of now the daemon does not have it.

        Raises:
            TypeError, ValueError: `timeout` is no finite number from 0 on.
        """
        timeout = _check_timeout(timeout)
        if self._inert:
            return True
        if self._closed:
            return self._journaled and not self._outbox.dropped
        self._end_steps()
        self._closed = True
        atexit.unregister(self.close)
        self._forget_tags()
        self._journaled = self._sender.close(timeout)
        if not self._journaled:
            logger.warning(
                "ranktap: closed before ranktapd had journaled everything%s", self._sender.rest
            )
        if self._outbox.dropped:
            logger.warning(
                "ranktap: %d scalars and %d other records were dropped",
                self._outbox.dropped_scalars,
                self._outbox.dropped_blobs,
            )
        return self._journaled and not self._outbox.dropped

    def _end(self) -> None:
        self.close()

    def _end_steps(self) -> None:
        """Log what the hooks have seen since the last step ended."""
        for recorder in list(self._recorders):
            recorder.end()

    # -- within -----------------------------------------------------------------------

    def _log_own(self, tag: str, value: float, step: int) -> None:
        """Log a number that nobody has asked for; nothing when the tap is closed."""
        if self._inert or self._closed:
            return
        index = self._own.get(tag)
        if index is None:
            index = self._own[tag] = self._outbox.add_tag(tag, Across.MEAN)
        rows = self._rows
        if len(rows) >= self._outbox.row_limit:
            self._drop_scalars(1)
        else:
            rows += (index, step, wall_clock(), value)

    def _has_part(self, policy: Across) -> bool:
        """Whether this rank's records of that policy count."""
        return policy is not Across.RANK0 or self.rank == 0

    def _accepts(self, scalars: int = 0) -> bool:
        """Whether anything may be logged; when not, that many scalars, or one blob, are counted."""
        if self._inert:
            return False
        if self._closed:
            if scalars:
                self._outbox.drop_scalars(scalars)
            else:
                self._outbox.drop_blobs(1)
            self._tell_dropped()
            return False
        return True

    def _check_kind(self, name: str, kind: str) -> None:
        known = self._kinds.get(name, kind)
        if known != kind:
            _, tag = records.split_name(name)
            raise ValueError(
                f"tag: {tag!r} was logged as {known} before, now as {kind}; "
                "TensorBoard shows one kind of data for each tag"
            )

    def _drop_scalars(self, count: int) -> None:
        self._outbox.drop_scalars(count)
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        if not self._told_dropped:
            self._told_dropped = True
            if self._closed:
                reason = "the tap is closed"
            elif self._outbox.is_closed:
                reason = "the sender has ended, as was said before"
            else:
                reason = f"{self._outbox.memory_bytes >> 20} MiB wait for ranktapd already"
            logger.warning("ranktap: records are being dropped: %s", reason)

    def _forget_tags(self) -> None:
        """Send every later scalar the way of those with new tags, and so through `_accepts`."""
        for table in self._tables.values():
            table.clear()

    def _become_inert(self) -> None:
        """In a forked child: it has no sender, and its parent's socket is not its own."""
        self._inert = True
        self._forget_tags()


_living: weakref.WeakSet[BaseTap] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    used_memory.forget()
    for tap in list(_living):
        tap._become_inert()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _check_size(everything: Sequence[Described]) -> int:
    """The bytes of a record, if so many may travel."""
    nbytes = sum(described.nbytes for described in everything)
    if nbytes > limits.RECORD_BYTES:
        largest = max(everything, key=lambda described: described.nbytes)
        raise ValueError(
            f"{largest.name}: expected at most {limits.RECORD_BYTES >> 20} MiB, "
            f"got {nbytes / limits.MIB:.1f} MiB (shape {largest.shape})"
        )
    return nbytes


def _check_timeout(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.number):
        given = f"{timeout!r} ({type(timeout).__name__})"
        raise TypeError(f"timeout: expected a number of seconds, got {given}")
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout: expected a finite number of seconds from 0 on, got {timeout}")
    return float(min(timeout, threading.TIMEOUT_MAX))
