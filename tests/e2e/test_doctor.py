"""`ranktap doctor` against daemons that are well, that are not, and that are none."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import ranktap
from ranktap import cli
from ranktap_wire import frames
from ranktap_wire.messages import PROTOCOL, Code, Error, ProbeAnswer
from ranktapd import keygen
from tests.support.daemons import DaemonProcess
from tests.support.interposer import Interposer
from tests.support.strangers import free_port, metrics

StartDaemon = Callable[..., DaemonProcess]
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become another user")
NOBODY = 65_534


class Examination:
    """What the doctor said."""

    def __init__(self, status: int, text: str) -> None:
        said = json.loads(text)
        self.status = status
        self.checks: dict[str, dict[str, str]] = {check["name"]: check for check in said["checks"]}
        assert said["well"] == (status == 0)
        assert len(self.checks) == len(said["checks"]), text

    def failed(self) -> tuple[str, str, str]:
        """The one check that failed, with what it says and advises. It is the last."""
        assert self.status == 1
        (bad,) = (check for check in self.checks.values() if check["level"] == "FAIL")
        assert [*self.checks][-1] == bad["name"]
        return bad["name"], bad["text"], bad["advice"]


Examine = Callable[..., Examination]


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Run the doctor, with no more of an environment than is given."""
    for name in [name for name in os.environ if name.startswith(("RANKTAP_", "SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)

    def run(*arguments: str) -> Examination:
        status = cli.main(["doctor", "--json", *arguments])
        return Examination(status, capsys.readouterr().out)

    return run


# -- all is well ------------------------------------------------------------------------


def test_a_healthy_daemon_is_told_of_in_ten_checks_and_nothing_is_left_behind(
    start_daemon: StartDaemon, examine: Examine
) -> None:
    port = free_port()
    daemon = start_daemon(f"--listen=tcp://127.0.0.1:{port}", f"--metrics=127.0.0.1:{free_port()}")
    before = daemon.log, sorted(daemon.logdir.rglob("*"))
    found = examine(f"--endpoint=tcp://localhost:{port}", "--run=digits/lr=0.1")
    assert found.status == 0
    assert {check["level"] for check in found.checks.values()} == {"ok"}
    said = {name: check["text"] for name, check in found.checks.items()}
    assert [*said] == [
        "rank", "run", "versions", "endpoint", "name", "reach", "daemon", "access", "roundtrip",
        "clock",
    ]  # fmt: skip
    assert said["rank"] == "rank 0 of 1, local rank 0, no launcher's variables are set"
    assert said["run"] == "'digits/lr=0.1', as given"
    assert f"ranktap {ranktap.__version__}, protocol {PROTOCOL}" in said["versions"]
    assert said["endpoint"] == f"tcp://localhost:{port}, because endpoint was given"
    assert said["name"] == "localhost is 127.0.0.1"
    assert said["reach"].endswith("takes connections, and asks for no key")
    assert said["daemon"] == f"ranktapd {ranktap.__version__}, protocol {PROTOCOL}"
    assert said["access"] == "let in, and run 'digits/lr=0.1' may be written"
    assert "in the median of 10" in said["roundtrip"]
    assert said["clock"].startswith("the daemon's is 0.") and "give or take" in said["clock"]
    assert (daemon.log, sorted(daemon.logdir.rglob("*"))) == before
    assert daemon.stop() == 0


def test_it_reads_the_environment_as_a_rank_does_and_says_what_it_read(
    start_daemon: StartDaemon, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon()
    monkeypatch.setenv("RANKTAP_ENDPOINT", daemon.endpoint)
    for name, value in (
        ("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_ID", "0"), ("SLURM_JOB_ID", "4711"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    found = examine()
    assert found.status == 0
    rank = found.checks["rank"]["text"]
    assert rank.startswith("rank 3 of 8, local rank 1, by Slurm (SLURM_PROCID=3, SLURM_NTASKS=8")
    assert found.checks["run"]["text"] == "'slurm-4711', of the job's id"
    assert "RANKTAP_ENDPOINT is set" in found.checks["endpoint"]["text"]
    # A batch script has Slurm's variables, and is no rank.
    monkeypatch.delenv("SLURM_STEP_ID")
    found = examine()
    assert found.status == 0 and found.checks["rank"]["level"] == "note"
    assert found.checks["rank"]["advice"] == "Slurm's variables count only in what srun starts"
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_PROCID", "three")
    found = examine()
    assert found.status == 1
    assert found.checks["rank"]["text"] == "SLURM_PROCID: expected a whole number, got 'three'"
    assert found.checks["clock"]["level"] == "ok"  # the daemon is looked at all the same


def test_for_people_each_check_is_a_line_and_advice_stands_below_it(
    examine: Examine, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert cli.main(["doctor", f"--endpoint=tcp://127.0.0.1:{port}"]) == 1
    *checks, bad, advice, _, last = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in checks] == [
        ["ok", "rank"], ["ok", "run"], ["ok", "versions"], ["ok", "endpoint"]
    ]  # fmt: skip
    assert bad == f"FAIL  reach     tcp://127.0.0.1:{port}: Connection refused"
    assert advice.startswith(" " * 16 + "127.0.0.1 is there, and nothing listens on that port")
    assert last == "1 of 5 checks failed; what depends on them was not tried."


# -- there is no daemon -----------------------------------------------------------------


def test_without_any_daemon_it_says_the_three_ways_to_one(examine: Examine) -> None:
    name, text, advice = examine().failed()
    assert name == "endpoint"
    assert "endpoint=" in text and "logdir=" in text and "start the service" in text
    assert advice.startswith("ipc:///run/ranktap/ranktapd.sock: No such file or directory")


@pytest.mark.parametrize("endpoint", ["tcp://loghost", "http://loghost:5757", "loghost:5757"])
def test_an_endpoint_that_is_none_is_said_to_be(examine: Examine, endpoint: str) -> None:
    name, text, _ = examine(f"--endpoint={endpoint}").failed()
    assert name == "endpoint" and f"got {endpoint!r}" in text


def test_a_host_that_nobody_knows_is_named(examine: Examine) -> None:
    name, text, advice = examine("--endpoint=tcp://no-such-host.invalid:5757").failed()
    assert name == "name" and text.startswith("no-such-host.invalid: ")
    assert advice == "is the host's name right, and known here?"


def test_a_socket_whose_daemon_is_gone_is_told_from_one_that_never_was(
    start_daemon: StartDaemon, examine: Examine
) -> None:
    daemon = start_daemon()
    daemon.kill()
    name, text, advice = examine(f"--endpoint={daemon.endpoint}").failed()
    assert (name, text) == ("reach", f"{daemon.endpoint}: Connection refused")
    assert advice == "the socket is there and nobody listens on it: is the daemon started?"
    name, text, advice = examine(f"--endpoint={daemon.endpoint}.other").failed()
    assert text.endswith("No such file or directory") and "where it listens" in advice


# -- somebody else is there -------------------------------------------------------------


@pytest.fixture
def web_server() -> Iterator[int]:
    handler = http.server.SimpleHTTPRequestHandler
    handler.log_message = lambda *_: None  # type: ignore[assignment]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_port_that_speaks_http_is_no_ranktapd(examine: Examine, web_server: int) -> None:
    name, text, advice = examine(
        f"--endpoint=tcp://127.0.0.1:{web_server}", "--timeout=0.5"
    ).failed()
    assert name == "reach" and f"127.0.0.1:{web_server}: " in text
    # It waits for the end of a line that never comes, or says what it makes of it.
    assert "nobody says anything on it" in text or "something else answers" in text
    assert advice


def test_a_server_that_greets_first_is_quoted_without_what_a_terminal_would_obey(
    examine: Examine,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-\x1b[31mOpenSSH\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        name, text, advice = examine(f"--endpoint={endpoint}", "--timeout=2").failed()
        thread.join()
    assert name == "reach" and "something else answers: b'SSH-2.0-\\x1b[31mOpenSSH" in text
    assert advice == "no ranktapd listens there: which port has it?"


class Answerer:
    """A ROUTER that answers every message with the same bytes: a ranktapd of another release
    cannot be had here, and this is what it says."""

    def __init__(self, answer: bytes | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self.endpoint = f"tcp://127.0.0.1:{self._router.bind_to_random_port('tcp://127.0.0.1')}"
        self._answer = answer
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            if self._router.poll(20):
                peer, *_ = self._router.recv_multipart()
                if self._answer is not None:
                    self._router.send_multipart([peer, self._answer])

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._context.destroy(linger=0)


@pytest.fixture
def answerer() -> Iterator[Callable[[bytes | None], Answerer]]:
    made: list[Answerer] = []

    def make(answer: bytes | None) -> Answerer:
        made.append(Answerer(answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


MakeAnswerer = Callable[[bytes | None], Answerer]


def packed(answer: Any) -> bytes:
    (part,) = frames.pack_answer(answer)
    return bytes(part)


def test_another_program_on_zeromq_is_no_ranktapd(examine: Examine, answerer: MakeAnswerer) -> None:
    other = answerer(b"hello to you")
    name, text, _ = examine(f"--endpoint={other.endpoint}").failed()
    assert name == "daemon" and text.startswith("another program answers, not a ranktapd: header")
    silent = answerer(None)
    name, text, _ = examine(f"--endpoint={silent.endpoint}", "--timeout=0.3").failed()
    assert (name, text) == ("daemon", "a ZeroMQ socket, and no answer in 0.3 s")


def test_a_daemon_of_another_protocol_is_told_from_one_that_is_only_older(
    examine: Examine, answerer: MakeAnswerer
) -> None:
    newer = answerer(packed(ProbeAnswer(1.0, 2.0, "9.9.9", protocol=PROTOCOL + 1)))
    found = examine(f"--endpoint={newer.endpoint}")
    assert found.status == 1
    text = f"ranktapd 9.9.9, protocol {PROTOCOL + 1}; this client speaks {PROTOCOL}"
    assert found.checks["daemon"]["text"] == text
    assert found.checks["daemon"]["advice"] == "install the same release of ranktap on both sides"
    older = answerer(packed(Error(Code.MALFORMED, "type: expected hello, batch, beat or bye")))
    found = examine(f"--endpoint={older.endpoint}")
    assert found.status == 0 and found.checks["daemon"]["level"] == "note"
    assert "older release" in found.checks["daemon"]["advice"]


def test_a_daemon_that_hangs_takes_a_connection_and_says_nothing(
    start_daemon: StartDaemon, examine: Examine
) -> None:
    daemon = start_daemon()
    os.kill(daemon.pid, signal.SIGSTOP)
    name, text, advice = examine(f"--endpoint={daemon.endpoint}", "--timeout=0.3").failed()
    assert name == "reach" and text.endswith("nobody says anything on it")
    assert advice.startswith("it may be starting (recovering its journals), or hang")
    os.kill(daemon.pid, signal.SIGCONT)
    assert examine(f"--endpoint={daemon.endpoint}").status == 0


# -- who is let in ----------------------------------------------------------------------


class Guarded:
    """A daemon that asks for keys, and where they are."""

    def __init__(self, directory: Path, start_daemon: StartDaemon) -> None:
        self.directory = directory
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.metrics_port = free_port()
        self.keygen("alice")
        self.daemon = start_daemon(
            f"--listen={self.endpoint}",
            f"--server-key={directory}/server.key",
            f"--client-keys={directory}/clients",
            f"--metrics=127.0.0.1:{self.metrics_port}",
        )

    def keygen(self, *arguments: str) -> None:
        assert keygen.main(["--dir", str(self.directory), *arguments]) == 0

    def arguments(self, name: str) -> list[str]:
        return [f"--endpoint={self.endpoint}", f"--key-file={self.directory / name}.key"]


@pytest.fixture
def guarded(tmp_path: Path, start_daemon: StartDaemon, examine: Examine) -> Guarded:
    return Guarded(tmp_path / "keys", start_daemon)


def test_a_key_that_is_let_in_is_and_what_it_may_write_is_said(
    guarded: Guarded, examine: Examine, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded.keygen("bob", "--runs", "bob/*")
    capsys.readouterr()
    found = examine(*guarded.arguments("bob"), "--run=bob/x")
    assert found.status == 0
    assert found.checks["reach"]["text"].endswith("takes connections, and asks for a key")
    assert found.checks["keys"]["text"].endswith(f", of {guarded.directory / 'bob.key'}")
    name, text = "access", "let in, and run 'bob/x' may be written"
    assert found.checks[name]["text"] == text
    found = examine(*guarded.arguments("bob"), "--run=alice/x")
    assert found.status == 1
    assert found.checks[name]["level"] == "FAIL"
    assert found.checks[name]["text"] == (
        "refused: the key of 'bob' may write runs that match 'bob/*', got run 'alice/x'"
    )
    # It was only asked: nobody is accused of it.
    assert "refused" not in guarded.daemon.log
    assert ("ranktapd_denied_total", "run") not in metrics(guarded.metrics_port)
    assert [*guarded.daemon.logdir.glob("[!.]*")] == []
    (guarded.directory / "bob.key").chmod(0o644)
    found = examine(*guarded.arguments("bob"), "--run=bob/x")
    assert found.status == 0 and found.checks["keys"]["level"] == "note"
    assert found.checks["keys"]["advice"] == f"chmod 600 {guarded.directory / 'bob.key'}"


def test_a_key_that_is_not_let_in_is_said_to_be(
    guarded: Guarded, examine: Examine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded.keygen("eve")
    (guarded.directory / "clients" / "eve.toml").unlink()
    keygen.main(["--dir", str(tmp_path / "elsewhere"), "mallory"])
    endpoint = f"--endpoint={guarded.endpoint}"
    capsys.readouterr()
    for arguments, told in (
        ([endpoint], "set RANKTAP_KEY_FILE"),
        (guarded.arguments("eve"), "does not let the key"),
        (
            [endpoint, f"--key-file={tmp_path / 'elsewhere' / 'mallory.key'}"],
            "is the key that is given for it its own?",
        ),
    ):
        name, text, _ = examine(*arguments).failed()
        assert name == "access" and told in text


def test_a_key_file_that_is_none_is_named(examine: Examine, tmp_path: Path) -> None:
    path = tmp_path / "alice.key"
    name, text, _ = examine(f"--key-file={path}", "--endpoint=tcp://127.0.0.1:1").failed()
    assert (name, text) == ("keys", f"--key-file: {path}: No such file or directory")


@ROOT_ONLY
def test_a_socket_that_one_may_not_use_names_the_group_that_may(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon()
    path = Path(daemon.endpoint.removeprefix("ipc://"))
    path.parent.chmod(0o755)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    program = (
        # Imported before: the interpreter may be where only root may read.
        "import os, sys; from ranktap import cli, doctor; doctor._versions();"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY});"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--json", f"--endpoint={daemon.endpoint}"],
        capture_output=True, text=True, timeout=60, cwd="/",
        env={name: value for name, value in os.environ.items() if name[:8] != "RANKTAP_"},
    )  # fmt: skip
    assert done.stderr == ""
    name, text, advice = Examination(done.returncode, done.stdout).failed()
    assert (name, text) == ("reach", f"{daemon.endpoint}: Permission denied")
    assert advice.startswith("it is for its owner and the group 'root': usermod -aG root")


# -- a daemon that would be started -----------------------------------------------------


def test_for_a_logdir_it_says_who_has_it_or_what_would_be_started(
    start_daemon: StartDaemon, examine: Examine, tmp_path: Path
) -> None:
    found = examine(f"--logdir={tmp_path / 'new'}")
    assert found.status == 0 and not (tmp_path / "new").exists()
    assert "the first local rank starts one" in found.checks["endpoint"]["text"]
    assert f"bytes free below {tmp_path}" in found.checks["disk"]["text"]
    daemon = start_daemon()
    found = examine(f"--logdir={daemon.logdir}")
    assert found.status == 0 and found.checks["daemon"]["level"] == "ok"
    assert found.checks["endpoint"]["text"] == (
        f"{daemon.endpoint}: a ranktapd has {daemon.logdir}"
    )
    (tmp_path / "file").write_text("")
    name, text, _ = examine(f"--logdir={tmp_path / 'file' / 'runs'}").failed()
    assert (name, text) == (
        "logdir", f"{tmp_path / 'file' / 'runs'}: {tmp_path / 'file'} cannot be written"
    )  # fmt: skip


# -- what else may be wrong -------------------------------------------------------------


def test_a_clock_that_is_off_is_found_with_its_bound(
    start_daemon: StartDaemon, examine: Examine, tmp_path: Path
) -> None:
    log_host = Interposer(tmp_path / "log host", tmp_path)
    daemon = start_daemon(program=log_host.program())
    assert examine(f"--endpoint={daemon.endpoint}").status == 0
    for shift_s, shown in ((3_600.0, "3,600.0 s ahead of"), (-90.0, "90.0 s behind")):
        log_host.shift_clock(shift_s)
        name, text, advice = examine(f"--endpoint={daemon.endpoint}").failed()
        assert name == "clock" and "timedatectl" in advice
        assert text.startswith(f"the daemon's is {shown} this machine's, give or take ")


def test_a_full_daemon_and_a_disabled_tap_are_found(
    start_daemon: StartDaemon, examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "ranktapd.toml"
    config.write_text(f"min_free_bytes = {1 << 60}\n")
    daemon = start_daemon(f"--config={config}")
    found = examine(f"--endpoint={daemon.endpoint}")
    assert found.status == 1
    assert found.checks["access"]["text"] == "busy: the daemon's disk is full"
    assert found.checks["access"]["advice"] == "it goes by itself, and a tap waits for it"
    monkeypatch.setenv("RANKTAP_DISABLED", "1")
    found = examine(f"--endpoint={daemon.endpoint}")
    assert found.checks["disabled"]["text"] == "RANKTAP_DISABLED is set: nothing is logged"
