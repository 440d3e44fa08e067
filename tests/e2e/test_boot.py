"""The units under a systemd that really runs, as docs/operations.md says, on their own machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.support.machines import CannotBootError, Machine
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LOG = """
import sys, ranktap
run, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tap = ranktap.init(run, rank=0, world_size=1)
for step in range(first, last):
    tap.scalar("value", float(step), step)
print("journaled" if tap.close(timeout=30) else "not journaled")
"""
CONNECT = """
import socket, sys
kind, where = sys.argv[1:]
with socket.socket(socket.AF_UNIX if kind == "ipc" else socket.AF_INET) as probe:
    probe.connect(where if kind == "ipc" else ("127.0.0.1", int(where)))
"""
READ = """
import sys
sys.path.insert(0, "/opt/ranktap/src")
from pathlib import Path
from tests.support.event_files import scalar_points
import json
print(json.dumps(scalar_points(Path("/var/log/ranktap") / sys.argv[1])))
"""
BOARD = """
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:6006" + sys.argv[1], timeout=10).read().decode())
"""
SOCKET = "/run/ranktap/ranktapd.sock"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    try:
        booted = Machine(tmp_path_factory.mktemp("boot"))
    except CannotBootError as error:
        pytest.skip(str(error))
    try:
        wait_for(lambda: is_active(booted, "ranktapd.service"), "ranktapd to be ready")
        yield booted
        print(booted.run("journalctl", "--no-pager", "--unit=ranktapd", status=None))
    finally:
        booted.close()


def is_active(machine: Machine, unit: str) -> bool:
    return machine.run("systemctl", "is-active", unit, status=None).strip() == "active"


def log(machine: Machine, run: str, first: int, last: int, user: str = "alice") -> None:
    said = machine.python(LOG, run, str(first), str(last), user=user)
    assert said.splitlines()[-1] == "journaled", said


def steps(machine: Machine, run: str) -> list[int]:
    points = json.loads(machine.python(READ, run)).get("value", [])
    assert all(step == value for step, value in points)
    return [step for step, _ in points]


def restarts(machine: Machine) -> int:
    return int(machine.show("ranktapd.service", "NRestarts"))


def main_pid(machine: Machine) -> str:
    return machine.show("ranktapd.service", "MainPID")


def test_the_service_is_ready_and_says_how_it_is(machine: Machine) -> None:
    wait_for(
        lambda: "0 behind" in machine.show("ranktapd.service", "StatusText"), "a line of status"
    )
    assert is_active(machine, "ranktapd.socket")
    assert machine.show("ranktapd.service", "Type") == "notify"
    journal = machine.run("journalctl", "--no-pager", "--unit=ranktapd")
    assert f"listening on ipc://{SOCKET}, tcp://127.0.0.1:5757" in journal
    # The time is the journal's, and it knows the levels.
    assert re.search(r"\]: INFO ranktapd \S+: listening on ", journal)
    only_warnings = machine.run(
        "journalctl", "--no-pager", "--unit=ranktapd", "--priority=warning", "--output=cat"
    )
    assert "INFO" not in only_warnings
    status = machine.run("cat", f"/proc/{main_pid(machine)}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    assert machine.run("stat", "--format=%a %U %G", SOCKET, "/run/ranktap").splitlines() == [
        "660 ranktapd ranktap", "750 ranktapd ranktap",
    ]  # fmt: skip


def test_a_member_of_the_group_logs_over_ipc_and_others_are_refused(machine: Machine) -> None:
    log(machine, "member", 0, 500)
    wait_for(lambda: steps(machine, "member") == list(range(500)), "what alice has logged")
    assert "PermissionError" in machine.python(CONNECT, "ipc", SOCKET, user="eve", status=1)
    said = machine.python(LOG, "stranger", "0", "1", user="eve", status=1)
    assert "LookupError: no daemon to log to" in said
    for path in ("/var/log/ranktap", "/var/lib/ranktap"):
        assert "Permission denied" in machine.run("ls", path, user="eve", status=2)
    assert "Permission denied" in machine.run("ls", "/var/lib/ranktap", user="alice", status=2)
    assert "member" in machine.run("ls", "/var/log/ranktap", user="alice")


def test_killed_it_is_started_again_with_what_it_had(machine: Machine) -> None:
    before = restarts(machine)
    log(machine, "killed", 0, 1_000)
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ranktapd.service")
    # No wait: the socket is systemd's, and the daemon finds the connection when it is back.
    log(machine, "killed", 1_000, 2_000)
    assert restarts(machine) == before + 1
    wait_for(lambda: steps(machine, "killed") == list(range(2_000)), "all that was logged")


def test_one_that_hangs_is_ended_by_the_watchdog_and_started_again(machine: Machine) -> None:
    before = restarts(machine)
    log(machine, "hangs", 0, 100)
    pid = main_pid(machine)
    machine.run("kill", "-STOP", pid)
    log(machine, "hangs", 100, 200)  # held by the client until there is a daemon
    assert restarts(machine) == before + 1
    assert main_pid(machine) != pid
    journal = machine.run("journalctl", "--no-pager", "--unit=ranktapd")
    assert "Watchdog timeout" in journal
    wait_for(lambda: steps(machine, "hangs") == list(range(200)), "all that was logged")


def test_stopped_and_started_by_a_connection_it_goes_on_with_its_files(machine: Machine) -> None:
    log(machine, "stopped", 0, 100)
    machine.run("systemctl", "stop", "ranktapd.service")
    assert steps(machine, "stopped") == list(range(100))
    before = machine.run("sh", "-c", "sha256sum /var/log/ranktap/stopped/*")
    assert machine.show("ranktapd.service", "Result") == "success"
    log(machine, "another", 0, 1)
    assert is_active(machine, "ranktapd.service")
    assert machine.run("sh", "-c", "sha256sum /var/log/ranktap/stopped/*") == before


def test_tensorboards_service_shows_the_run_and_reads_nothing_else(machine: Machine) -> None:
    log(machine, "shown", 0, 10)

    def shown() -> bool:
        said = machine.run("/opt/ranktap/bin/python", "-c", BOARD, "/data/plugin/scalars/tags",
                           status=None)  # fmt: skip
        return '"shown"' in said

    wait_for(shown, "the run", deadline_s=60)
    pid = machine.show("ranktap-tensorboard.service", "MainPID")
    root = f"/proc/{pid}/root"
    for path in ("/var/lib/ranktap", "/run/ranktap", "/etc/ranktap"):
        # What systemd puts in the place of a directory that may not be looked into.
        assert machine.run("stat", "--format=%a", f"{root}{path}") == "0\n"
    written = machine.run("touch", f"{root}/var/log/ranktap/x", status=1)
    assert "Read-only file system" in written


def test_a_reload_takes_a_setting_over_and_a_wrong_one_changes_nothing(machine: Machine) -> None:
    path = "/etc/ranktap/ranktapd.toml"
    for line, said in (("max_runs = 77", "max_runs is 77 now"), ("max_runs = 0", "stays as it is")):
        machine.run("sh", "-c", f"cp {path} {path}.before && echo '{line}' >> {path}")
        machine.run("systemctl", "reload", "ranktapd.service")
        wait_for(
            lambda said=said: said in machine.run("journalctl", "--no-pager", "--unit=ranktapd"),
            said,
        )
        machine.run("mv", f"{path}.before", path)
    assert is_active(machine, "ranktapd.service")


def drop_in(machine: Machine, name: str) -> None:
    machine.run("sh", "-c", f"cp -r /opt/ranktap/src/systemd/{name}/* /etc/systemd/system/")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "ranktapd.socket")
    wait_for(lambda: is_active(machine, "ranktapd.service"), "it to be back")


def take_out(machine: Machine, name: str) -> None:
    machine.run("sh", "-c", f"rm /etc/systemd/system/*/{name}.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "ranktapd.socket")
    wait_for(lambda: is_active(machine, "ranktapd.service"), "it to be back")


def test_without_a_network_it_takes_what_comes_over_ipc(machine: Machine) -> None:
    machine.python(CONNECT, "tcp", "5757", user="eve")
    drop_in(machine, "ipc-only")
    try:
        log(machine, "alone", 0, 100)
        wait_for(lambda: steps(machine, "alone") == list(range(100)), "what alice has logged")
        assert "ConnectionRefusedError" in machine.python(CONNECT, "tcp", "5757", status=1)
    finally:
        take_out(machine, "ipc-only")


def test_beyond_the_machine_it_asks_for_keys(machine: Machine) -> None:
    config = "/etc/ranktap/ranktapd.toml"
    machine.run("cp", config, f"{config}.before")
    machine.run("/opt/ranktap/bin/ranktapd", "keygen", "eve", "--runs", "eve/*")
    machine.run("chown", "ranktapd", "/etc/ranktap/server.key")
    machine.run("sh", "-c", "cp /etc/ranktap/eve.key /tmp && chown eve /tmp/eve.key")
    keys = r'server_key = "/etc/ranktap/server.key"\nclient_keys = "/etc/ranktap/clients"\n'
    machine.run("sh", "-c", f"printf '{keys}' >> {config}")
    drop_in(machine, "tcp")
    try:
        keyed = ["env", "RANKTAP_ENDPOINT=tcp://127.0.0.1:5757", "RANKTAP_KEY_FILE=/tmp/eve.key"]
        python = "/opt/ranktap/bin/python"
        said = machine.run(*keyed, python, "-c", LOG, "eve/run", "0", "100", user="eve")
        assert said == "journaled\n"
        said = machine.run(*keyed, python, "-c", LOG, "run", "0", "100", user="eve")
        assert "not journaled" in said and "may write runs that match 'eve/*'" in said
        log(machine, "keyless", 0, 10)  # alice is in the group
        wait_for(lambda: steps(machine, "eve/run") == list(range(100)), "what eve has logged")
        checked = machine.run("/opt/ranktap/bin/ranktapd", "check", "--config", config,
                              user="ranktapd")  # fmt: skip
        assert "1 may write over tcp" in checked and "a ranktapd has this logdir now" in checked
    finally:
        machine.run("mv", f"{config}.before", config)
        take_out(machine, "tcp")
