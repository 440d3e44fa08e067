"""What was logged and has not been sent: bounded columns and blobs.

The training thread only appends; the sender thread takes. Scalars go to `rows`, one
flat list with four items a scalar:

    tag index, step, wall time, value,   tag index, step, wall time, value, ...

`rows += (a, b, c, d)` is one append under the interpreter's own lock, so scalars from
several threads never mix; the sender takes `rows[:n]` and deletes `rows[:n]`, so the
list is never replaced and nothing that is appended meanwhile is lost. Four arrays
would need a lock around four appends, a deque of tuples would cost the garbage
collector a visit to each (measured on the same machine: 0.30 us a call against 0.46 us).

Memory: everything not yet acknowledged counts, up to `memory_bytes`. Blobs may take four
fifths of it, so that a fifth stays for scalars. What does not fit is dropped and counted.
Scalars compare the length of `rows` with `row_limit`, which is what the other records and
the batches leave of the memory; every change of those sets it anew.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ranktap.staging import Snapshot
from ranktap_wire import limits
from ranktap_wire.records import Across, Batch, Blob, Columns, Kind, Style, byte_view, scalar_code

logger = logging.getLogger("ranktap")

ROW_ITEMS = 4
ROW_BYTES = 128
"""A scalar in `rows`: four references, two floats and mostly an int."""
DEVICE_SCALAR_BYTES = 1 * limits.KIB
"""A scalar on its way from a device: a pinned block of 512 bytes, and the tensor, event and
array around it."""
COLUMN_ROW_BYTES = 28
BLOB_BYTES = 1 * limits.KIB
"""A blob besides its data: its objects here, its header on the wire."""
BATCH_BYTES = 4 * limits.KIB
"""A batch besides its records: arrays, frames, tag table."""
BLOBS_SHARE = 0.8
HEADER_TARGET_BYTES = limits.HEADER_BYTES - 16 * limits.KIB


@dataclass(slots=True)
class Pending:
    """A blob and, for a copy from a device that is under way, how to ask for it."""

    blob: Blob
    arrived: Callable[[], bool] | None
    nbytes: int
    """What it takes, which stays when it is changed as it arrives."""


@dataclass(slots=True)
class PendingScalar:
    """A scalar whose value is on its way from a device."""

    tag_index: int
    step: int
    wall_time: float
    value: Snapshot


@dataclass(slots=True)
class Sealed:
    """A batch ready to be numbered, and what it takes of the memory."""

    batch: Batch
    scalar_bytes: int
    blob_bytes: int

    @property
    def nbytes(self) -> int:
        return self.scalar_bytes + self.blob_bytes


@dataclass(slots=True)
class Mark:
    """How much had been logged at a moment, counted from the beginning, in items of its queues."""

    rows: int
    scalars: int
    blobs: int


class Outbox:
    """One tap's memory. The sender calls `take` and `release`; everything else may be called by any
    thread."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.rows: list[int | float] = []
        self.row_limit = 0
        """Items that `rows` may hold; the caller compares before it appends."""
        self.tags: list[str] = []
        self.codes: list[int] = []
        """The `scalar_code` of each."""
        self.dropped_scalars = 0
        self.dropped_blobs = 0
        self._blobs: deque[Pending] = deque()
        self._scalars: deque[PendingScalar] = deque()
        self._lock = threading.Lock()
        self._scalar_bytes = 0  # sealed columns, and scalars on their way from a device
        self._blob_bytes = 0
        self._sealed_blob_bytes = 0  # of them
        self.pending_blob_bytes = 0
        """Of blobs that wait to be taken; those that were taken and are not acknowledged do not
        count."""
        self._taken = Mark(0, 0, 0)
        self._closed = False
        self._update_row_limit()

    # -- the training thread's side ---------------------------------------------------

    def add_tag(self, tag: str, policy: Across, style: Style = Style.SIMPLE) -> int:
        """The index of a tag, or of a name with a sub-run, that has none yet."""
        with self._lock:
            self.tags.append(tag)
            self.codes.append(scalar_code(policy, style))
            return len(self.tags) - 1

    def add_blob(
        self, blob: Blob, arrived: Callable[[], bool] | None, nbytes: int | None = None
    ) -> bool:
        """Keep a blob; False when there is no room for it, and it was counted.

        `nbytes` is what its data takes, where the caller knows, or what it is made of as it
        arrives, when that is more.
        """
        nbytes = _blob_bytes(blob) if nbytes is None else nbytes + BLOB_BYTES
        with self._lock:
            if not self._fits(nbytes):
                self.dropped_blobs += 1
                return False
            self._blob_bytes += nbytes
            self._blobs.append(Pending(blob, arrived, nbytes))
            self._update_row_limit()
            return True

    def has_room_for(self, nbytes: int) -> bool:
        """Whether a blob of so many bytes would be kept now, asked before it is copied; when not,
        it was counted."""
        with self._lock:
            fits = self._fits(nbytes + BLOB_BYTES)
            if not fits:
                self.dropped_blobs += 1
            return fits

    def add_device_scalar(self, scalar: PendingScalar) -> bool:
        """Keep a scalar that is on its way; False when there is no room, and it was counted."""
        with self._lock:
            if len(self.rows) >= self.row_limit - DEVICE_SCALAR_BYTES // ROW_BYTES * ROW_ITEMS:
                self.dropped_scalars += 1
                return False
            self._scalars.append(scalar)
            self._scalar_bytes += DEVICE_SCALAR_BYTES
            self._update_row_limit()
            return True

    def _fits(self, nbytes: int) -> bool:
        """Whether a blob may be kept. The caller holds the lock."""
        blobs = self._blob_bytes + nbytes
        rows = len(self.rows) // ROW_ITEMS * ROW_BYTES
        return (
            not self._closed
            and blobs <= BLOBS_SHARE * self.memory_bytes
            and blobs + self._scalar_bytes + rows <= self.memory_bytes
        )

    def drop_scalars(self, count: int) -> None:
        with self._lock:
            self.dropped_scalars += count

    def drop_blobs(self, count: int) -> None:
        with self._lock:
            self.dropped_blobs += count

    @property
    def dropped(self) -> int:
        return self.dropped_scalars + self.dropped_blobs

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Take nothing more: what is logged from now on counts as dropped."""
        with self._lock:
            self._closed = True
            self.row_limit = -1

    # -- the sender's side ------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether anything waits to be taken."""
        return bool(self.rows or self._blobs or self._scalars)

    @property
    def row_bytes(self) -> int:
        """What waits as rows, at its size in columns."""
        return len(self.rows) // ROW_ITEMS * COLUMN_ROW_BYTES

    @property
    def is_crowded(self) -> bool:
        """Whether more waits as rows than still fits."""
        return 2 * len(self.rows) > self.row_limit

    def mark(self) -> Mark:
        """All that has been logged by now. Only the sender may ask: it changes what was taken."""
        return Mark(
            self._taken.rows + len(self.rows),
            self._taken.scalars + len(self._scalars),
            self._taken.blobs + len(self._blobs),
        )

    def has_taken(self, mark: Mark) -> bool:
        """Whether everything that had been logged at that moment was taken."""
        taken = self._taken
        return (
            taken.rows >= mark.rows and taken.scalars >= mark.scalars and taken.blobs >= mark.blobs
        )

    def take(self) -> Sealed | None:
        """The next batch: records in the order in which they came, a kind at a time; None when
        nothing has arrived."""
        columns = self._take_columns()
        blobs, blob_bytes = self._take_blobs() if self._blobs else ([], 0)
        scalar_bytes = 0
        if columns is not None:
            scalar_bytes = len(columns.value) * COLUMN_ROW_BYTES + sum(map(len, columns.tags))
        if columns is not None or blobs:
            scalar_bytes += BATCH_BYTES
        with self._lock:
            self._scalar_bytes += scalar_bytes
            self._sealed_blob_bytes += blob_bytes
            self._update_row_limit()
        if columns is None and not blobs:
            return None
        batch = Batch(columns, blobs, self.dropped_scalars, self.dropped_blobs)
        return Sealed(batch, scalar_bytes, blob_bytes)

    def release(self, sealed: Sealed) -> None:
        """A batch was acknowledged, its memory is free again."""
        with self._lock:
            self._scalar_bytes -= sealed.scalar_bytes
            self._blob_bytes -= sealed.blob_bytes
            self._sealed_blob_bytes -= sealed.blob_bytes
            self._update_row_limit()

    def _update_row_limit(self) -> None:
        """The caller holds the lock, or nobody else has the outbox yet."""
        self.pending_blob_bytes = self._blob_bytes - self._sealed_blob_bytes
        if not self._closed:
            free = self.memory_bytes - self._scalar_bytes - self._blob_bytes
            self.row_limit = max(0, free // ROW_BYTES) * ROW_ITEMS

    def _take_columns(self) -> Columns | None:
        count = min(len(self.rows) // ROW_ITEMS, limits.SCALARS)
        taken = self.rows[: count * ROW_ITEMS]
        del self.rows[: count * ROW_ITEMS]
        self._taken.rows += count * ROW_ITEMS
        while self._scalars and count < limits.SCALARS:
            scalar = self._scalars[0]
            is_here = _is_here(scalar.value.arrived)
            if is_here is False:
                break
            if is_here:
                value = _first_value(scalar.value)
                taken += (scalar.tag_index, scalar.step, scalar.wall_time, value)
                count += 1
            with self._lock:
                self._scalars.popleft()
                self._scalar_bytes -= DEVICE_SCALAR_BYTES
                self.dropped_scalars += not is_here
            self._taken.scalars += 1
        return self._columns(taken) if count else None

    def _columns(self, rows: list[int | float]) -> Columns:
        index = np.array(rows[0::ROW_ITEMS], np.int32)
        # This batch's own tag table: only what occurs in it, in the order of first use.
        (used,) = np.bincount(index).nonzero()
        local = np.empty(int(used[-1]) + 1, np.int32)
        local[used] = np.arange(len(used), dtype=np.int32)
        chosen = used.tolist()
        return Columns(
            tags=[*map(self.tags.__getitem__, chosen)],
            across=np.array([*map(self.codes.__getitem__, chosen)], np.uint8),
            tag_index=local[index],
            step=np.array(rows[1::ROW_ITEMS], np.int64),
            wall_time=np.array(rows[2::ROW_ITEMS], np.float64),
            value=np.array(rows[3::ROW_ITEMS], np.float64),
        )

    def _take_blobs(self) -> tuple[list[Blob], int]:
        blobs: list[Blob] = []
        total = header_bytes = frames = 0
        while self._blobs and len(blobs) < limits.BLOBS // 2:
            pending = self._blobs[0]
            is_here = _is_here(pending.arrived)
            if is_here is False:
                break
            if is_here is None or not _may_travel(pending.blob):
                self._blobs.popleft()
                self._taken.blobs += 1
                with self._lock:
                    self._blob_bytes -= pending.nbytes
                    self.dropped_blobs += 1
                continue
            nbytes = pending.nbytes
            header_bytes += 256 + len(pending.blob.tag.encode())
            frames += 1 + len(pending.blob.parts)
            if blobs and (
                total + nbytes > limits.BATCH_TARGET_BYTES
                or header_bytes > HEADER_TARGET_BYTES
                or frames > limits.BLOBS
            ):
                break
            self._blobs.popleft()
            self._taken.blobs += 1
            blobs.append(pending.blob)
            total += nbytes
        return blobs, total


def _is_here(arrived: Callable[[], bool] | None) -> bool | None:
    """Whether a copy has arrived; None: it never will.

    A device that has failed ends its training, but what was logged before must still be sent.
    """
    try:
        return arrived is None or arrived()
    except Exception as error:
        logger.warning("ranktap: a record is lost on its way from its device: %s", error)
        return None


def _may_travel(blob: Blob) -> bool:
    """Whether it is within the daemon's limit, now that it is here.

    What is encoded as it arrives may have grown. A frame over libzmq's MAXMSGSIZE would end the
    connection, again and again, and nothing behind it would ever be sent.
    """
    nbytes = _blob_bytes(blob) - BLOB_BYTES
    if nbytes > limits.RECORD_BYTES:
        logger.warning(
            "ranktap: %r is dropped: it has become %d bytes, at most %d are allowed",
            blob.tag, nbytes, limits.RECORD_BYTES,
        )  # fmt: skip
    return nbytes <= limits.RECORD_BYTES


def _blob_bytes(blob: Blob) -> int:
    total = byte_view(blob.data).nbytes + BLOB_BYTES
    for buffer in blob.parts.values():
        total += byte_view(buffer).nbytes
    return total


def _first_value(value: Snapshot) -> float:
    blob = Blob(Kind.HISTOGRAM, "", 0, 0.0, Across.EACH, value.dtype, (1,), {}, value.bits)
    return float(blob.array()[0])
