"""A network that is cut and heals, and connections that are reset in mid-message."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ranktap
from tests.support import ledger
from tests.support.cutting_proxy import CuttingProxy
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files
from tests.support.namespaces import TwoMachines
from tests.support.rank_program import FOR_EVER, ROOT, let_end, report
from tests.support.shown import assert_shown
from tests.support.strangers import free_port
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
RUN = "faults/network"
WORLD_SIZE = 2
STEP_S = 0.05
SLOWEST_SCALAR_S = 0.05
PORT = 5757


# -- two machines -------------------------------------------------------------------------


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    machines = TwoMachines()
    yield machines
    machines.close()


def _start_rank(machines: TwoMachines, rank: int, end: Path) -> subprocess.Popen[str]:
    command = machines.on_trainer(
        sys.executable, "-m", "tests.support.rank_program",
        f"tcp://{machines.LOG_HOST}:{PORT}", RUN, str(rank), str(WORLD_SIZE), str(FOR_EVER),
        str(STEP_S), str(end),
    )  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _written_bytes(daemon: DaemonProcess) -> int:
    return sum(path.stat().st_size for path in event_files(Path(daemon.logdir) / RUN))


def _cut_and_heal(
    machines: TwoMachines, start_daemon: DaemonStarter, end: Path, cuts: list[tuple[str, float]]
) -> None:
    """The ledger's job, with the network cut for so many seconds each time, until it has healed."""
    daemon = start_daemon(
        "--listen", f"tcp://{machines.LOG_HOST}:{PORT}", "--insecure",
        "--straggler-timeout", "3600",
        program=machines.on_log_host(sys.executable, "-m", "ranktapd"),
    )  # fmt: skip
    began = time.monotonic()
    ranks = [_start_rank(machines, rank, end) for rank in range(WORLD_SIZE)]
    try:
        for kind, seconds in cuts:
            before = _written_bytes(daemon)
            wait_for(
                lambda: _written_bytes(daemon) > before + 4_000,  # noqa: B023
                "the job to go on: a hundred points",
            )
            cut, heal = {
                "cable": (machines.pull_cable, machines.plug_in),
                "answers": (machines.lose_answers, machines.bring_answers),
            }[kind]
            cut()
            try:
                # Nothing to wait for: the cut is as long as it is.
                with pytest.raises(subprocess.TimeoutExpired):
                    ranks[0].wait(seconds)
            finally:
                heal()
        steps = let_end(end, began, STEP_S)
        reports = [report(rank, 90) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    for rank, told in enumerate(reports):
        print(f"rank {rank}: slowest call {told['slowest_s'] * 1e3:.2f} ms")
        assert told["closed"], told["stderr"]
        assert told["slowest_s"] < SLOWEST_SCALAR_S
        assert f"no answer from tcp://{machines.LOG_HOST}" in str(told["stderr"]), "never cut off"
    assert daemon.stop() == 0
    assert_shown(Path(daemon.logdir) / RUN, ledger.expected_run(WORLD_SIZE, range(steps)))


def test_a_network_that_is_cut_and_heals_loses_and_doubles_nothing(
    machines: TwoMachines, start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    # One way only, for less than the client waits for an answer; then altogether, for longer.
    _cut_and_heal(machines, start_daemon, tmp_path / "end", [("answers", 0.5), ("cable", 3.2)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_network_that_is_cut_again_and_again_loses_and_doubles_nothing(
    machines: TwoMachines, start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    chance = random.Random(5)
    cuts = [
        (chance.choice(("cable", "answers")), chance.choice((0.2, 1.0, 3.0, 5.0, 12.0)))
        for _ in range(30)
    ]
    # Not longer than a session is waited for: then points may be of one rank, the rest late.
    _cut_and_heal(machines, start_daemon, tmp_path / "end", [*cuts, ("cable", 25.0)])


# -- connections that are reset -----------------------------------------------------------


def test_connections_reset_in_mid_message_lose_and_double_nothing(
    start_daemon: DaemonStarter,
) -> None:
    _reset_again_and_again(start_daemon, resets=15, seed=9, lowest=300)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_thousand_connections_reset_in_mid_message_lose_and_double_nothing(
    start_daemon: DaemonStarter,
) -> None:
    # In the middle of a greeting, too.
    _reset_again_and_again(start_daemon, resets=1_000, seed=10, lowest=1)


def _reset_again_and_again(
    start_daemon: DaemonStarter, *, resets: int, seed: int, lowest: int
) -> None:
    port = free_port()
    daemon = start_daemon("--listen", f"tcp://127.0.0.1:{port}", "--straggler-timeout", "3600")
    # At the latest some twenty batches behind the greeting.
    with CuttingProxy(port, random.Random(seed), after_bytes=(lowest, 40_000)) as proxy:
        endpoint = f"tcp://127.0.0.1:{proxy.port}"
        taps = [
            ranktap.init(RUN, endpoint=endpoint, rank=rank, world_size=WORLD_SIZE)
            for rank in range(WORLD_SIZE)
        ]
        steps = 0
        while proxy.resets < resets:
            for tap in taps:
                ledger.log_step(tap, steps)
            steps += 1
            taps[0].flush(timeout=0.1)
        proxy.let_through()
        assert all(tap.close(timeout=30) for tap in taps)
        print(f"{proxy.resets} resets in {steps} steps, {proxy.in_mid_message} within a message")
        assert proxy.in_mid_message >= resets // 2
    assert daemon.stop() == 0
    assert_shown(Path(daemon.logdir) / RUN, ledger.expected_run(WORLD_SIZE, range(steps)))
