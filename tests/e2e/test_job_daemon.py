"""How the ranks of a job on several machines find its daemon; the store and the daemon are real."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

import ranktap
from ranktap import job_daemon
from ranktap.embedded import EmbeddedDaemon
from ranktap.job_daemon import JobDaemon
from ranktap.keys import Address
from tests.support.embedded import daemons_of, kill_all, log_of


@pytest.fixture
def logdir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "runs"
    kill_all(tmp_path / "runs")
    print(log_of(tmp_path / "runs"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    store = dist.HashStore()
    monkeypatch.setattr(job_daemon, "_store", lambda: store)
    monkeypatch.setattr(job_daemon, "WAIT_S", 0.3)
    monkeypatch.setattr(job_daemon, "_own_name", lambda: own_address())
    return store


def own_address() -> str:
    """One of this machine's that is not loopback's, if it has one."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not each.address.startswith("127."):
                return str(each.address)
    return pytest.skip("this machine has no address but loopback's")


def elsewhere(
    monkeypatch: pytest.MonkeyPatch, logdir: Path, given: str = "runs", rank: int = 1
) -> Address:
    """What a rank on another machine finds."""
    with monkeypatch.context() as patched:
        patched.setattr(job_daemon, "machine", lambda: "another boot net:[1]")
        return JobDaemon(logdir, given, rank).locate()


def test_a_rank_finds_its_own_machines_socket_and_elsewhere_tcp_with_keys(
    store: dist.Store, logdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = JobDaemon(logdir, "runs", 0).locate()
    assert first.endpoint.startswith("ipc://") and first.keys is None
    assert JobDaemon(logdir, "runs", 1).locate() == first
    other = elsewhere(monkeypatch, logdir)
    assert re.fullmatch(rf"tcp://{re.escape(own_address())}:\d+", other.endpoint)
    assert other.keys is not None
    # What was found is enough to get in.
    monkeypatch.setenv("RANKTAP_SERVER_KEY", other.keys.server)
    monkeypatch.setenv("RANKTAP_KEY", other.keys.secret)
    with ranktap.init("run", endpoint=other.endpoint, rank=1, world_size=2) as tap:
        tap.scalar("x", 1.0)
        assert tap.flush()


def test_a_second_job_goes_to_the_daemon_that_is_there_with_a_key_of_its_own(
    store: dist.Store, logdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    JobDaemon(logdir, "runs", 0).locate()
    first = elsewhere(monkeypatch, logdir)
    JobDaemon(logdir, "of another job", 0).locate()
    second = elsewhere(monkeypatch, logdir, "of another job")
    assert len(daemons_of(logdir)) == 1
    assert second.endpoint == first.endpoint
    assert first.keys is not None and second.keys is not None
    assert second.keys.server == first.keys.server
    assert second.keys.secret != first.keys.secret


def test_a_daemon_that_others_do_not_reach_is_told_of(store: dist.Store, logdir: Path) -> None:
    EmbeddedDaemon(logdir).locate()
    with pytest.raises(OSError, match="was started by a job on one machine, and others do not"):
        JobDaemon(logdir, "runs", 0).locate()
    assert not store.check(["ranktap"]) and store.num_keys() == 0


def test_where_rank_0_has_said_nothing_the_others_wait_and_say_so(
    store: dist.Store, logdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match=r"rank 0 has not said .* where the ranktapd of .*runs is"):
        JobDaemon(logdir, "runs", 1).locate()
    monkeypatch.setattr(job_daemon, "_store", lambda: None)
    with pytest.raises(OSError, match="there is none: call init_process_group, or give endpoint="):
        JobDaemon(logdir, "runs", 0).locate()
    assert not logdir.exists()


@pytest.mark.parametrize("said", ["", "{}", json.dumps({"machine": 1}), "[]"])
def test_what_rank_0_cannot_have_said_is_told_as_that(
    store: dist.Store, logdir: Path, said: str
) -> None:
    daemon = JobDaemon(logdir, "runs", 1)
    store.set(daemon._key, said)
    with pytest.raises(OSError, match=r"^the store of torch\.distributed: "):
        daemon.locate()


def test_without_a_process_group_there_is_no_store() -> None:
    assert job_daemon._store() is None


@pytest.mark.parametrize(
    ("master", "expected"),
    [
        ("node-7", "node-7"), ("10.0.0.1", "10.0.0.1"), ("fd00::1", "fd00::1"),
        ("", socket.gethostname()), ("localhost", socket.gethostname()),
        ("127.0.1.1", socket.gethostname()), ("::1", socket.gethostname()),
    ],
)  # fmt: skip
def test_a_machine_is_reached_by_the_masters_name_unless_that_is_its_own_alone(
    master: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", master)
    assert job_daemon._own_name() == expected


def test_an_address_that_is_not_ours_or_loopback_is_listened_to_on_all() -> None:
    # 192.0.2.0/24 is for documentation: nobody has it.
    for name in ("192.0.2.1", "localhost"):
        assert job_daemon._free_endpoint(name).startswith("tcp://0.0.0.0:")
    assert job_daemon._free_endpoint(own_address()).startswith(f"tcp://{own_address()}:")
