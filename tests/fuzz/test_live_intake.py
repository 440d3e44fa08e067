"""A real daemon among strangers: everything wrong is counted and answered, nothing right is lost.

Every message that reaches the ROUTER is counted once in `ranktapd_messages_total`, by its
type or as "invalid", and once in `ranktapd_refused_total` when it is refused. So what the
strangers sent and what the daemon counted must be the same numbers, code by code. Two
things are in no counter, because they never become messages: frames over MAXMSGSIZE, for
which libzmq closes the connection, and bytes that are no ZMTP. Bytes that happen to be
ZMTP 1.0 do become messages, how many nobody can say; so they come last. Of the healthy
client only the kinds "hello", "batch", "beat" and "bye" are counted, so there the daemon's
numbers are the larger ones; its scalars are held against its event file instead.

Not here: a message of frames without end. libzmq keeps it until its last frame, and
MAXMSGSIZE is a limit of each of them alone.

RANKTAP_FUZZ_SEED=n repeats or varies a run.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

import ranktap
from ranktap_wire import frames, limits
from ranktap_wire.messages import Code, Welcome
from tests.support import messages
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.messages import HOSTILE_HEADERS
from tests.support.strangers import (
    RUN,
    WORLD_SIZE,
    Stranger,
    Talker,
    free_port,
    metrics,
    points_of,
)
from tests.support.waiting import wait_for

SEED = int(os.environ.get("RANKTAP_FUZZ_SEED", "1"))
STRANGERS = 6
MALFORMED = 18_000
TALKERS = 5
TALK = 900
"""Messages of each talker."""
RSS_BYTES = 40 * limits.MIB
"""What the daemon may grow by: it keeps nothing of what it refuses."""

GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client's hello
    b"\xff" + bytes(8) + b"\x7f",  # ZMTP's signature, and then nothing
    b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48),  # a greeting, and then nothing
    b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48) + b"\x04\xff" + b"\xff" * 200,
    b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(47) + b"\x04\x20" + b"\x05" * 32,
    b"\xff" + bytes(8) + b"\x7f\x01\x00",  # an old version
    b"",
]


Invite = Callable[..., Any]


@pytest.fixture
def invite() -> Iterator[Invite]:
    """Make a peer of a kind; all are sent home at the end."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    invited: list[Stranger] = []

    def invite(kind: type[Stranger], *arguments: object) -> Stranger:
        invited.append(kind(context, *arguments))
        return invited[-1]

    yield invite
    for peer in invited:
        peer.close()
    context.destroy(linger=0)


class Healthy:
    """A client that does nothing wrong, and what it has logged."""

    def __init__(self, endpoint: str) -> None:
        self.tap = ranktap.init("healthy", endpoint=endpoint, rank=0, world_size=1)
        self.step = 0

    @property
    def session(self) -> bytes:
        session: bytes = self.tap._sender._hello.session
        return session

    def log(self, count: int = 5) -> None:
        for _ in range(count):
            self.tap.scalar("value", self.step * 0.5, self.step)
            self.tap.scalar("other", -self.step, self.step)
            self.step += 1

    def expected(self) -> dict[str, list[tuple[int, float]]]:
        return {
            "value": [(step, step * 0.5) for step in range(self.step)],
            "other": [(step, float(-step)) for step in range(self.step)],
        }


def test_strangers_are_counted_and_answered_and_cost_the_healthy_nothing(
    start_daemon: Callable[..., DaemonProcess], invite: Invite
) -> None:
    rng = random.Random(SEED)
    port = free_port()
    daemon = start_daemon("--metrics", f"127.0.0.1:{port}")
    healthy = Healthy(daemon.endpoint)
    healthy.log()
    assert healthy.tap.flush(30)
    strangers = [invite(Stranger, daemon.endpoint) for _ in range(STRANGERS)]
    talkers = [invite(Talker, daemon.endpoint, rank, rng.randbytes(16)) for rank in range(TALKERS)]
    for _ in range(500):  # what every process takes once, before it is weighed
        rng.choice(strangers).send_malformed(rng, rng.randbytes(16))
    wait_for(lambda: all(answered(each) for each in strangers), "the first answers")
    process = psutil.Process(daemon.pid)
    rss_before, began = process.memory_info().rss, time.monotonic()

    for turn in range(MALFORMED):
        stranger = rng.choice(strangers)
        # Half of them name a session that is open, on another connection.
        session = rng.choice((rng.randbytes(16), healthy.session, talkers[0].session))
        if rng.random() < 0.85:
            stranger.send_malformed(rng, session)
        else:
            stranger.send_to_unknown(rng, session)
        if turn % 10 == 0:
            healthy.log()
            talkers[turn // 10 % TALKERS].beat()  # so that it is not given up as silent
    for _ in range(TALK):
        for talker in talkers:
            talker.misbehave(rng, rng.choice((rng.randbytes(16), healthy.session)))
        healthy.log()
    for head in HOSTILE_HEADERS:
        strangers[0].send([head], "invalid", str(Code.MALFORMED))
    send_oversized(invite, daemon.endpoint)
    steal_and_return(talkers[0], strangers[0])
    crowd = replace_each_other(invite, daemon.endpoint, rng)

    for talker in talkers:
        talker.settle()
    wait_for(lambda: all(answered(each) for each in strangers), "an answer to each message")
    seconds = time.monotonic() - began
    growth = process.memory_info().rss - rss_before
    peers = [*strangers, *talkers, crowd]
    sent = sum(each.sent for each in peers)
    print(
        f"seed {SEED}: {sent} messages of {len(peers)} strangers, {2 * healthy.step} scalars "
        f"beside them, {seconds:.1f} s, RSS {growth / limits.MIB:+.1f} MiB"
    )
    assert sent > 20_000
    assert growth < RSS_BYTES
    reconcile(metrics(port), peers)

    invalid = metrics(port)["ranktapd_messages_total", "invalid"]
    send_garbage(rng, daemon.endpoint)
    for talker in talkers:
        healthy.log()
        talker.settle()
        talker.say_goodbye()
    assert process.memory_info().rss - rss_before < RSS_BYTES
    # Some of the garbage is ZMTP 1.0, which has no greeting: then it is messages of garbage.
    counted = metrics(port)
    assert counted["ranktapd_messages_total", "invalid"] >= invalid
    assert sum(
        count for (name, _), count in counted.items() if name == "ranktapd_refused_total"
    ) - sum(sum(each.refused.values()) for each in peers) == (
        counted["ranktapd_messages_total", "invalid"] - invalid
    )
    assert healthy.tap.close(30)
    assert daemon.stop() == 0, daemon.log
    assert "Traceback" not in daemon.log
    # Whoever reads the log can find the process that sends such things.
    this_process = f"localhost:{os.getuid()}:{os.getgid()}:{os.getpid()}"
    assert f"refused a message from {this_process} (peer " in daemon.log
    assert scalar_points(Path(daemon.logdir) / "healthy") == healthy.expected()
    shown = scalar_points(Path(daemon.logdir) / RUN)
    for talker in talkers:
        assert shown[f"ranks/value/rank{talker.rank}"] == points_of(talker.journaled)
    assert {path.name for path in Path(daemon.logdir).iterdir() if path.is_dir()} == {
        "healthy", RUN, ".ranktap",
    }  # fmt: skip


def answered(stranger: Stranger) -> bool:
    """Whether a stranger without a session has heard of each of its messages what it must."""
    return stranger.errors() == +stranger.refused


def reconcile(counted: dict[tuple[str, str], float], peers: list[Stranger]) -> None:
    """Hold the daemon's counters against what was sent."""
    kinds: Counter[str] = sum((each.kinds for each in peers), Counter())
    refused: Counter[str] = sum((each.refused for each in peers), Counter())
    assert counted["ranktapd_messages_total", "invalid"] == kinds["invalid"]
    for kind in ("hello", "batch", "beat", "bye"):
        assert counted.get(("ranktapd_messages_total", kind), 0) >= kinds[kind]
    assert {
        code: count for (name, code), count in counted.items() if name == "ranktapd_refused_total"
    } == refused
    verdicts: Counter[str] = sum(
        (each.verdicts for each in peers if isinstance(each, Talker)), Counter()
    )
    for verdict in ("duplicate", "gap"):  # the healthy client sends nothing twice here
        assert counted["ranktapd_batches_total", verdict] == verdicts[verdict]
    assert counted["ranktapd_batches_total", "next"] >= verdicts["next"]
    assert counted["ranktapd_worker_deaths_total", ""] == 0


def send_oversized(invite: Invite, endpoint: str) -> None:
    """Frames that libzmq does not let in: it closes the connection, and nobody counts them."""
    too_large = bytes(limits.RECORD_BYTES + 1)
    for parts in ([too_large], [messages.as_bytes(frames.pack_bye(bytes(16)))[0], too_large]):
        stranger = invite(Stranger, endpoint)
        monitor = stranger.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        stranger.socket.send_multipart(parts, copy=False)
        assert monitor.poll(20_000), "the daemon kept a connection that sent too much"
        stranger.socket.disable_monitor()
        monitor.close()


def send_garbage(rng: random.Random, endpoint: str) -> None:
    """Bytes on the socket itself that are no ZMTP, or hardly."""
    path = endpoint.removeprefix("ipc://")
    for turn in range(200):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            try:
                raw.sendall(rng.choice(GARBAGE) if turn % 2 else rng.randbytes(rng.randrange(500)))
                raw.sendall(rng.randbytes(rng.choice((0, 10, 10_000))))
            except (BrokenPipeError, ConnectionResetError):
                continue  # it has heard enough


def steal_and_return(talker: Talker, stranger: Stranger) -> None:
    """Someone who knows a session's name takes it; its owner says hello, and goes on."""
    talker.settle()
    greeting = messages.hello(
        session=talker.session, run=RUN, rank=talker.rank, world_size=WORLD_SIZE
    )
    stranger.send(frames.pack_hello(greeting), "hello")

    def welcomed() -> bool:
        stranger.listen()
        return Welcome(talker.last, daemon=ranktap.__version__) in stranger.answers

    wait_for(welcomed, "the thief's welcome")
    talker.send(frames.pack_beat(talker.session, 1.0), "beat", str(Code.UNKNOWN_SESSION))
    talker.say_hello(first=talker.last + 1, last=talker.last)


def replace_each_other(invite: Invite, endpoint: str, rng: random.Random) -> Stranger:
    """Hundreds of processes in turn say that they are the same rank; only the last one is."""
    crowd: Stranger = invite(Stranger, endpoint)
    names = [rng.randbytes(16) for _ in range(300)]
    for name in names:
        greeting = messages.hello(session=name, run=RUN, rank=WORLD_SIZE - 1, world_size=WORLD_SIZE)
        crowd.send(frames.pack_hello(greeting), "hello")
    for name in names[:50]:
        greeting = messages.hello(session=name, run=RUN, rank=WORLD_SIZE - 1, world_size=WORLD_SIZE)
        crowd.send(frames.pack_hello(greeting), "hello", str(Code.CONFLICT))
    wait_for(lambda: answered(crowd), "the conflicts")
    return crowd
