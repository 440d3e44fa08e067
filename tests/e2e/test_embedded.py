"""`logdir=`: a daemon for this machine that comes and goes with the job."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ranktap
from ranktap_wire.places import embedded_socket
from tests.support.daemons import DaemonProcess, ranks_environment
from tests.support.embedded import (
    daemons_of,
    kill_all,
    log_of,
    wait_until_ended,
)
from tests.support.event_files import accumulate, event_files, scalar_points
from tests.support.scripts import run_python
from tests.support.waiting import wait_for

JOBS = Path(__file__).parent / "jobs"


@pytest.fixture
def logdir(tmp_path: Path) -> Iterator[Path]:
    """A logdir whose daemons are ended whatever a test does; their log is shown when it fails."""
    directory = tmp_path / "runs"
    yield directory
    print(log_of(directory))
    kill_all(directory)
    embedded_socket(directory).unlink(missing_ok=True)


class Rank:
    """A process that logs to a logdir."""

    def __init__(self, *command: str | Path, rank: int = 0, world_size: int = 1) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=ranks_environment(rank, world_size),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ended(self, timeout_s: float = 60.0) -> str:
        """What it said, once it has ended well; the end of its input is what it is told."""
        said, errors = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, errors
        return said


def times_started(logdir: Path) -> int:
    return log_of(logdir).count(": listening on")


def in_order(steps: int, first: float = 0.0) -> list[tuple[int, float]]:
    return [(step, step + first) for step in range(steps)]


# -- one daemon ---------------------------------------------------------------------------


def test_ranks_that_start_at_once_share_one_daemon_which_ends_by_itself(logdir: Path) -> None:
    job = JOBS / "embedded_rank.py"
    ranks = [Rank(job, logdir, "job", "300", "close", rank=n, world_size=4) for n in range(4)]
    assert all("closed: True" in rank.ended() for rank in ranks)
    wait_until_ended(logdir)
    log = log_of(logdir)
    assert times_started(logdir) == 1, log
    assert "all sessions are closed and everything is written: ending" in log
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", log), log
    points = scalar_points(logdir / "job")
    assert points["loss"] == in_order(300, first=1.5)
    assert points["ranks/loss/min"] == in_order(300)
    assert points["ranks/loss/max"] == in_order(300, first=3.0)
    merged = accumulate(logdir / "job").Histograms("values")
    assert [(each.step, each.histogram_value.num) for each in merged] == [(0, 40)]


def test_a_running_daemon_is_used_by_the_next_job_and_another_run(logdir: Path) -> None:
    with ranktap.init("first", logdir=logdir) as tap:
        tap.scalar("loss", 1.0, 1)
        assert tap.flush(timeout=60)
        (daemon,) = daemons_of(logdir)
        said = run_python(JOBS / "embedded_rank.py", logdir, "second", "100", "close").stdout
        assert "closed: True" in said
        # That it ended although the daemon lives on says that the daemon does not hold its
        # standard output: `python train.py | tee log` ends with the training.
        assert [each.pid for each in daemons_of(logdir)] == [daemon.pid]
    wait_until_ended(logdir)
    assert times_started(logdir) == 1
    assert scalar_points(logdir / "first") == {"loss": [(1, 1.0)]}
    assert scalar_points(logdir / "second")["loss"] == in_order(100)


def test_a_job_after_the_daemon_has_ended_starts_another_and_continues_the_run(
    logdir: Path,
) -> None:
    for _ in range(2):
        with ranktap.init("run", logdir=logdir) as tap:
            tap.scalar("loss", 1.0, times_started(logdir))
            assert tap.close(timeout=60)
        wait_until_ended(logdir)
    assert times_started(logdir) == 2
    assert [step for step, _ in scalar_points(logdir / "run")["loss"]] == [0, 1]
    assert len(event_files(logdir / "run")) == 1


def test_jobs_one_after_the_other_lose_nothing_whether_the_daemon_ends_in_between_or_not(
    logdir: Path,
) -> None:
    for number in range(4):
        with ranktap.init("run", logdir=logdir) as tap:
            tap.scalar(f"loss/{number}", float(number), number)
            assert tap.close(timeout=60)
    wait_until_ended(logdir)
    points = scalar_points(logdir / "run")
    assert points == {f"loss/{number}": [(number, float(number))] for number in range(4)}


def test_a_logdir_that_a_service_has_is_logged_to_through_the_service(
    logdir: Path, start_daemon: Callable[..., DaemonProcess]
) -> None:
    service = start_daemon()
    assert service.logdir == logdir
    with ranktap.init("run", logdir=logdir) as tap:
        tap.scalar("loss", 1.0, 1)
    assert tap.close()
    assert daemons_of(logdir) == []
    assert service.stop() == 0
    assert scalar_points(logdir / "run") == {"loss": [(1, 1.0)]}


def test_a_relative_logdir_is_that_of_the_moment_of_init(
    tmp_path: Path, logdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tap = ranktap.init("run", logdir="runs")
    monkeypatch.chdir("/")
    tap.scalar("loss", 1.0, 1)
    assert tap.close(timeout=60)
    wait_until_ended(logdir)
    assert scalar_points(logdir / "run") == {"loss": [(1, 1.0)]}


def test_modules_in_the_trainings_directory_are_not_the_daemons(
    tmp_path: Path, logdir: Path
) -> None:
    for name in ("argparse", "json", "zmq", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not for the daemon')\n")
    run_python(JOBS / "embedded_rank.py", logdir, "run", "10", "close", cwd=tmp_path)
    wait_until_ended(logdir)
    assert scalar_points(logdir / "run")["loss"] == in_order(10)


def test_a_forked_worker_does_not_keep_the_lock_under_which_a_daemon_starts(logdir: Path) -> None:
    """A DataLoader is usually made right after the tap, while its daemon is starting."""
    program = """
import os, signal, sys, time
import ranktap
tap = ranktap.init("run", logdir=sys.argv[1])
starting = os.path.join(sys.argv[1], ".ranktap.starting")
while not os.path.exists(starting):
    time.sleep(0.001)
workers = []
for _ in range(50):  # some of them while the lock is held, or a process is being started
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # its end, should nobody end it
        signal.pause()
    workers.append(pid)
    time.sleep(0.004)
try:
    tap.scalar("loss", 1.0, 1)
    assert tap.flush(timeout=20)
    import fcntl
    with open(starting) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
finally:
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
assert tap.close(timeout=60)
"""
    run_python(program, logdir)
    wait_until_ended(logdir)
    assert scalar_points(logdir / "run") == {"loss": [(1, 1.0)]}


# -- the end of the training --------------------------------------------------------------


@pytest.mark.parametrize(("end", "status"), [("exit", 0), ("exception", 1), ("status", 3)])
def test_without_close_the_interpreters_exit_delivers_everything(
    logdir: Path, end: str, status: int
) -> None:
    done = run_python(JOBS / "embedded_rank.py", logdir, "run", "5000", end, status=status)
    assert "has logged" in done.stdout
    assert ("ZeroDivisionError: training failed" in done.stderr) == (end == "exception")
    assert "ranktap" not in done.stderr.replace(str(JOBS), "")
    wait_until_ended(logdir)
    assert scalar_points(logdir / "run")["loss"] == in_order(5_000)
    shown = accumulate(logdir / "run")
    assert len(shown.Images("picture")) == len(shown.Histograms("values")) == 1


# -- kill -9 ------------------------------------------------------------------------------


def test_a_daemon_that_is_killed_in_mid_job_is_started_again_and_nothing_is_lost_or_doubled(
    logdir: Path,
) -> None:
    rank = Rank(JOBS / "embedded_until_told.py", logdir, "run")
    for times in (1, 2):
        wait_for(lambda: times_started(logdir) == times, "a daemon to listen")  # noqa: B023
        size = sum(file.stat().st_size for file in event_files(logdir / "run"))
        wait_for(
            lambda: sum(file.stat().st_size for file in event_files(logdir / "run")) > size,  # noqa: B023
            "points of this daemon",
        )
        (daemon,) = daemons_of(logdir)
        daemon.kill()
    wait_for(lambda: times_started(logdir) == 3, "the third daemon")
    steps, journaled = rank.ended().split()
    assert journaled == "True"
    wait_until_ended(logdir)
    assert scalar_points(logdir / "run") == {"loss": in_order(int(steps))}
    assert len(event_files(logdir / "run")) == 1


def test_a_killed_daemons_lock_and_socket_are_in_nobodys_way(logdir: Path) -> None:
    with ranktap.init("run", logdir=logdir) as tap:
        tap.scalar("loss", 1.0, 1)
        assert tap.flush(timeout=60)
        (daemon,) = daemons_of(logdir)
        daemon.kill()
        daemon.wait(10)
        assert embedded_socket(logdir).exists()
        assert run_python(
            JOBS / "embedded_rank.py", logdir, "other", "10", "close"
        ).stdout.endswith("closed: True\n")
    wait_until_ended(logdir)
    assert scalar_points(logdir / "run") == {"loss": [(1, 1.0)]}
    assert scalar_points(logdir / "other")["loss"] == in_order(10)


def test_a_daemon_that_is_killed_before_it_has_written_what_it_journaled_is_started_again(
    logdir: Path,
) -> None:
    with ranktap.init("run", logdir=logdir) as tap:
        wait_for(lambda: daemons_of(logdir), "the daemon")
        for step in range(20_000):
            tap.scalar("loss", float(step), step)
        assert tap.flush(timeout=60)
        (daemon,) = daemons_of(logdir)
        daemon.kill()
        assert tap.close(timeout=60), "everything is in the journal"
    # Should the start take longer than a goodbye may, it waits 30 s for this session.
    wait_until_ended(logdir, deadline_s=60)
    assert times_started(logdir) == 2
    assert scalar_points(logdir / "run") == {"loss": in_order(20_000)}


# -- what is missing ----------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["tensorboard", "isal", "prometheus_client"])
def test_without_what_the_daemon_needs_the_error_says_what_to_install(
    logdir: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"lacks {missing}: pip install 'ranktap\[dae"):
        ranktap.init("run", logdir=logdir)
    assert not logdir.exists()


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_logdir_that_cannot_be_written_is_told_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, below: str
) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    tap = ranktap.init("run", logdir=file / below)
    for step in range(100):
        tap.scalar("loss", 1.0, step)
    told = wait_for(lambda: caplog.messages, "the error to be told")
    assert len(told) == 1
    assert re.search(rf"{re.escape(str(file))}.*; training goes on$", told[0])
    assert not tap.close(timeout=0.2)
    assert file.read_text() == "no directory"


def test_a_daemon_that_cannot_start_is_told_with_its_own_words_and_training_goes_on(
    logdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logdir.mkdir()
    (logdir / ".ranktap").write_text("in the way")
    tap = ranktap.init("run", logdir=logdir)
    tap.scalar("loss", 1.0, 1)
    told = wait_for(lambda: caplog.messages, "the error to be told")
    assert re.match(
        r"ranktap: the embedded daemon did not start: .*\.ranktap.*; training goes on$", told[0]
    )
    assert not tap.close(timeout=0.2)
    # Once what was in the way is gone, the next one starts.
    (logdir / ".ranktap").unlink()
    with ranktap.init("run", logdir=logdir) as tap:
        tap.scalar("loss", 2.0, 2)
        assert tap.close(timeout=60)
    wait_until_ended(logdir)


def test_a_daemon_that_could_not_start_is_tried_again(
    logdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logdir.mkdir()
    (logdir / ".ranktap").write_text("in the way")
    tap = ranktap.init("run", logdir=logdir)
    tap.scalar("loss", 1.0, 1)
    wait_for(lambda: caplog.messages, "the error to be told")
    (logdir / ".ranktap").unlink()
    assert tap.close(timeout=60)
    wait_until_ended(logdir)
    assert scalar_points(logdir / "run") == {"loss": [(1, 1.0)]}


# -- what it leaves ------------------------------------------------------------------------


def test_what_the_daemon_says_is_in_its_log_and_not_in_the_trainings(logdir: Path) -> None:
    done = run_python(JOBS / "embedded_rank.py", logdir, "run", "10", "close")
    assert done.stderr == ""
    assert done.stdout == "rank 0 has logged\nclosed: True\n"
    wait_until_ended(logdir)
    log = (logdir / ".ranktap" / "ranktapd.log").read_text()
    assert f"writing to {logdir}" in log
    assert f"listening on ipc://{embedded_socket(logdir)}" in log


def test_the_daemon_is_in_a_session_of_its_own_and_keeps_none_of_the_trainings_files(
    logdir: Path,
) -> None:
    with ranktap.init("run", logdir=logdir) as tap:
        tap.scalar("loss", 1.0, 1)
        assert tap.flush(timeout=60)
        (daemon,) = daemons_of(logdir)
        assert os.getsid(daemon.pid) == daemon.pid
        assert daemon.ppid() != os.getpid()
        assert daemon.cwd() == "/"
        opened = [file.path for file in daemon.open_files()]
        assert opened and all(path.startswith(str(logdir)) for path in opened), opened
    wait_until_ended(logdir)


def test_a_pipe_that_the_training_left_open_for_its_children_ends_with_the_training(
    logdir: Path,
) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with ranktap.init("run", logdir=logdir) as tap:
        tap.scalar("loss", 1.0, 1)
        assert tap.flush(timeout=60)
        os.close(write)
        ready, _, _ = select.select([read], [], [], 1)
        assert ready and os.read(read, 1) == b"", "the daemon has it too"
    os.close(read)
    wait_until_ended(logdir)


def test_the_socket_is_the_users_own(logdir: Path) -> None:
    with ranktap.init("run", logdir=logdir) as tap:
        tap.scalar("loss", 1.0, 1)
        assert tap.flush(timeout=60)
        directory = embedded_socket(logdir).parent.stat()
    assert directory.st_uid == os.getuid()
    assert directory.st_mode & 0o077 == 0
    wait_until_ended(logdir)


def test_a_daemon_to_which_nobody_says_hello_ends_by_itself(logdir: Path) -> None:
    program = """
import sys
import ranktapd.daemon
from ranktapd.cli import main
ranktapd.daemon.FIRST_SESSION_S = 0.5  # a minute, where nobody waits for it
sys.exit(main())
"""
    listen = f"--listen=ipc://{embedded_socket(logdir)}"
    embedded_socket(logdir).parent.mkdir(mode=0o700, exist_ok=True)
    run_python(program, "--embedded", f"--logdir={logdir}", listen)
    wait_until_ended(logdir)
    assert times_started(logdir) == 1
    assert "ending" in log_of(logdir)
