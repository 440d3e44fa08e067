"""Memory of snapshots: used again, and never by two at a time."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest

from ranktap.used_memory import KEPT_BYTES, SMALL_BYTES, UsedMemory
from ranktap_wire import limits

BYTE = np.dtype(np.uint8)
FLOAT = np.dtype("<f4")


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_what_was_let_go_of_is_given_to_the_next_of_its_size() -> None:
    memory = UsedMemory()
    first = memory.empty((3, 512, 512), BYTE)
    at = address(first)
    del first
    assert address(memory.empty((196_608,), FLOAT)) == at


def test_the_last_that_was_let_go_of_is_given_first() -> None:
    memory = UsedMemory()
    arrays = [memory.empty((1 << 20,), BYTE) for _ in range(3)]
    places = [address(array) for array in arrays]
    for _ in range(3):
        del arrays[0]
    again = [memory.empty((1 << 20,), BYTE) for _ in range(3)]
    assert [address(array) for array in again] == places[::-1]


def test_a_view_keeps_its_memory() -> None:
    memory = UsedMemory()
    view = memoryview(memory.empty((1 << 20,), BYTE).reshape(1024, 1024)[5:])
    np.asarray(view)[...] = 7
    other = memory.empty((1 << 20,), BYTE)
    other[...] = 9
    assert (np.asarray(view) == 7).all()


def test_another_size_is_other_memory_and_small_arrays_are_the_c_librarys() -> None:
    memory = UsedMemory()
    del_me = memory.empty((1 << 20,), BYTE)
    at = address(del_me)
    del del_me
    assert address(memory.empty((1 << 19,), BYTE)) != at
    assert memory.empty((SMALL_BYTES - 1,), BYTE).base is None


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (7,), (3, 300, 301)])
@pytest.mark.parametrize("dtype", [BYTE, FLOAT, np.dtype("<c16"), np.dtype("?")])
def test_arrays_are_as_asked_for(shape: tuple[int, ...], dtype: np.dtype) -> None:
    array = UsedMemory().empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.flags.c_contiguous and array.flags.writeable


def test_what_waits_is_bounded_and_the_sizes_not_asked_for_go_first() -> None:
    memory = UsedMemory()
    old = [memory.empty((limits.MIB,), BYTE) for _ in range(40)]
    old.clear()
    new = [memory.empty((2 * limits.MIB,), BYTE) for _ in range(30)]
    new.clear()
    assert memory._kept_bytes == sum(
        size * len(waiting) for size, waiting in memory._waiting.items()
    )
    assert memory._kept_bytes <= KEPT_BYTES
    assert len(memory._waiting[2 * limits.MIB]) == 30
    assert len(memory._waiting[limits.MIB]) == 4


def test_threads_that_take_and_let_go_never_share_memory() -> None:
    memory, wrong = UsedMemory(), []

    def work(mark: int) -> None:
        random = np.random.default_rng(mark)
        held: list[np.ndarray] = []
        for _ in range(400):
            array = memory.empty((int(random.integers(1, 4)) * SMALL_BYTES,), BYTE)
            array[...] = mark
            held.append(array)
            if len(held) > 3:
                oldest = held.pop(0)
                if not (oldest == mark).all():
                    wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not memory._lent


def test_memory_that_the_collector_frees_while_some_is_asked_for_is_taken_back() -> None:
    memory = UsedMemory()
    for _ in range(50):
        ring: list[object] = [memory.empty((SMALL_BYTES,), BYTE)]
        ring.append(ring)
        del ring
    with memory._lock:  # as a thread that is about to be given some
        gc.collect()
    assert not memory._lent
    taken = memory.empty((SMALL_BYTES,), BYTE)
    assert memory._kept_bytes + taken.nbytes == 50 * SMALL_BYTES


def test_a_forked_child_begins_anew_though_another_thread_held_the_lock() -> None:
    from ranktap import base, used_memory

    assert base._after_fork_in_child  # which is called in the child

    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with used_memory._of_this_process._lock:
            is_held.set()
            may_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    child = os.fork()
    if child == 0:
        used_memory.empty_array((1 << 20,), BYTE)[...] = 1
        os._exit(0)
    may_go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
