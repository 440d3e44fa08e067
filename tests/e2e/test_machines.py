"""A job whose ranks are on two machines, and that says nothing but `logdir=`.

The machines are network namespaces: a rank in one reaches the other's by tcp alone. They share
this machine's file system, which real ones need not.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ranktap_wire.places import state_directory
from tests.support.embedded import daemons_of, kill_all, log_of
from tests.support.event_files import scalar_points
from tests.support.waiting import wait_for

JOB = Path(__file__).parent / "jobs" / "on_machines.py"
ADDRESSES = ("10.213.77.1", "10.213.77.2")


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces, with a cable between them."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2, to make network namespaces")
    tail = secrets.token_hex(3)
    one, other = names = (f"rt-{tail}-0", f"rt-{tail}-1")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
                ip("netns", "exec", name, "true")
            ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", other)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces on this machine: {error.stderr.decode().strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def start(machines: tuple[str, str], tmp_path: Path) -> Iterator[Callable[[], list[Rank]]]:
    """Starts two ranks, each on a machine of its own."""
    started: list[Rank] = []

    def start_all() -> list[Rank]:
        started.extend(Rank(machines, tmp_path / "runs", rank) for rank in range(2))
        return started

    yield start_all
    for rank in started:
        print(rank.kill())
    kill_all(tmp_path / "runs")
    print(log_of(tmp_path / "runs"))


class Rank:
    def __init__(self, machines: tuple[str, str], logdir: Path, rank: int) -> None:
        environ = {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "GROUP_RANK": str(rank), "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job",
            "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "cable",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", machines[rank], sys.executable, JOB, logdir],
            env=os.environ | environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("log\n")
        self.process.stdin.flush()

    def hear(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> str:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return said


def test_ranks_on_another_machine_find_the_daemon_of_rank_0(
    start: Callable[[], list[Rank]], tmp_path: Path
) -> None:
    logdir = tmp_path / "runs"
    ranks = start()
    assert [rank.hear() for rank in ranks] == [["here"]] * 2
    for life in range(2):
        for rank in ranks:
            rank.tell()
        assert [rank.hear() for rank in ranks] == [["True", "ipc"], ["True", "tcp"]]
        (daemon,) = daemons_of(logdir)
        assert f"tcp://{ADDRESSES[0]}:" in " ".join(daemon.cmdline())
        if life == 0:
            # It is started again by a rank of its machine, and is the same to the other one.
            daemon.kill()
            daemon.wait(10)
    for rank in ranks:
        rank.close()
    assert [rank.hear() for rank in ranks] == [["True"]] * 2
    expected = [(step, (1 + 4) / 2) for step in range(10)]
    wait_for(lambda: scalar_points(logdir / "job").get("x") == expected, "the points of all ranks")
    keys = state_directory(logdir) / "job"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert stat.S_IMODE((keys / "server.key").stat().st_mode) == 0o600
