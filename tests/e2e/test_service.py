"""A daemon as a service: what it tells its manager, what it is handed, what it reads again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import ranktap
from ranktapd import keygen
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.strangers import free_port
from tests.support.waiting import wait_for

StartDaemon = Callable[..., DaemonProcess]
MIB = 1 << 20


def open_tap(endpoint: str, run: str = "run") -> ranktap.Tap:
    return ranktap.init(run, endpoint=endpoint, rank=0, world_size=1)


def ranktapd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ranktapd", *map(str, arguments)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


class Manager:
    """The datagram socket of a service manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.said: list[str] = []

    def heard(self, word: str) -> bool:
        while True:
            try:
                self.said += self.socket.recv(4_096).decode().split("\n")
            except BlockingIOError:
                return any(each.startswith(word) for each in self.said)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose sockets have names that are not too long."""
    with tempfile.TemporaryDirectory(prefix="ranktap-test-") as directory:
        yield Path(directory)


@pytest.fixture
def manager(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    each = Manager(short_path / "notify")
    with each.socket:
        monkeypatch.setenv("NOTIFY_SOCKET", str(each.path))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        yield each


# -- the service manager ----------------------------------------------------------------


def test_ready_is_said_when_clients_can_connect_and_stopping_when_it_ends(
    start_daemon: StartDaemon, manager: Manager
) -> None:
    daemon = start_daemon(wait=False)
    wait_for(lambda: manager.heard("READY=1"), "READY")
    with open_tap(daemon.endpoint) as tap:
        tap.scalar("value", 1.0, 0)
        assert tap.flush(timeout=30)
        wait_for(lambda: manager.heard("STATUS=1 sessions, 1 runs"), "the status")
        wait_for(lambda: daemon.workers(), "a worker")
        assert "NOTIFY_SOCKET" not in daemon.workers()[0].environ()
    assert not manager.heard("STOPPING=1")
    assert daemon.stop() == 0
    assert manager.heard("STOPPING=1")


def test_a_recovery_asks_for_time_and_is_over_before_ready(
    start_daemon: StartDaemon, manager: Manager
) -> None:
    daemon = start_daemon()
    with open_tap(daemon.endpoint) as tap:
        tap.scalar("value", 1.0, 0)
        assert tap.flush(timeout=30)
        daemon.kill()
        manager.heard("")
        manager.said.clear()
        daemon.start(wait=False)
        wait_for(lambda: manager.heard("READY=1"), "READY")
    assert manager.said[:3] == [
        "EXTEND_TIMEOUT_USEC=30000000", "STATUS=Recovering run 1 of 1", "READY=1",
    ]  # fmt: skip


def test_the_watchdog_is_fed_as_long_as_the_loop_turns(
    start_daemon: StartDaemon, manager: Manager
) -> None:
    daemon = start_daemon()
    wait_for(lambda: manager.heard("WATCHDOG=1"), "a sign of life")
    psutil.Process(daemon.pid).suspend()
    manager.heard("")
    manager.said.clear()
    # Twice the time in which the manager would act.
    assert not daemon.process.poll()
    with pytest.raises(AssertionError, match="waited"):
        wait_for(lambda: manager.heard("WATCHDOG=1"), "a sign of life", deadline_s=1.5)
    psutil.Process(daemon.pid).resume()
    wait_for(lambda: manager.heard("WATCHDOG=1"), "a sign of life")


def test_a_worker_that_hangs_is_killed_and_nothing_is_lost(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(program=[sys.executable, "-m", "tests.support.hasty_daemon"])
    with open_tap(daemon.endpoint) as tap:
        tap.scalar("value", 0.0, 0)
        assert tap.flush(timeout=30)
        (hung,) = wait_for(daemon.workers, "a worker")
        wait_for(lambda: scalar_points(daemon.logdir / "run"), "the first point")
        hung.suspend()
        for step in range(1, 100):
            tap.scalar("value", float(step), step)
        assert tap.flush(timeout=30)
        wait_for(lambda: "ended with status -9" in daemon.log, "the daemon to notice")
    assert "its worker has said nothing" in daemon.log
    assert not hung.is_running()
    expected = {"value": [(step, float(step)) for step in range(100)]}
    wait_for(lambda: scalar_points(daemon.logdir / "run") == expected, "another to write the rest")
    assert daemon.stop() == 0
    assert scalar_points(daemon.logdir / "run") == expected


# -- sockets that are handed over -------------------------------------------------------


def test_sockets_of_a_manager_outlive_daemons_and_no_connection_is_refused(
    start_daemon: StartDaemon, short_path: Path
) -> None:
    path = short_path / "given.sock"
    with socket.socket(socket.AF_UNIX) as ipc, socket.socket() as tcp:
        ipc.bind(str(path))
        tcp.bind(("127.0.0.1", 0))
        endpoints = [f"ipc://{path}", f"tcp://127.0.0.1:{tcp.getsockname()[1]}"]
        for each in (ipc, tcp):
            each.listen(64)
        descriptors = (ipc.fileno(), tcp.fileno())
        # Before there is a daemon.
        taps = [open_tap(endpoint, f"run{at}") for at, endpoint in enumerate(endpoints)]
        program = [sys.executable, "-m", "tests.support.socket_activated"]
        program.append(",".join(map(str, descriptors)))
        daemon = start_daemon(program=program, descriptors=descriptors)
        for endpoint in endpoints:
            assert endpoint in daemon.log
        for life in range(2):
            for tap in taps:
                tap.scalar("value", float(life), life)
                assert tap.flush(timeout=30)
            with socket.socket(socket.AF_UNIX) as probe:
                daemon.kill() if life % 2 else daemon.stop()
                probe.connect(str(path))  # between two daemons
            daemon.start()
        for tap in taps:
            assert tap.close(timeout=30)
        assert daemon.stop() == 0
        assert path.exists()
    for at in range(2):
        points = scalar_points(daemon.logdir / f"run{at}")["value"]
        assert points == [(0, 0.0), (1, 1.0)]


# -- reading the configuration ----------------------------------------------------------


def test_a_hangup_reads_the_configuration_and_the_keys_again(
    start_daemon: StartDaemon, tmp_path: Path, manager: Manager
) -> None:
    keys = tmp_path / "keys"
    assert keygen.main(["--dir", str(keys), "alice"]) == 0
    path = tmp_path / "ranktapd.toml"
    text = f'server_key = "{keys}/server.key"\nclient_keys = "{keys}/clients"\n'
    path.write_text(text)
    daemon = start_daemon(f"--config={path}")
    with open_tap(daemon.endpoint) as tap:
        tap.scalar("value", 1.0, 0)
        assert tap.flush(timeout=30)

        def reload(expected: str) -> None:
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: expected in daemon.log, f"{expected!r} in its log")

        path.write_text(text + 'max_runs = 1\nsync = "off"\n')
        reload("max_runs is 1 now")
        wait_for(lambda: "sync: 'group' holds until a restart" in daemon.log, "the other one")
        path.write_text(text + "max_runs = 0\n")
        reload(f"the configuration stays as it is: {path}: max_runs: expected a whole number")
        with open_tap(daemon.endpoint, "another") as other:
            other.scalar("value", 1.0, 0)
            assert not other.flush(timeout=30)
        assert "this ranktapd keeps 1 runs (max_runs)" in daemon.log
        assert keygen.main(["--dir", str(keys), "bob"]) == 0
        reload("2 client keys")
        wait_for(lambda: manager.heard("RELOADING=1"), "the manager to be told")
        tap.scalar("value", 2.0, 1)
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert scalar_points(daemon.logdir / "run")["value"] == [(0, 1.0), (1, 2.0)]


def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path) -> None:
    path = tmp_path / "ranktapd.toml"
    path.write_text("straggler_timeout_s = 0\n")
    for command in ([], ["check"]):
        done = ranktapd(*command, f"--logdir={tmp_path}", f"--config={path}")
        assert done.returncode == 2
        assert done.stderr == (
            f"ranktapd: {path}: straggler_timeout_s: expected a number of seconds, 0.1 to 86400, "
            "got 0\n"
        )


def test_a_key_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "no.key"
    done = ranktapd(
        f"--logdir={tmp_path}", f"--server-key={path}", f"--client-keys={tmp_path}",
        f"--listen=tcp://127.0.0.1:{free_port()}",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ranktapd: server_key: {path}: No such file or directory"
    )


# -- ranktapd check ---------------------------------------------------------------------


def test_check_says_what_it_finds_and_that_a_daemon_would_start(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert keygen.main(["--dir", str(keys), "alice"]) == 0
    port = free_port()
    done = ranktapd(
        "check", f"--logdir={tmp_path}/logs", f"--listen=tcp://127.0.0.1:{port}",
        f"--listen=ipc://{tmp_path}/s", f"--server-key={keys}/server.key",
        f"--client-keys={keys}/clients", f"--metrics=127.0.0.1:{free_port()}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for said in (
        f"* logdir = {tmp_path}/logs", "  sync = group", f"{tmp_path}/logs will be made",
        "1 may write over tcp", f"ok    tcp://127.0.0.1:{port}", "libzmq 4.", "bytes free",
        "A daemon would start.",
    ):  # fmt: skip
        assert said in done.stdout
    assert not (tmp_path / "logs").exists()
    assert "WRONG" not in done.stdout


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "bad.toml").touch()
    config = tmp_path / "ranktapd.toml"
    config.write_text(f"min_free_bytes = {1 << 60}\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = ranktapd(
            "check", f"--logdir={tmp_path}/file/x", f"--listen={endpoint}",
            f"--server-key={tmp_path}/none", f"--client-keys={keys}", f"--config={config}",
        )  # fmt: skip
    assert done.returncode == 1
    for said in (
        f"WRONG logdir: {tmp_path}/file is no directory", "(min_free_bytes)",
        f"WRONG server_key: {tmp_path}/none: No such file", f"WRONG {endpoint}: Address already",
        f"note  client_keys: {keys}/bad.toml: public: expected a key", "5 things are wrong",
    ):  # fmt: skip
        assert said in done.stdout, done.stdout


def test_check_sees_the_daemon_that_has_the_logdir(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon()
    done = ranktapd("check", f"--logdir={daemon.logdir}", f"--listen={daemon.endpoint}")
    assert done.returncode == 0, done.stdout
    assert f"a ranktapd has this logdir now; it listens on {daemon.endpoint}" in done.stdout
