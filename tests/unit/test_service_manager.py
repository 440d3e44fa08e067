"""What a service manager hears, and what it hands over, with real sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ranktapd import service_manager
from ranktapd.service_manager import ServiceManager, inherited_sockets

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS")


@pytest.fixture(autouse=True)
def _no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as each:
        each.bind(f"\0ranktap-test-{os.getpid()}-{tmp_path.name}")
        each.setblocking(False)
        yield each


def address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return "@" + name[1:].decode() if isinstance(name, bytes) else str(name)


def heard(listener: socket.socket) -> list[str]:
    said = []
    while True:
        try:
            said.append(listener.recv(4_096).decode())
        except BlockingIOError:
            return said


def test_without_a_manager_nothing_is_said_and_nothing_breaks() -> None:
    manager = ServiceManager.from_environment()
    for say in (manager.ready, manager.stopping, manager.reloading, manager.alive):
        say()
    manager.progress("x")
    manager.status("x")


def test_every_word_is_heard_and_children_do_not_inherit_the_address(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address(listener))
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    manager = ServiceManager.from_environment()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    manager.progress("Recovering run 1 of 2")
    manager.progress("Recovering run 2 of 2")  # at once: not worth a message
    manager.ready()
    assert heard(listener) == [
        "EXTEND_TIMEOUT_USEC=30000000\nSTATUS=Recovering run 1 of 2", "READY=1",
    ]  # fmt: skip
    for later in (100.0, 101.0, 102.5, 103.0, 104.6):
        now = later
        manager.alive()
    assert heard(listener) == ["WATCHDOG=1"] * 3  # a quarter of the time is 2 s
    for text in ("a", "a", "b"):
        manager.status(text)
        now += 2
    manager.stopping()
    assert heard(listener) == [
        "STATUS=a", "STATUS=b", "STOPPING=1\nSTATUS=Writing what is journaled",
    ]  # fmt: skip
    manager.reloading()
    (said,) = heard(listener)
    assert said.startswith("RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.parametrize("pid", ["1", str(os.getpid() + 1)], ids=["init", "another"])
def test_a_watchdog_of_another_process_is_not_fed(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, pid: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address(listener))
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    monkeypatch.setenv("WATCHDOG_PID", pid)
    ServiceManager.from_environment().alive()
    assert heard(listener) == []


def test_a_manager_that_is_gone_is_told_of_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    manager = ServiceManager(str(tmp_path / "gone"))
    manager.ready()
    manager.stopping()
    assert caplog.text.count("the service manager does not listen") == 1


# -- sockets that are handed over -------------------------------------------------------


@pytest.fixture
def hand_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """One descriptor, as if it were the third of this process."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        monkeypatch.setattr(service_manager, "FIRST_FD", one.fileno())
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        yield one


def test_sockets_are_known_by_their_endpoints_and_not_left_to_children(
    hand_over: socket.socket,
) -> None:
    hand_over.listen()
    os.set_inheritable(hand_over.fileno(), True)
    port = hand_over.getsockname()[1]
    assert inherited_sockets() == {f"tcp://127.0.0.1:{port}": hand_over.fileno()}
    assert not os.get_inheritable(hand_over.fileno())
    assert not {"LISTEN_FDS", "LISTEN_PID"} & set(os.environ)
    assert inherited_sockets() == {}


def test_sockets_of_another_process_are_left_alone(
    hand_over: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    assert inherited_sockets() == {}


def test_a_socket_that_does_not_listen_is_refused(hand_over: socket.socket) -> None:
    with pytest.raises(OSError, match=f"descriptor {hand_over.fileno()}.* does not listen"):
        inherited_sockets()


@pytest.mark.parametrize("family", [socket.AF_INET6, socket.AF_UNIX])
def test_endpoints_of_every_family_are_libzmqs(
    hand_over: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    family: socket.AddressFamily,
) -> None:
    with socket.socket(family) as one:
        if family == socket.AF_INET6:
            one.bind(("::1", 0))
            expected = f"tcp://[::1]:{one.getsockname()[1]}"
        else:
            path = Path("/tmp") / f"ranktap-test-{os.getpid()}.sock"
            path.unlink(missing_ok=True)
            one.bind(str(path))
            expected = f"ipc://{path}"
        one.listen()
        monkeypatch.setattr(service_manager, "FIRST_FD", one.fileno())
        assert inherited_sockets() == {expected: one.fileno()}
        if family == socket.AF_UNIX:
            path.unlink()
