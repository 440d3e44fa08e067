"""Large tensors on one machine: over the ipc socket, and through shared memory.

Bare: both sides do nothing but what has to be done to hand bytes over. A producer copies each
message, as a snapshot is, and may have 16 of them under way; the consumer reads them in the same
way in which the intake does, into a journal with a sync for each 8 MiB or into nothing, and then
acknowledges them. Through shared memory the producer copies into a slot, and sends its number.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, Final

import numpy as np
import zmq

from benchmarks import tally
from benchmarks.cases import Case, Figures
from benchmarks.work import many
from ranktap_wire import limits
from ranktap_wire.journal import JournalReader, JournalWriter
from ranktap_wire.segment import Entry

SLOTS: Final = 16
GROUP_BYTES: Final = 8 * limits.MIB
SIZES: Final = {"1 MiB": limits.MIB, "8 MiB": 8 * limits.MIB}


def transports(directory: Path) -> Figures:
    figures = {}
    for said, nbytes in SIZES.items():
        for journals in (False, True):
            for way in ("ipc", "shared memory"):
                place = directory / f"{nbytes}-{journals}-{way}"
                place.mkdir()
                end = "to the journal" if journals else "handed over"
                name, count = f"{said}, {end}, {way}", many(128, 16) * limits.MIB // nbytes
                seconds, arrived = _hand_over(count, way, nbytes, place, journals)
                if journals:
                    arrived = _journaled(place / "journal", count, nbytes)
                tally.read_back({name: count}, {name: arrived})
                figures[name] = count * nbytes / seconds / 1e6
    return figures


def _hand_over(
    count: int, way: str, nbytes: int, directory: Path, journals: bool
) -> tuple[float, int]:
    """How many seconds that takes, and how many messages the consumer says it has taken."""
    endpoint = f"ipc://{directory}/socket"
    slots = shared_memory.SharedMemory(create=True, size=SLOTS * nbytes)
    arguments = (endpoint, slots.name if way != "ipc" else None, nbytes, directory, journals)
    consumer = multiprocessing.get_context("spawn").Process(target=_consume, args=arguments)
    consumer.start()
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.connect(endpoint)
            dealer.send(b"is it there")
            dealer.recv()
            seconds, arrived = _produce(dealer, count, None if way == "ipc" else slots, nbytes)
            dealer.send(b"end")
    finally:
        consumer.join()
        slots.close()
        slots.unlink()
    return seconds, arrived


def _journaled(directory: Path, count: int, nbytes: int) -> int:
    """How many entries with so many bytes there are."""
    reader = JournalReader(directory)
    entries = reader.entries(count)
    found = sum(isinstance(each, Entry) and len(each.frames[0]) == nbytes for each in entries)
    reader.close()
    return found


def _produce(
    dealer: zmq.Socket[bytes], count: int, slots: shared_memory.SharedMemory | None, nbytes: int
) -> tuple[float, int]:
    tensor = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)
    # Memory that was used before on both ways.
    ring: Any = np.zeros(SLOTS * nbytes, np.uint8) if slots is None else slots.buf
    places = [np.frombuffer(ring, np.uint8, nbytes, slot * nbytes) for slot in range(SLOTS)]
    for place in places:
        place[...] = 1
    arrived = 0
    started = time.perf_counter()
    for number in range(count):
        if number - arrived == SLOTS:
            arrived += int(dealer.recv())
        place = places[number % SLOTS]
        place[...] = tensor
        dealer.send(place if slots is None else b"%d" % (number % SLOTS), copy=slots is not None)
    while arrived < count:
        arrived += int(dealer.recv())
    seconds = time.perf_counter() - started
    del places, place
    return seconds, arrived


def _consume(
    endpoint: str, slots_name: str | None, nbytes: int, directory: Path, journals: bool
) -> None:
    slots = None if slots_name is None else shared_memory.SharedMemory(slots_name)
    journal = JournalWriter(directory / "journal")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        for peer, group in _groups(router, nbytes):
            # Large frames stay where libzmq received them; those in slots, where they lie.
            taken = [
                frame.buffer
                if slots is None
                else slots.buf[int(frame.bytes) * nbytes : (int(frame.bytes) + 1) * nbytes]
                for frame in group
            ]
            if journals:
                journal.append([[each] for each in taken])
            del taken
            router.send_multipart([peer, b"%d" % len(group)])
    journal.close()
    if slots is not None:
        slots.close()


def _groups(router: zmq.Socket[bytes], nbytes: int) -> Iterator[tuple[bytes, list[zmq.Frame]]]:
    """What has come, up to the bytes of a group."""
    peer, _ = router.recv_multipart()
    router.send_multipart([peer, b"yes"])
    while True:
        group = [router.recv_multipart(copy=False)[1]]
        while len(group) * nbytes < GROUP_BYTES:
            try:
                group.append(router.recv_multipart(zmq.NOBLOCK, copy=False)[1])
            except zmq.Again:
                break
        is_over = group[-1].bytes == b"end"
        if is_over:
            group.pop()
        if group:
            yield peer, group
        if is_over:
            return


_SIDES: Final[dict[str, Callable[[Path], Figures]]] = {"ranktap": transports}

TRANSPORT_CASES = [
    Case(
        "transport",
        "large tensors on one machine",
        _SIDES,
        {},
        {
            f"{said}, {end}, {way}": "MB/s"
            for said in SIZES
            for end in ("handed over", "to the journal")
            for way in ("ipc", "shared memory")
        },
        higher_is_better=True,
        group="parts",
    )
]
