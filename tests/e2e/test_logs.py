"""The log of a real daemon and its workers, as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

import ranktap
from ranktap_wire import frames
from tests.fuzz.test_hostile_names import HOSTILE_RUNS, _hello
from tests.support import messages
from tests.support.daemons import DaemonProcess
from tests.support.strangers import Stranger
from tests.support.waiting import wait_for

RUN = "digits/lr=0.1"


def lines(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """What the log says: all of it must be JSON."""
    return [json.loads(line) for line in daemon.log.splitlines()]


def of_event(daemon: DaemonProcess, part: str) -> list[dict[str, Any]]:
    return [line for line in lines(daemon) if part in line["event"]]


def test_every_line_of_a_daemon_and_its_workers_is_an_object_with_fields(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    daemon = start_daemon("--log-format=json")
    (started,) = of_event(daemon, "listening on {listen}")
    assert started["level"] == "info" and started["listen"] == daemon.endpoint
    with (
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=2) as tap,
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=1, world_size=2) as other,
    ):
        tap.scalar("x", 1.0, 0)
        assert tap.flush(timeout=30)
        (worker,) = wait_for(daemon.workers, "a worker")
        worker.kill()
        (ended,) = wait_for(lambda: of_event(daemon, "its worker ended"), "it to be told of")
        assert (ended["level"], ended["run"], ended["status"]) == ("error", RUN, -signal.SIGKILL)
        assert ended["message"].startswith(f"run {RUN!r}: its worker ended with status -9")
        # A tag of two kinds: its worker says so, which knows the run that it is for.
        other.histogram("x", [1.0, 2.0], 1)
        (told,) = wait_for(
            lambda: [line for line in lines(daemon) if "left out" in line["message"]], "the worker"
        )
        assert (told["level"], told["run"]) == ("warning", RUN)
    assert daemon.stop() == 0
    assert all({"time", "level", "event", "message"} <= set(line) for line in lines(daemon))


def test_a_start_that_fails_is_a_line_too(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    daemon = start_daemon()
    other = subprocess.run(
        [sys.executable, "-m", "ranktapd", f"--logdir={daemon.logdir}", "--log-format=json",
         f"--listen=ipc://{tmp_path}/s"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert other.returncode == 1
    (line,) = other.stderr.splitlines()
    said = json.loads(line)
    assert said["level"] == "critical" and "another ranktapd writes to" in said["message"]


def test_a_name_of_a_stranger_makes_no_line_of_its_own_in_any_format(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    forged = 'x\n{"level": "critical", "event": "forged", "message": "forged"}\n'
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for kind in ("text", "json"):
            daemon = start_daemon(f"--log-format={kind}", logdir=tmp_path / kind)
            peer = Stranger(context, daemon.endpoint)
            for name in [forged, *HOSTILE_RUNS]:
                peer.send(_hello(run=name), "hello")
                peer.send(_hello(host=name), "hello")
            peer.send([b"\xc1\n\x1b[2J"], "invalid")
            greeting = messages.hello(run="last", session=os.urandom(16))
            peer.send(frames.pack_hello(greeting), "hello")
            wait_for(lambda: (daemon.logdir / "last").exists(), "all to be heard")  # noqa: B023
            peer.close()
            assert daemon.stop() == 0
            assert daemon.log.replace("\n", "").isprintable()
            if kind == "json":
                assert not [line for line in lines(daemon) if line["event"] == "forged"]
                assert {line["code"] for line in of_event(daemon, "refused a message")} == {
                    "refused"
                }
            else:
                assert all(line[:2] == "20" for line in daemon.log.splitlines())
    finally:
        context.destroy(linger=0)
