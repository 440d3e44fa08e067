"""What the hot paths do, counted: calls, objects and bytes, which are the same on every machine.

A time would differ from one machine to the next, and from one minute to the next. These
counts do not, and they are what the times come from: after 50 ms of training each function
of Python costs about 2.5 us, because its code has left the caches; an object a scalar is
one more for the garbage collector; a copy of a megabyte costs 100 us, and 500 in fresh memory.

Each bound is the present figure and a little room for other releases of Python and numpy.
Both are printed: `pytest -rP tests/contract/test_hot_paths.py`.
"""

from __future__ import annotations

import gc
import itertools
import os
import secrets
import threading
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zmq

from ranktap.keys import Address
from ranktap.outbox import Outbox, Sealed
from ranktap.sender import Sender
from ranktap.tap import Tap
from ranktap_wire import frames
from ranktap_wire.messages import Ack, Hello, Welcome
from ranktap_wire.records import Across, Batch, Blob, Buffer, Kind, byte_view
from ranktap_wire.segment import Entry, Position
from ranktapd.config import Config
from ranktapd.entries import BatchAccepted, SessionOpened, Words, pack_entry
from ranktapd.fold import Fold
from ranktapd.intake import Intake
from ranktapd.runs import Run, RunPlace
from ranktapd.status import Metrics
from tests.support.counted import Calls
from tests.support.messages import as_received

SESSION = bytes(16)
PICTURE = np.zeros((3, 512, 512), np.uint8)
VALUES = np.zeros(1_000_000, np.float32)


@pytest.fixture
def tap() -> Iterator[Tap]:
    """A tap whose sender is still looking for a daemon: only the calling thread does anything."""
    is_there, is_over = threading.Event(), threading.Event()

    def locate() -> Address:
        is_there.set()
        is_over.wait()
        raise OSError("no daemon")

    made = Tap(Hello(secrets.token_bytes(16), "run", 0, 1, "host", 1, 1, 0.0), locate, 256 << 20)
    # Memory is counted in all threads: the sender's beginning must be over.
    assert is_there.wait(30)
    yield made
    is_over.set()
    made.close(0)


@pytest.fixture
def fold() -> Iterator[Fold]:
    """A run of one rank that has a batch behind it."""
    with ThreadPoolExecutor(1) as executor:
        fold = Fold(executor)
        take_in(fold, 1, SessionOpened(SESSION, 0, 1, "host", 1, 1.0, None, 0))
        yield fold


def peak_bytes(act: Callable[[], object]) -> int:
    """How much more memory than before there was at most; numpy's arrays count."""
    tracemalloc.start()
    try:
        act()  # what is made once and kept
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        act()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def hold(what: str, figure: float, bound: float) -> None:
    """Print a figure, and fail when it is over its bound."""
    print(f"{what}: {figure:g}, at most {bound:g}")
    assert figure <= bound, what


def outbox_with(rows: int) -> Outbox:
    """So many scalars of 50 tags, waiting."""
    outbox = Outbox(256 << 20)
    tags = [outbox.add_tag(f"layer{number}/value", Across.MEAN) for number in range(50)]
    for row in range(rows):
        outbox.rows += (tags[row % 50], row // 50, 1e9, 0.5)
    return outbox


def sealed(outbox: Outbox) -> Sealed:
    batch = outbox.take()
    assert batch is not None
    return batch


def take_in(fold: Fold, sequence: int, words: Words, parts: list[Buffer] | None = None) -> bytes:
    """One entry, a group of its own; what it gives to write."""
    packed = [memoryview(byte_view(frame)) for frame in pack_entry(words, parts or [])]
    after = Position(sequence, 1, 0)
    fold.apply(Entry(sequence, True, packed, after))
    return fold.close_group(str(after)).join()


def picture() -> Blob:
    return Blob(
        Kind.IMAGE, "image", 0, 1e9, Across.EACH, "uint8", PICTURE.shape,
        {"dataformats": "CHW"}, PICTURE,
    )  # fmt: skip


# -- in the training thread ---------------------------------------------------------------


def test_a_scalar_is_one_call_that_calls_nothing_of_python(tap: Tap) -> None:
    tap.scalar("loss", 0.5, 0)
    calls = Calls(lambda: tap.scalar("loss", 0.5, 1))
    hold("tap.scalar: functions of Python", calls.python, 1)
    hold("tap.scalar: functions of C (clock, length)", calls.c.total(), 2)


def test_a_scalar_leaves_nothing_for_the_garbage_collector(tap: Tap) -> None:
    tap.scalar("loss", 0.5, 0)
    gc.collect()
    gc.disable()
    try:
        before = gc.get_count()[0]
        for step in range(1_000):
            tap.scalar("loss", 0.5, step)
        hold("1,000 x tap.scalar: objects to be collected", gc.get_count()[0] - before, 5)
    finally:
        gc.enable()


def test_scalars_call_one_function_of_c_a_scalar(tap: Tap) -> None:
    values = {f"layer{number}/value": 0.5 for number in range(50)}
    tap.scalars(values, 0)
    calls = Calls(lambda: tap.scalars(values, 1))
    hold("tap.scalars of 50: functions of Python", calls.python, 3)
    hold("tap.scalars of 50: functions of C", calls.c.total(), 50 + 8)


def test_an_image_checks_only_what_is_new_and_copies_once(tap: Tap) -> None:
    tap.image("image", PICTURE, 0)
    calls = Calls(lambda: tap.image("image", PICTURE, 1))
    hold("tap.image: functions of Python", calls.python, 21)
    hold("tap.image: functions of C", calls.c.total(), 26)
    copies = peak_bytes(lambda: tap.image("image", PICTURE, 2)) / PICTURE.nbytes
    hold("tap.image: copies of the picture", copies, 1.02)


def test_a_histogram_checks_only_what_is_new_and_copies_once(tap: Tap) -> None:
    tap.histogram("weights", VALUES, 0)
    calls = Calls(lambda: tap.histogram("weights", VALUES, 1))
    hold("tap.histogram: functions of Python", calls.python, 25)
    hold("tap.histogram: functions of C", calls.c.total(), 27)
    copies = peak_bytes(lambda: tap.histogram("weights", VALUES, 2)) / VALUES.nbytes
    hold("tap.histogram: copies of the values", copies, 1.01)


def test_a_picture_is_copied_into_memory_that_was_used_before(tap: Tap) -> None:
    def log_and_let_go() -> None:
        for step in range(10):
            tap.image("image", PICTURE, step)
        while tap._outbox.take() is not None:
            pass  # nobody has it any more, as when it is acknowledged

    log_and_let_go()
    fresh = peak_bytes(log_and_let_go) / PICTURE.nbytes
    hold("10 x tap.image after 10 others: fresh memory, for each byte of one", fresh, 0.02)


def test_a_burst_of_pictures_wakes_the_sender_once(tap: Tap) -> None:
    def burst() -> None:
        for step in range(20):
            tap.image("image", PICTURE, step)

    hold("20 x tap.image: wake-ups of the sender", Calls(burst).c[os.write], 1)


# -- in the sender ------------------------------------------------------------------------


def test_a_batch_takes_as_many_calls_for_ten_thousand_scalars_as_for_a_hundred() -> None:
    few, many = (
        Calls(lambda: frames.pack_batch(SESSION, 1, sealed(outbox).batch))  # noqa: B023
        for outbox in (outbox_with(100), outbox_with(10_000))
    )
    hold("batch of 10,000 scalars, more calls than of 100", many.python - few.python, 0)
    hold("batch of scalars: functions of Python", many.python, 45)


def test_a_batch_of_scalars_takes_a_few_times_the_bytes_that_it_sends() -> None:
    outboxes = [outbox_with(10_000), outbox_with(10_000)]
    peak = peak_bytes(lambda: frames.pack_batch(SESSION, 1, sealed(outboxes.pop()).batch))
    hold("batch of scalars: bytes a scalar, of which 28 travel", peak / 10_000, 85)


def test_a_picture_is_sent_from_where_its_copy_lies() -> None:
    batch = Batch(None, [picture()])
    sent = frames.pack_batch(SESSION, 1, batch)
    assert any(isinstance(part, np.ndarray) and np.shares_memory(part, PICTURE) for part in sent)
    peak = peak_bytes(lambda: frames.pack_batch(SESSION, 1, batch))
    # msgpack reserves 256 KiB for a header, of which it touches what it writes.
    hold("batch of a picture: bytes besides the picture", peak, 300_000)


def test_a_turn_of_the_sender_calls_few_functions_while_it_has_the_interpreter(
    tmp_path: Path,
) -> None:
    endpoint = f"ipc://{tmp_path}/d"
    outbox = outbox_with(0)
    hello = Hello(SESSION, "run", 1, 2, "host", 1, 1, 0.0)
    # Its thread is not started: this one takes the turns, so that they can be counted.
    sender = Sender(outbox, hello, lambda: Address(endpoint))
    context = zmq.Context()
    daemon = context.socket(zmq.ROUTER)
    daemon.bind(endpoint)
    daemon.setsockopt(zmq.RCVTIMEO, 30_000)
    try:
        sender._connection.open()
        sender._connection.connect()
        peer, *_ = daemon.recv_multipart()
        daemon.send_multipart([peer, *frames.pack_answer(Welcome(last=0))])
        while not sender._connection.is_welcomed:
            sender._turn()
        numbers = itertools.count(1)

        def batch_turn() -> Calls:
            """The turn that sends 250 scalars."""
            outbox.rows += outbox_with(250).rows
            calls = Calls(sender._turn)
            while outbox:  # an answer has woken it before it was time
                calls = Calls(sender._turn)
            message = daemon.recv_multipart()
            while b"beat" in message[1]:
                message = daemon.recv_multipart()
            assert len(message) == 8
            daemon.send_multipart([peer, *frames.pack_answer(Ack(next(numbers)))])
            assert sender._connection._socket is not None
            sender._connection._socket.poll(30_000)
            return calls

        batch_turn()
        turns = [batch_turn() for _ in range(5)]
        sender._turn()
        idle = min(Calls(sender._turn).python for _ in range(3))
        hold("a turn with a batch: functions of Python", min(turn.python for turn in turns), 75)
        hold("a turn without one: functions of Python", idle, 30)
    finally:
        sender._connection.disconnect()
        sender._connection.close()
        daemon.close(linger=0)
        context.destroy(linger=0)


# -- in the intake ------------------------------------------------------------------------


class Arrivals:
    """What the intake uses of a ROUTER: what has arrived, and how often it answers."""

    def __init__(self) -> None:
        self.waiting: deque[list[zmq.Frame]] = deque()
        self._frames: deque[zmq.Frame] = deque()
        self.answers = 0

    def recv(self, flags: int, copy: bool) -> zmq.Frame:
        if not self._frames:
            if not self.waiting:
                raise zmq.Again
            self._frames += self.waiting.popleft()
        return self._frames.popleft()

    def send_multipart(self, parts: list[Buffer], flags: int) -> None:
        self.answers += 1


class Desk:
    """An intake with a run of one session, on a disk."""

    def __init__(self, directory: Path) -> None:
        self.arrivals = Arrivals()
        self.numbers = itertools.count(1)
        place = RunPlace.of(directory, directory, "run")
        self.run = Run.open(place, sync=True, segment_bytes=1 << 30)
        self.intake = Intake(
            self.arrivals,  # type: ignore[arg-type]
            {"run": self.run}, lambda name, suffix: self.run, lambda run: None, Metrics(), Config(),
        )  # fmt: skip
        hello = Hello(SESSION, "run", 0, 1, "host", 1, 1, 1.0)
        self.arrive([frames.pack_hello(hello)])
        self.intake.turn()

    def batches(self, count: int, rows: int) -> list[list[Buffer]]:
        """So many batches that follow the last one."""
        batch = sealed(outbox_with(rows)).batch
        return [frames.pack_batch(SESSION, next(self.numbers), batch) for _ in range(count)]

    def arrive(self, messages: list[list[Buffer]]) -> None:
        """They are in the socket; making their frames is its work, not the intake's."""
        for message in messages:
            parts = [bytes(byte_view(part)) for part in message]
            self.arrivals.waiting.append(as_received([b"peer", *parts]))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    desk.arrive(desk.batches(2, 100))
    desk.intake.turn()  # what is made once
    yield desk
    desk.run.close()


def calls_of_round(desk: Desk, count: int, rows: int) -> Calls:
    """What the intake does about so many batches that have arrived."""
    desk.arrive(desk.batches(count, rows))
    return Calls(desk.intake.turn)


def test_the_intake_takes_as_many_calls_for_ten_thousand_scalars_as_for_a_hundred(
    desk: Desk,
) -> None:
    few, many = calls_of_round(desk, 1, 100), calls_of_round(desk, 1, 10_000)
    # Per column, of which there are six: from 64 KiB on it is referred to, and not copied.
    hold("intake, 10,000 scalars, more calls than of 100", many.python - few.python, 16)


def test_a_round_of_the_intake_is_one_write_one_sync_and_one_answer_a_session(desk: Desk) -> None:
    one, twenty = calls_of_round(desk, 1, 100), calls_of_round(desk, 20, 100)
    hold("intake, a batch: functions of Python", (twenty.python - one.python) / 19, 115)
    hold("intake, a round of one batch: functions of Python", one.python, 180)
    hold("intake, 20 batches: writes", twenty.c[os.writev], 1)
    hold("intake, 20 batches: syncs", twenty.c[os.fdatasync], 1)
    before = desk.arrivals.answers
    calls_of_round(desk, 20, 100)
    hold("intake, 20 batches of a session: answers", desk.arrivals.answers - before, 1)


def test_a_batch_is_checked_and_journaled_with_little_more_memory_than_it_has(desk: Desk) -> None:
    rows, rounds = 10_000, iter([desk.batches(1, 10_000), desk.batches(1, 10_000)])
    desk.arrive([batch for batches in rounds for batch in batches])
    waiting = [*desk.arrivals.waiting]
    desk.arrivals.waiting.clear()

    def turn() -> None:
        desk.arrivals.waiting.append(waiting.pop(0))
        desk.intake.turn()

    hold("intake, a batch: bytes a scalar besides those received", peak_bytes(turn) / rows, 40)


# -- in the worker ------------------------------------------------------------------------


def test_the_worker_takes_as_many_calls_for_ten_thousand_scalars_as_for_a_hundred(
    fold: Fold,
) -> None:
    packed = [
        frames.pack_batch(SESSION, number, sealed(outbox_with(rows)).batch)
        for number, rows in enumerate((10_000, 100, 10_000), 1)
    ]

    def of(number: int) -> Calls:
        words = BatchAccepted(SESSION, number)
        return Calls(lambda: take_in(fold, number + 1, words, packed[number - 1]))

    of(1)  # what is made once for each tag
    few, many = of(2), of(3)
    # Per block of rows, and per length of a record (a step of more digits makes it longer).
    hold("10,000 scalars written, more calls than for 100", many.python - few.python, 40)
    hold("scalars written: functions of Python", many.python, 260)


def test_scalars_are_written_with_a_few_times_the_memory_that_their_events_have(fold: Fold) -> None:
    packed = [
        frames.pack_batch(SESSION, number, sealed(outbox_with(10_000)).batch)
        for number in (1, 2, 3)
    ]
    sequence = iter((1, 2, 3))

    def write() -> int:
        number = next(sequence)
        words = BatchAccepted(SESSION, number)
        return len(take_in(fold, number + 1, words, packed[number - 1]))

    nbytes = write()
    hold("scalars written: times the bytes of their events", peak_bytes(write) / nbytes, 9)
    hold("scalars written: bytes each", nbytes / 10_000, 52)


def test_a_picture_is_written_with_little_more_memory_than_it_has(fold: Fold) -> None:
    packed = frames.pack_batch(SESSION, 1, Batch(None, [picture()]))
    sequence = iter(range(2, 10))

    def write() -> None:
        take_in(fold, next(sequence), BatchAccepted(SESSION, 1), packed)

    # Interleaved, and filtered in both ways, of which the sizes are taken.
    hold("picture written: times its own size", peak_bytes(write) / PICTURE.nbytes, 5)
