"""Many ranks in one process, each with a socket of its own: what a tap sends, when a tap sends it,
without a tap's thread.

Arguments: endpoint, run, first rank, how many, world size, seconds, scalars a second of
each. It waits for a line on standard input once all of its ranks are known to the daemon, and
prints a line of JSON at its end: batches sent, sent again, how long each waited for its
acknowledgement, and the interval that was asked for last of the rank that was asked for least,
with how many batches were made at each one's last.

A rank logs `TAGS` tags at equal times; at step s the value of rank k is k + s. So it is
known what the merged points are.
"""

from __future__ import annotations

import heapq
import json
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import zmq

from ranktap.pacing import Pacing
from ranktap_wire import frames, limits
from ranktap_wire.delivery import SendWindow
from ranktap_wire.messages import SESSION_ID_BYTES, Ack, ByeAnswer, Code, Error, Hello, Welcome
from ranktap_wire.records import Across, Batch, Columns, scalar_code

TAGS = 10
SILENCE_S = 5.0


@dataclass
class Rank:
    """One rank: go-back-N over its own DEALER."""

    number: int
    session: bytes
    socket: zmq.Socket[bytes]
    hello: Hello
    window: SendWindow[Batch] = field(
        default_factory=lambda: SendWindow(limits.IN_FLIGHT_BYTES, limits.IN_FLIGHT_MESSAGES)
    )
    pacing: Pacing = field(default_factory=Pacing)
    welcomed: bool = False
    gone: bool = False
    next_step: int = 0
    heard: float = 0.0
    pushed: dict[int, float] = field(default_factory=dict)
    """When a batch that is not acknowledged was made."""
    intervals: list[float] = field(default_factory=list)
    """What each batch was to collect for."""

    def log(self, upto: int, period_s: float, begin: float) -> None:
        """Make a batch of the steps before `upto`."""
        if upto <= self.next_step:
            return
        steps = np.arange(self.next_step, upto).repeat(TAGS)
        columns = Columns(
            [f"tag{number}" for number in range(TAGS)],
            np.full(TAGS, scalar_code(Across.MEAN), np.uint8),
            np.tile(np.arange(TAGS, dtype=np.int32), upto - self.next_step),
            steps,
            begin + steps * period_s,
            steps + float(self.number),
        )
        self.next_step = upto
        number = self.window.push(Batch(columns), 28 * len(columns))
        self.pushed[number] = time.monotonic()
        self.intervals.append(self.pacing.interval_s)

    def send(self) -> int:
        """Send what is due; how many batches."""
        sent = 0
        while self.welcomed and (numbered := self.window.due()) is not None:
            parts = frames.pack_batch(self.session, numbered.number, numbered.batch)
            try:
                self.socket.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:
                self.window.unsend()
                break
            sent += 1
        return sent

    def hear(self, waits: list[float]) -> None:
        """Take in all that the daemon has answered."""
        while True:
            try:
                answer = frames.read_answer(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            self.heard = time.monotonic()
            match answer:
                case Welcome():
                    self.pacing.asked(answer.interval)
                    self.welcomed = True
                    self.window.rewind()
                case Ack():
                    self.pacing.asked(answer.interval)
                    self._acknowledged(answer.number, waits)
                case ByeAnswer():
                    self.gone = True
                case Error(code=Code.GAP, number=int(number)):
                    self._acknowledged(number, waits)
                    self.window.rewind()
                case Error(code=Code.UNKNOWN_SESSION):
                    self.say_hello()
                case Error():
                    raise RuntimeError(f"rank {self.number}: {answer.code}: {answer.text}")

    def _acknowledged(self, number: int, waits: list[float]) -> None:
        for numbered in self.window.acknowledged(number):
            waits.append(time.monotonic() - self.pushed.pop(numbered.number))

    def say_hello(self) -> None:
        self.hello.first = self.window.first_unacknowledged
        self.socket.send_multipart(frames.pack_hello(self.hello))


def main(
    endpoint: str, run: str, first: int, count: int, world_size: int, seconds: float,
    scalars_per_s: float,
) -> None:  # fmt: skip
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * count + 100)
    poller = zmq.Poller()
    ranks: dict[zmq.Socket[bytes], Rank] = {}
    for number in range(first, first + count):
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(endpoint)
        session = number.to_bytes(SESSION_ID_BYTES, "little")
        # As if eight of them were on a host.
        hello = Hello(session, run, number, world_size, f"node-{number // 8}", number, 1,
                      time.time(), about={"device": f"cuda:{number % 8}"})  # fmt: skip
        ranks[socket] = rank = Rank(number, session, socket, hello)
        poller.register(socket, zmq.POLLIN)
        rank.say_hello()
    waits: list[float] = []
    while not all(rank.welcomed for rank in ranks.values()):
        for socket, _ in poller.poll(1_000):
            ranks[socket].hear(waits)
    print("ready", flush=True)
    sys.stdin.readline()

    period_s = TAGS / scalars_per_s
    begin, wall = time.monotonic(), time.time()
    steps = round(seconds / period_s)
    # Ranks do not all send at the same moment.
    turns = [
        (begin + limits.BATCH_INTERVAL_S * (index / count), rank.number, rank)
        for index, rank in enumerate(ranks.values())
    ]
    sent = 0
    waits.clear()
    while turns:
        at, number, rank = heapq.heappop(turns)
        time.sleep(max(0.0, at - time.monotonic()))
        now = time.monotonic()
        # As a tap does it: answers are read at a turn, whenever they come.
        rank.hear(waits)
        if rank.pacing.turn(now):
            rank.log(min(steps, int((now - begin) / period_s)), period_s, wall)
        if len(rank.window) and now - max(rank.heard, begin) > SILENCE_S:
            rank.heard = now
            rank.window.rewind()
        sent += rank.send()
        if rank.next_step < steps or len(rank.window):
            heapq.heappush(turns, (rank.pacing.next_turn_at, number, rank))
    took_s = time.monotonic() - begin
    for rank in ranks.values():
        rank.socket.send_multipart(frames.pack_bye(rank.session))
    while not all(rank.gone for rank in ranks.values()):
        for socket, _ in poller.poll(1_000):
            ranks[socket].hear(waits)
    quantiles = np.percentile(waits, [50, 99, 100]).tolist()
    intervals = [rank.intervals for rank in ranks.values()]
    paced = sum(each.count(each[-1]) for each in intervals)
    print(json.dumps({"steps": steps, "sent": sent, "batches": len(waits), "waits_s": quantiles,
                      "took_s": took_s, "interval_s": min(each[-1] for each in intervals),
                      "paced": paced}), flush=True)  # fmt: skip
    context.destroy(linger=0)


if __name__ == "__main__":
    where, name, *numbers = sys.argv[1:]
    a, b, c = map(int, numbers[:3])
    main(where, name, a, b, c, *map(float, numbers[3:]))
