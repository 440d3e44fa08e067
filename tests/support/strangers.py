"""Peers of a daemon that do not behave, and a plain account of what it must make of them."""

from __future__ import annotations

import random
import socket
import urllib.request
from collections import Counter
from collections.abc import Callable

import numpy as np
import zmq
from prometheus_client.parser import text_string_to_metric_families

from ranktap_wire import frames
from ranktap_wire.messages import (
    Ack,
    BatchMessage,
    Beat,
    Bye,
    ByeAnswer,
    Code,
    DaemonMessage,
    Error,
    FrameError,
    Hello,
    Welcome,
)
from ranktap_wire.records import Across, Batch, Buffer, Columns
from tests.support import messages
from tests.support.messages import as_bytes
from tests.support.waiting import wait_for

RUN = "strangers"
WORLD_SIZE = 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def metrics(port: int) -> dict[tuple[str, str], float]:
    """The daemon's counters by name and label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def code_of(parts: list[bytes]) -> str | None:
    """What the daemon must answer to who has no session; None: that is for it to say."""
    try:
        message = frames.read_message(parts)
    except FrameError as error:
        return str(error.code)
    return None if isinstance(message, Hello) else str(Code.UNKNOWN_SESSION)


class Stranger:
    """A DEALER that sends whatever it is told to, and counts what must come of it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.sent = 0
        self.kinds: Counter[str] = Counter()
        """Messages by what the daemon's counter must call them."""
        self.refused: Counter[str] = Counter()
        """Messages by the code that they must be refused with."""
        self.answers: list[DaemonMessage] = []

    def send(self, parts: list[Buffer], kind: str, refused: str | None = None) -> None:
        self.sent += 1
        self.kinds[kind] += 1
        if refused is not None:
            self.refused[refused] += 1
        # What the daemon says is read all the time: it drops the answers of who does not read.
        while True:
            self.listen()
            try:
                self.socket.send_multipart(parts or [b""], zmq.NOBLOCK)  # type: ignore[arg-type]
                return
            except zmq.Again:
                self.socket.poll(1_000, zmq.POLLIN | zmq.POLLOUT)

    def listen(self) -> None:
        while self.socket.poll(0):
            self.answers.append(frames.read_answer(self.socket.recv_multipart()))

    def send_malformed(self, rng: random.Random, session: bytes) -> None:
        """A message that is right for somebody, made wrong for everybody."""
        while True:
            parts = some_message(rng, session)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                parts = rng.choice(messages.MUTATIONS)(rng, parts) if parts else parts
            code = code_of(parts or [b""])
            if code is not None:
                break  # not a hello that is still right: it would open a run
        kind = "invalid" if code != Code.UNKNOWN_SESSION else kind_of(parts)
        self.send([*parts], kind, code)

    def send_to_unknown(self, rng: random.Random, session: bytes) -> None:
        """A message that is right, for a session that this connection has not opened."""
        what: Callable[[], list[Buffer]] = rng.choice(
            (
                lambda: frames.pack_beat(session, 1.0),
                lambda: frames.pack_bye(session),
                lambda: frames.pack_batch(session, rng.choice((1, 2, 1 << 40)), messages.batch()),
                lambda: a_batch(session, rng.randrange(1, 99)),
            )
        )
        parts = as_bytes(what())
        self.send([*parts], kind_of(parts), str(Code.UNKNOWN_SESSION))

    def errors(self) -> Counter[str]:
        self.listen()
        return Counter(answer.code for answer in self.answers if isinstance(answer, Error))

    def close(self) -> None:
        self.socket.close(linger=0)


class Talker(Stranger):
    """One with a session: some of its batches are right, and must arrive, whatever is between."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, rank: int, session: bytes
    ) -> None:
        super().__init__(context, endpoint)
        self.rank = rank
        self.session = session
        self.last = 0
        """The last number that the daemon has seen."""
        self.journaled: list[int] = []
        """Batches whose records must be in the event file."""
        self.verdicts: Counter[str] = Counter()
        self.say_hello(first=1, last=0)

    def say_hello(self, first: int, last: int) -> None:
        self.answers.clear()
        greeting = messages.hello(
            session=self.session, run=RUN, rank=self.rank, world_size=WORLD_SIZE, first=first
        )
        self.send(frames.pack_hello(greeting), "hello")
        self.expect(lambda answer: isinstance(answer, Welcome) and answer.last == last, "a welcome")

    def expect(self, is_it: Callable[[DaemonMessage], bool], what: str) -> None:
        def heard() -> bool:
            self.listen()
            return any(map(is_it, self.answers))

        wait_for(heard, f"{what}, after {self.answers[-3:]}")

    def good(self) -> None:
        self.last += 1
        self.journaled.append(self.last)
        self.verdicts["next"] += 1
        self.send(a_batch(self.session, self.last), "batch")

    def bad(self, rng: random.Random, number: int) -> None:
        """A batch that breaks a rule: where it is the next one, its number counts as seen."""
        while True:
            parts = messages.MUTATIONS[rng.randrange(7)](
                rng, as_bytes(a_batch(self.session, number))
            )
            try:
                frames.read_message(parts)
            except FrameError as error:
                if error.number == number and frames.session_of(parts) == self.session:
                    break
        self.send([*parts], "invalid", str(Code.REFUSED))
        self.last = max(self.last, number) if number == self.last + 1 else self.last

    def replay(self, rng: random.Random) -> None:
        if self.last:
            self.verdicts["duplicate"] += 1
            self.send(a_batch(self.session, rng.randint(1, self.last)), "batch")

    def skip_ahead(self, rng: random.Random) -> None:
        self.verdicts["gap"] += 1
        number = self.last + rng.choice((2, 3, 1 << 40))
        self.send(a_batch(self.session, number), "batch", str(Code.GAP))

    def beat(self) -> None:
        self.send(frames.pack_beat(self.session, 1.0), "beat")

    def misbehave(self, rng: random.Random, others: bytes) -> None:
        what = rng.randrange(9)
        if what < 3:
            self.good()
        elif what == 3:
            self.bad(rng, self.last + 1)
        elif what == 4:
            self.bad(rng, rng.choice((1, self.last + 2, 1 << 40)))
        elif what == 5:
            self.replay(rng)
        elif what == 6:
            self.skip_ahead(rng)
        elif what == 7:
            self.beat()
        else:
            self.send_to_unknown(rng, others)

    def settle(self) -> None:
        """End with a batch that is right, and wait until it is acknowledged, with all before it."""
        self.good()

        def is_it(answer: DaemonMessage) -> bool:
            return isinstance(answer, Ack) and answer.number == self.last

        self.expect(is_it, f"an acknowledgement of {self.last}")

    def say_goodbye(self) -> None:
        self.send(frames.pack_bye(self.session), "bye")
        self.expect(lambda answer: isinstance(answer, ByeAnswer), "an answer to the goodbye")


def a_batch(session: bytes, number: int) -> list[Buffer]:
    """Three scalars that tell which batch they are of; each rank's are shown apart."""
    columns = Columns(
        ["value"],
        np.array([Across.EACH], np.uint8),
        np.zeros(3, np.int32),
        np.array([number] * 3, np.int64),
        np.array([1_700_000_000.0] * 3),
        np.array([number, number + 0.25, number + 0.5], np.float64),
    )
    return frames.pack_batch(session, number, Batch(columns))


def points_of(numbers: list[int]) -> list[tuple[int, float]]:
    """What an event file must show of batches: (step, value)."""
    return [(number, number + part) for number in numbers for part in (0, 0.25, 0.5)]


def some_message(rng: random.Random, session: bytes) -> list[bytes]:
    what: Callable[[], list[Buffer]] = rng.choice(
        (
            lambda: frames.pack_hello(messages.hello(session=session)),
            lambda: frames.pack_beat(session, 1.0),
            lambda: frames.pack_bye(session),
            lambda: a_batch(session, 7),
            lambda: frames.pack_batch(session, 7, messages.batch()),
        )
    )
    return as_bytes(what())


def kind_of(parts: list[bytes]) -> str:
    message = frames.read_message(parts)
    return {Hello: "hello", BatchMessage: "batch", Beat: "beat", Bye: "bye"}[type(message)]
