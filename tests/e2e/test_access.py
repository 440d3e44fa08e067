"""Who gets in: keys over tcp, permissions over ipc, with real daemons, taps and strangers."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq

import ranktap
from ranktap import connection
from ranktap_wire import frames
from ranktapd import keygen
from ranktapd.log_budget import BURST_LINES
from tests.support import messages
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.strangers import free_port, metrics
from tests.support.waiting import wait_for

StartDaemon = Callable[..., DaemonProcess]
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become another user")
NOBODY = 65_534


class Guarded:
    """A daemon that asks for keys on `endpoint`, and its keys."""

    def __init__(self, directory: Path, start_daemon: StartDaemon) -> None:
        self.directory = directory
        self.port, self.metrics_port = free_port(), free_port()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.keygen()
        self.daemon = start_daemon(
            f"--listen={self.endpoint}",
            f"--server-key={directory}/server.key",
            f"--client-keys={directory}/clients",
            f"--metrics=127.0.0.1:{self.metrics_port}",
        )

    def keygen(self, *arguments: str) -> None:
        assert keygen.main(["--dir", str(self.directory), *arguments]) == 0

    def denied(self, *reasons: str) -> float:
        counted = metrics(self.metrics_port)
        return sum(counted.get(("ranktapd_denied_total", reason), 0.0) for reason in reasons)

    def read(self, run: str) -> dict[str, list[tuple[int, float]]]:
        """All scalars of a run, once the daemon has written everything and ended."""
        assert self.daemon.stop() == 0
        return scalar_points(self.daemon.logdir / run)


@pytest.fixture
def guarded(tmp_path: Path, start_daemon: StartDaemon) -> Guarded:
    return Guarded(tmp_path / "keys", start_daemon)


@pytest.fixture
def use_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path | None], None]]:
    """Taps that are opened from now on use the key of this file."""

    def use(path: Path | None) -> None:
        if path is None:
            monkeypatch.delenv("RANKTAP_KEY_FILE", raising=False)
        else:
            monkeypatch.setenv("RANKTAP_KEY_FILE", str(path))

    use(None)
    yield use


UseKey = Callable[[Path | None], None]


def open_tap(endpoint: str, run: str = "run", rank: int = 0, world_size: int = 1) -> ranktap.Tap:
    return ranktap.init(run, endpoint=endpoint, rank=rank, world_size=world_size)


# -- keys -------------------------------------------------------------------------------


def test_who_has_a_key_writes_over_tcp_and_who_is_on_this_machine_over_ipc(
    guarded: Guarded, use_key: UseKey
) -> None:
    guarded.keygen("alice")
    use_key(guarded.directory / "alice.key")
    # The key is for tcp; over ipc it is not asked for, and does no harm.
    taps = [
        open_tap(guarded.endpoint, world_size=2),
        open_tap(guarded.daemon.endpoint, "run", 1, 2),
    ]
    for rank, tap in enumerate(taps):
        for step in range(1_000):
            tap.scalar("value", float(rank), step, across="sum")
    assert all(tap.close(timeout=30) for tap in taps)
    assert guarded.denied("unknown-key") == 0
    assert guarded.read("run")["value"] == [(step, 1.0) for step in range(1_000)]


@pytest.mark.parametrize(
    ("key", "reasons", "told"),
    [
        ("unknown", ["unknown-key"], "does not let the key"),
        # Both sides notice, and break off: who is first sees why.
        ("none", ["no-key", "no-handshake"], "set RANKTAP_KEY_FILE"),
        ("other server's", ["wrong-server-key"], "is the key that is given for it its own?"),
    ],
)
def test_who_has_no_valid_key_writes_nothing_and_is_told_why(
    guarded: Guarded,
    use_key: UseKey,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: str,
    reasons: list[str],
    told: str,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    keygen.main(["--dir", str(elsewhere), "eve"])
    if key == "unknown":  # the right server, but nobody let her in
        guarded.keygen("eve")
        (guarded.directory / "clients" / "eve.toml").unlink()
        use_key(guarded.directory / "eve.key")
    elif key == "other server's":
        use_key(elsewhere / "eve.key")
    tap = open_tap(guarded.endpoint, "stolen")
    tap.scalar("value", 1.0, 0)
    wait_for(lambda: told in caplog.text, "the tap to be told")
    wait_for(lambda: guarded.denied(*reasons), "the daemon to count it")
    if not guarded.denied("no-handshake"):
        wait_for(lambda: "refused a connection" in guarded.daemon.log, "the daemon to say so")
    assert not tap.close(timeout=0.1)
    assert "training goes on" in caplog.text
    assert not (guarded.daemon.logdir / "stolen").exists()
    assert guarded.daemon.stop() == 0
    assert [*guarded.daemon.logdir.glob("**/*tfevents*")] == []


def test_a_crowd_without_valid_keys_disturbs_nobody_and_does_not_fill_the_log(
    guarded: Guarded, use_key: UseKey
) -> None:
    guarded.keygen("alice")
    server = zmq.curve_public(keygen.access.read_secret(guarded.directory / "server.key").encode())
    use_key(guarded.directory / "alice.key")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with open_tap(guarded.endpoint) as tap:
            crowd = [_stranger(context, guarded.endpoint, server, number) for number in range(90)]
            for step in range(2_000):
                tap.scalar("value", float(step), step)
            reasons = ("unknown-key", "no-key", "wrong-server-key", "no-handshake")
            wait_for(lambda: guarded.denied(*reasons) >= 90, "all of them to be denied")
            assert tap.flush(timeout=30)
            assert [stranger.poll(0) for stranger in crowd] == [0] * len(crowd)
            lines = guarded.daemon.log.count("refused a connection")
            assert 3 <= lines <= BURST_LINES + 3
    finally:
        context.destroy(linger=0)
    assert guarded.read("run")["value"] == [(step, float(step)) for step in range(2_000)]
    made = {path.name for path in guarded.daemon.logdir.iterdir() if path.is_dir()}
    assert made == {".ranktap", "run"}


def _stranger(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server: bytes, number: int
) -> zmq.Socket[bytes]:
    """A third each: an unknown key, no key, another server's key."""
    dealer = context.socket(zmq.DEALER)
    if number % 3 != 1:
        public, secret = zmq.curve_keypair()
        dealer.setsockopt(zmq.CURVE_SERVERKEY, server if number % 3 == 0 else public)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, public)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, secret)
    dealer.connect(endpoint)
    greeting = messages.hello(run="crowd", session=number.to_bytes(16, "big"))
    dealer.send_multipart(frames.pack_hello(greeting))  # type: ignore[arg-type]
    return dealer


def test_a_key_for_some_runs_is_refused_for_others_with_a_word_why(
    guarded: Guarded, use_key: UseKey, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.keygen("bob", "--runs", "bob/*")
    use_key(guarded.directory / "bob.key")
    with open_tap(guarded.endpoint, "alice/x") as tap:
        tap.scalar("value", 1.0, 0)
        assert not tap.flush(timeout=30)  # answered at once: this tap has stopped
    told = "the key of 'bob' may write runs that match 'bob/*', got run 'alice/x'"
    assert told in caplog.text
    assert told in guarded.daemon.log
    assert guarded.denied("run") == 1
    with open_tap(guarded.endpoint, "bob/x") as tap:
        tap.scalar("value", 2.0, 0)
        assert tap.flush(timeout=30)
    assert guarded.read("bob/x") == {"value": [(0, 2.0)]}
    assert not (guarded.daemon.logdir / "alice").exists()


def test_a_key_that_is_added_lets_a_waiting_tap_in_with_all_that_it_has(
    guarded: Guarded, use_key: UseKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REFUSED_RETRY_S", 0.2)
    guarded.keygen("late")
    allowed = guarded.directory / "clients" / "late.toml"
    text = allowed.read_text()
    allowed.unlink()
    use_key(guarded.directory / "late.key")
    with open_tap(guarded.endpoint) as tap:
        for step in range(100):
            tap.scalar("value", float(step), step)
        wait_for(lambda: guarded.denied("unknown-key") >= 2, "the tap to try again")
        assert not tap.flush(timeout=0)
        allowed.write_text(text)
        assert tap.flush(timeout=30)
    assert guarded.read("run")["value"] == [(step, float(step)) for step in range(100)]


def test_a_key_that_is_taken_away_shuts_its_sessions_out_and_no_others(
    guarded: Guarded, use_key: UseKey, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.keygen("alice", "mallory")
    use_key(guarded.directory / "alice.key")
    alice = open_tap(guarded.endpoint, "alice")
    use_key(guarded.directory / "mallory.key")
    mallory = open_tap(guarded.endpoint, "mallory")
    for tap in (alice, mallory):
        tap.scalar("value", 1.0, 1)
        assert tap.flush(timeout=30)
    (guarded.directory / "clients" / "mallory.toml").unlink()
    wait_for(lambda: "is shut out" in guarded.daemon.log, "the daemon to notice")
    for tap in (alice, mallory):
        tap.scalar("value", 2.0, 2)
    assert alice.flush(timeout=30)
    wait_for(lambda: "does not let its key in any more" in caplog.text, "mallory to be told")
    assert not mallory.flush(timeout=0.1)
    assert alice.close(timeout=30)
    mallory.close(timeout=0.1)
    assert guarded.read("alice") == {"value": [(1, 1.0), (2, 2.0)]}
    assert scalar_points(guarded.daemon.logdir / "mallory") == {"value": [(1, 1.0)]}


# -- tcp beyond this machine ------------------------------------------------------------


def test_beyond_this_machine_it_listens_with_keys_or_on_ones_own_word(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    outside = f"tcp://0.0.0.0:{free_port()}"
    alone = start_daemon(f"--listen={outside}", wait=False)
    assert alone.process is not None
    assert alone.process.wait(30) == 2
    assert "is reachable from other machines" in alone.log
    assert "ranktapd keygen" in alone.log and "--insecure" in alone.log
    on_its_word = start_daemon(f"--listen={outside}", "--insecure")
    assert f"{outside} asks for no keys: everyone who reaches it can write" in on_its_word.log
    assert on_its_word.stop() == 0
    assert keygen.main(["--dir", str(tmp_path / "keys"), "alice"]) == 0
    keys = (f"--server-key={tmp_path}/keys/server.key", f"--client-keys={tmp_path}/keys/clients")
    guarded = start_daemon(f"--listen={outside}", *keys)
    assert "asks for no keys" not in guarded.log
    assert guarded.stop() == 0


# -- ipc --------------------------------------------------------------------------------


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path in a directory that the daemon has to make, below one that everyone may enter."""
    with tempfile.TemporaryDirectory(prefix="ranktap-test-", dir="/tmp") as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "run" / "d.sock"


def connects(path: Path, *, uid: int, gid: int) -> bool:
    """Whether a process of that user and group gets a connection."""
    program = (
        "import os, socket, sys; os.setgroups([]); os.setgid(int(sys.argv[2]));"
        "os.setuid(int(sys.argv[3])); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(path), str(gid), str(uid)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 or "PermissionError" in done.stderr, done.stderr
    return done.returncode == 0


def test_an_ipc_socket_is_for_its_owner_and_its_group(
    start_daemon: StartDaemon, socket_path: Path
) -> None:
    start_daemon(f"--listen=ipc://{socket_path}")
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o750
    assert socket_path.stat().st_gid == os.getegid()


@ROOT_ONLY
def test_who_is_not_in_the_sockets_group_is_refused(
    start_daemon: StartDaemon, socket_path: Path, tmp_path: Path
) -> None:
    group = next(each for each in grp.getgrall() if each.gr_gid not in (0, NOBODY))
    config = tmp_path / "config.toml"
    config.write_text(f'socket_group = "{group.gr_name}"\n')
    daemon = start_daemon(f"--listen=ipc://{socket_path}", f"--config={config}")
    assert socket_path.stat().st_gid == socket_path.parent.stat().st_gid == group.gr_gid
    assert connects(socket_path, uid=NOBODY, gid=group.gr_gid)
    assert not connects(socket_path, uid=NOBODY, gid=NOBODY)
    socket_path.parent.chmod(0o755)  # the socket's own mode is enough
    assert not connects(socket_path, uid=NOBODY, gid=NOBODY)
    assert psutil.pid_exists(daemon.pid)
