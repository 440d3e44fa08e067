"""Jobs that lose ranks, get others, and start again: nothing hangs, and every point is there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ranktapd.entries import WindowsExpired
from ranktapd.runs import RunPlace
from tests.e2e.jobs import elastic
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate, scalar_points
from tests.support.folding import count_entries
from tests.support.told_ranks import ToldRank
from tests.support.waiting import wait_for

StartDaemon = Callable[..., DaemonProcess]
STRAGGLER_S = 1.0


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> DaemonProcess:
    return start_daemon(f"--straggler-timeout={STRAGGLER_S}")


def points(daemon: DaemonProcess, run: str, tag: str = "x") -> list[tuple[int, float]]:
    return scalar_points(daemon.logdir / run).get(tag, [])


# -- torchrun -----------------------------------------------------------------------------


class Agents:
    """Two torchrun agents of one elastic job, with two ranks each."""

    def __init__(self, endpoint: str, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.directory = directory
        self.said = directory / "stderr"
        self.processes = []
        for is_host in (1, 0):
            conf = f"is_host={is_host},last_call_timeout=5,keep_alive_interval=1"
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2",
                "--nproc-per-node=2", "--max-restarts=5", "--monitor-interval=0.1",
                "--rdzv-backend=c10d", "--rdzv-id=elastic-job", f"--rdzv-conf={conf}",
                f"--rdzv-endpoint=127.0.0.1:{port}", elastic.__file__, str(directory),
            ]  # fmt: skip
            with open(self.said, "a") as said:
                environ = os.environ | {"RANKTAP_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1"}
                self.processes.append(subprocess.Popen(command, env=environ, stderr=said))

    def begin(self, life: int) -> None:
        (self.directory / "life").write_text(str(life))

    def wait_for_life(self, life: int, world_size: int) -> dict[int, int]:
        """The processes of the ranks of a life, when all of them have logged its steps."""

        def ranks() -> dict[int, int]:
            found = {}
            for rank in range(world_size):
                path = self.directory / f"{life}-{rank}"
                if path.exists():
                    process, size = map(int, path.read_text().split())
                    assert size == world_size
                    found[rank] = process
            return found

        wait_for(
            lambda: len(ranks()) == world_size,
            f"life {life} of {world_size} ranks; agents say:\n{self.said.read_text()[-3_000:]}",
            60,
        )
        return ranks()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                psutil.wait_procs([child for child in children if not child.kill()], timeout=10)
            process.wait()


@pytest.fixture
def agents(daemon: DaemonProcess, tmp_path: Path) -> Iterator[Agents]:
    (tmp_path / "life").write_text("0")
    agents = Agents(daemon.endpoint, tmp_path)
    yield agents
    agents.kill()


def test_torchrun_restarts_a_job_with_as_many_ranks_and_with_fewer(
    agents: Agents, daemon: DaemonProcess
) -> None:
    ranks = agents.wait_for_life(0, 4)
    agents.begin(1)
    os.kill(ranks[0], signal.SIGKILL)
    ranks = agents.wait_for_life(1, 4)
    agents.begin(2)
    host, other = agents.processes
    parents = {rank: psutil.Process(process).ppid() for rank, process in ranks.items()}
    # A machine is gone, with all that ran there; and a rank elsewhere fails for that.
    other.kill()
    failed = min(rank for rank, parent in parents.items() if parent == host.pid)
    for rank, parent in parents.items():
        if parent == other.pid or rank == failed:
            os.kill(ranks[rank], signal.SIGKILL)
    assert host.wait(60) == 0, agents.said.read_text()
    expected = []
    for life, world_size in enumerate((4, 4, 2)):
        for step in range(life * elastic.STEPS, (life + 1) * elastic.STEPS):
            values = [elastic.value(life, rank, step) for rank in range(world_size)]
            expected.append((step, sum(values) / world_size))
    # Those that did not come back are waited for once.
    wait_for(lambda: points(daemon, "elastic") == expected, "the points of all lives")
    assert daemon.stop() == 0
    assert "ranktap/late" not in scalar_points(daemon.logdir / "elastic")
    *_, last = accumulate(daemon.logdir / "elastic").Tensors("ranktap/job/text_summary")
    summary = last.tensor_proto.string_val[0].decode()
    assert "| rank 0 has ended without a goodbye |" in summary
    assert "the job was started again, with 4 ranks; it had come to step 9 |" in summary
    assert "the job was started again, with 2 ranks; it had come to step 19 |" in summary


# -- ranks that come and go ---------------------------------------------------------------


@pytest.fixture
def ranks(daemon: DaemonProcess) -> Iterator[Callable[[int], ToldRank]]:
    """Starts rank `k` of 3, which logs the value 4**k: a sum tells who is in it."""
    started: list[ToldRank] = []

    def start(rank: int) -> ToldRank:
        started.append(ToldRank(daemon.endpoint, "exp", "job", rank, 3, 4.0**rank))
        started[-1].wait_until_here()
        return started[-1]

    yield start
    for each in started:
        if not each.is_over:
            print(each.kill())


def test_a_rank_that_joins_late_is_waited_for_from_then_on(
    ranks: Callable[[int], ToldRank], daemon: DaemonProcess
) -> None:
    first = [ranks(0), ranks(1)]
    for rank in first:
        rank.log(0, 5)
        assert rank.journaled()
    without = [(step, (1 + 4) / 2) for step in range(5)]
    wait_for(lambda: points(daemon, "exp") == without, "the points of two ranks of three")
    late = ranks(2)
    late.log(4, 1)  # a point that the others have given up on
    assert late.journaled()
    everyone = [*first, late]
    for rank in everyone:
        rank.log(5, 5)
        assert rank.journaled()
    together = [(step, (1 + 4 + 16) / 3) for step in range(5, 10)]
    wait_for(lambda: points(daemon, "exp") == without + together, "the points of three ranks")
    for rank in everyone:
        rank.close()
        assert rank.journaled()
        rank.kill()
    assert daemon.stop() == 0
    assert points(daemon, "exp", "ranktap/late")[-1][1] == 1


def test_a_rank_that_is_killed_is_waited_for_once(
    ranks: Callable[[int], ToldRank], daemon: DaemonProcess
) -> None:
    everyone = [ranks(rank) for rank in range(3)]
    for rank in everyone:
        rank.log(0, 5)
        assert rank.journaled()
    everyone.pop().kill()
    for rank in everyone:
        rank.log(5, 5)
        assert rank.journaled()
    expected = [(step, 7.0) for step in range(5)] + [(step, 2.5) for step in range(5, 10)]
    wait_for(lambda: points(daemon, "exp") == expected, "the points of those that are left")
    journal = RunPlace.of(daemon.logdir, daemon.logdir / ".ranktap", "exp").journal
    given_up = count_entries(journal, WindowsExpired)
    for rank in everyone:
        rank.log(10, 5)
        assert rank.journaled()
    expected += [(step, 2.5) for step in range(10, 15)]
    wait_for(lambda: points(daemon, "exp") == expected, "the points of later steps")
    assert count_entries(journal, WindowsExpired) == given_up
    for rank in everyone:
        rank.close()
        assert rank.journaled()
        rank.kill()
    assert daemon.stop() == 0
    assert points(daemon, "exp") == expected
