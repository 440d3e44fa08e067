"""Memory for snapshots, kept and used again.

A snapshot lives until its batch is acknowledged. Then the C library gives its memory back to
the kernel, and what is logged next is copied into fresh memory: a page fault for each 4 KiB,
which takes several times as long as the copy (of 4 MB, on two cores of an AMD EPYC in a virtual
machine: 1.5 ms, against 0.1 to 0.4 ms). A loop logs tensors of the same few sizes again and
again, so what was let go of waits here for the next of its size, the last one first: that is
what the caches still know.

Tried and left out: huge pages. Used first, they take a fifth of the time of small ones on a
host that has the memory at hand, and six times as much on one that has to find it.
"""

from __future__ import annotations

import functools
import math
import threading
import weakref
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranktap_wire import limits

SMALL_BYTES: Final = 64 * limits.KIB
"""What is smaller comes from the C library, which has it at hand."""
ROUNDED_BYTES: Final = 4 * limits.KIB
"""Sizes are multiples of it: a picture that is a little smaller takes the same."""
KEPT_BYTES: Final = limits.IN_FLIGHT_BYTES
"""What waits here at most: as much as may be under way to the daemon."""


class _Memory(np.ndarray[Any, np.dtype[np.uint8]]):
    """Of a type of its own, so that a view of an array in it refers to that array and keeps it.
    Among arrays of one type numpy has views refer to what owns the memory."""


class UsedMemory:
    """Gives out arrays of any content. Any thread may ask for them, and let go of them."""

    _lock: threading.Lock
    _waiting: dict[int, list[_Memory]]
    """By size; sizes that were asked for or came back last are last."""
    _kept_bytes: int
    _returned: deque[_Memory]
    """Let go of, and not among those that wait yet."""
    _lent: dict[int, weakref.ref[NDArray[Any]]]

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew. In a forked child another thread of its parent may have held the lock, or
        been about to fill what it was given."""
        self._lock = threading.Lock()
        self._waiting = {}
        self._kept_bytes = 0
        self._returned = deque()
        self._lent = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array in C order that nobody else has."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALL_BYTES:
            return np.empty(shape, dtype)
        size = -(-nbytes // ROUNDED_BYTES) * ROUNDED_BYTES
        with self._lock:
            if self._returned:
                self._take_back()
            waiting = self._waiting.pop(size, None)
            if waiting:
                memory = waiting.pop()
                self._kept_bytes -= size
                self._waiting[size] = waiting
            else:
                memory = _Memory(size, np.uint8)
        array = np.ndarray(shape, dtype, memory)
        self._lent[id(memory)] = weakref.ref(array, functools.partial(self._let_go, memory))
        return array

    def _let_go(self, memory: _Memory, _: object) -> None:
        """Called in any thread at any moment, also in one that holds the lock."""
        del self._lent[id(memory)]
        self._returned.append(memory)
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
            finally:
                self._lock.release()

    def _take_back(self) -> None:
        """Put what was let go of among what waits, as far as that may be. The caller holds the
        lock."""
        while self._returned:
            memory = self._returned.popleft()
            size = len(memory)
            waiting = self._waiting.pop(size, [])
            waiting.append(memory)
            self._waiting[size] = waiting
            self._kept_bytes += size
            while self._kept_bytes > KEPT_BYTES:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        size, waiting = next(iter(self._waiting.items()))
        if waiting:
            waiting.pop(0)
            self._kept_bytes -= size
        if not waiting:
            del self._waiting[size]


_of_this_process = UsedMemory()
empty_array = _of_this_process.empty
forget = _of_this_process.forget
