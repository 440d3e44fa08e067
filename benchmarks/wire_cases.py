"""The wire beside a bare pyzmq echo of the same bytes, and the intake with a thousand sessions."""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks import tally, work
from benchmarks.cases import RUN, Case, Figures, expect
from benchmarks.service import Service
from benchmarks.work import many, timed
from ranktap_wire import frames
from ranktap_wire.messages import Ack, BatchMessage, ByeAnswer, Hello, Welcome
from ranktap_wire.records import Across, Batch, Blob, Buffer, Columns, Kind, scalar_code

SESSION = bytes(16)
IN_FLIGHT = 16
"""Messages that are not answered yet: what a sender has, at a batch of 1 MiB."""

Socket = zmq.Socket[bytes]


def _scalars(rows: int, tags: int = 50, first_step: int = 0) -> Batch:
    index = np.arange(rows, dtype=np.int32) % tags
    steps = first_step + np.arange(rows) // tags
    return Batch(
        Columns(
            _tags(tags),
            np.full(tags, scalar_code(Across.MEAN), np.uint8),
            index, steps, 1e9 + steps, np.full(rows, 0.5),
        )
    )  # fmt: skip


def _tags(count: int) -> list[str]:
    return [f"layer{number}/value" for number in range(count)]


def _picture() -> Batch:
    data = work.image()
    where = {"dataformats": "CHW"}
    blob = Blob(Kind.IMAGE, "image", 0, 1e9, Across.EACH, "uint8", data.shape, where, data)
    return Batch(None, [blob])


BATCHES: dict[str, tuple[Callable[[], Batch], int]] = {
    "batches of 100 scalars": (lambda: _scalars(100), 20_000),
    "batches of 10,000 scalars": (lambda: _scalars(10_000), 3_000),
    "batches of an image of 786 kB": (_picture, 1_500),
}
"""What is sent, and how often."""


# -- both sides of the wire --------------------------------------------------------------------


def _daemon(endpoint: str, is_bare: bool) -> None:
    """Answer each message, in a process of its own, until one of a single frame comes."""
    context: zmq.Context[Socket] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    while True:
        peer, *received = router.recv_multipart(copy=False)
        if len(received) == 1:
            break
        parts: list[Buffer] = [
            frame.buffer if len(frame) >= zmq.COPY_THRESHOLD else frame.bytes for frame in received
        ]
        if is_bare:
            router.send_multipart([peer.bytes, b"heard"])
            continue
        message = frames.read_message(parts)
        assert isinstance(message, BatchMessage)
        frames.read_batch(parts)
        router.send_multipart([peer.bytes, *frames.pack_answer(Ack(message.number, None))])
    context.destroy(linger=0)


@contextmanager
def _peer(is_bare: bool) -> Iterator[Socket]:
    with tempfile.TemporaryDirectory(prefix="ranktap-bench-") as directory:
        endpoint = f"ipc://{directory}/wire"
        process = multiprocessing.get_context("spawn").Process(
            target=_daemon, args=(endpoint, is_bare)
        )
        process.start()
        context: zmq.Context[Socket] = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.connect(endpoint)
        try:
            dealer.send_multipart(frames.pack_batch(SESSION, 1, _scalars(1)))
            dealer.recv_multipart()  # it is there
            yield dealer
            dealer.send(b"end")
            process.join(10)
        finally:
            process.kill()
            process.join()
            context.destroy(linger=0)


def _wire(*, is_bare: bool) -> Callable[[Path], Figures]:
    def side(directory: Path) -> Figures:
        figures: Figures = {}
        with _peer(is_bare) as dealer:
            for name, (make, full) in BATCHES.items():
                batch, count = make(), many(full, 20)
                packed = frames.pack_batch(SESSION, 1, batch)
                nbytes = sum(memoryview(part).nbytes for part in packed)

                def send(number: int, batch: Batch = batch, packed: Any = packed) -> None:
                    parts = packed if is_bare else frames.pack_batch(SESSION, number, batch)
                    dealer.send_multipart(parts, copy=False)

                answered = 0
                with timed() as took:
                    for number in range(1, count + 1):
                        send(number)
                        if number > IN_FLIGHT:
                            answered += _hear(dealer, is_bare)
                    while answered < count:
                        answered += _hear(dealer, is_bare)
                tally.read_back({name: count}, {name: answered})
                figures[name] = nbytes * count / took.seconds / 1e6
        return figures

    return side


def _hear(dealer: Socket, is_bare: bool) -> int:
    answer = dealer.recv_multipart()
    if not is_bare:
        assert isinstance(frames.read_answer(answer), Ack)
    return 1


# -- a thousand sessions -----------------------------------------------------------------------

SESSIONS, ROWS = 1_000, 10


def intake_ranktap(directory: Path) -> Figures:
    """A ranktapd and as many connections as there are ranks, each with a batch at a time that is
    not acknowledged: messages a second until all are, which is until they are on disk."""
    ranks, rounds = many(SESSIONS, 20), many(20, 3)
    with Service(directory) as service, _dealers(service.endpoint, ranks) as dealers:
        started = time.time()
        for rank, dealer in enumerate(dealers):
            hello = Hello(_identity(rank), RUN, rank, ranks, f"node{rank // 8}", rank, 1, started)
            dealer.send_multipart(frames.pack_hello(hello))
        for dealer in dealers:
            assert isinstance(frames.read_answer(dealer.recv_multipart()), Welcome)
        batches = [_scalars(ROWS, ROWS, step) for step in range(rounds)]
        messages = [
            [frames.pack_batch(_identity(rank), number, batch) for rank in range(ranks)]
            for number, batch in enumerate(batches, 1)
        ]
        spent = service.cpu_s()
        with timed() as took:
            for number, of_round in enumerate(messages, 1):
                for dealer, parts in zip(dealers, of_round, strict=True):
                    dealer.send_multipart(parts)
                for dealer in dealers:
                    answer = frames.read_answer(dealer.recv_multipart())
                    assert isinstance(answer, Ack) and answer.number == number
        spent = service.cpu_s() - spent
        for rank, dealer in enumerate(dealers):
            dealer.send_multipart(frames.pack_bye(_identity(rank)))
        for dealer in dealers:
            assert isinstance(frames.read_answer(dealer.recv_multipart()), ByeAnswer)
        service.end()
    expect(directory, dict.fromkeys(_tags(ROWS), rounds))  # merged
    tally.note({"messages acknowledged": ranks * rounds})
    return {
        "messages": ranks * rounds / took.seconds,
        "CPU time of the main process, a message": spent / (ranks * rounds) * 1e6,
    }


def intake_bare(directory: Path) -> Figures:
    """A ROUTER that answers each message, and keeps nothing."""
    ranks, rounds = many(SESSIONS, 20), many(20, 3)
    parts = frames.pack_batch(SESSION, 1, _scalars(ROWS, ROWS))
    answered = 0
    with tempfile.TemporaryDirectory(prefix="ranktap-bench-") as sockets:
        endpoint = f"ipc://{sockets}/wire"
        process = multiprocessing.get_context("spawn").Process(
            target=_daemon, args=(endpoint, True)
        )
        process.start()
        try:
            with _dealers(endpoint, ranks) as dealers:
                for dealer in dealers:
                    dealer.send_multipart(parts)
                for dealer in dealers:
                    dealer.recv_multipart()
                with timed() as took:
                    for _ in range(rounds):
                        for dealer in dealers:
                            dealer.send_multipart(parts)
                        for dealer in dealers:
                            dealer.recv_multipart()
                            answered += 1
                dealers[0].send(b"end")
                process.join(10)
        finally:
            process.kill()
            process.join()
    tally.read_back({"messages answered": ranks * rounds}, {"messages answered": answered})
    return {"messages": ranks * rounds / took.seconds}


def _identity(rank: int) -> bytes:
    return rank.to_bytes(16, "little")


@contextmanager
def _dealers(endpoint: str, count: int) -> Iterator[list[Socket]]:
    context: zmq.Context[Socket] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * count + 100)
    dealers = []
    for _ in itertools.repeat(None, count):
        dealer = context.socket(zmq.DEALER)
        dealer.connect(endpoint)
        dealers.append(dealer)
    try:
        yield dealers
    finally:
        context.destroy(linger=0)


WIRE_CASES = [
    Case(
        "wire",
        "the wire over ipc, beside a bare echo of the same bytes",
        {"ranktap": _wire(is_bare=False), "bare": _wire(is_bare=True)},
        {},
        dict.fromkeys(BATCHES, "MB/s"),
        higher_is_better=True,
        group="parts",
    ),
    Case(
        "intake",
        f"intake with {SESSIONS:,} sessions, a batch of {ROWS} scalars each at a time",
        {"ranktap": intake_ranktap, "bare": intake_bare},
        {},
        {"messages": "1/s", "CPU time of the main process, a message": "us"},
        higher_is_better=True,
        group="parts",
    ),
]
