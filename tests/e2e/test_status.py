"""What a daemon says of itself over HTTP, and `ranktap status`, which shows it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ranktap
from ranktap import cli, status
from tests.support.daemons import DaemonProcess
from tests.support.strangers import free_port, metrics
from tests.support.waiting import wait_for

RUN = "team/[bold]a"


@dataclass
class Asked:
    """A daemon that serves HTTP."""

    daemon: DaemonProcess
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def run(self) -> dict[str, Any]:
        (run,) = status.fetch(self.address)["runs"]
        assert isinstance(run, dict)
        return run


@pytest.fixture
def asked(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Asked]:
    monkeypatch.setenv("WATCHDOG_USEC", "500000")
    port = free_port()
    config = tmp_path / "ranktapd.toml"
    config.write_text("min_free_bytes = 0\n")
    each = Asked(start_daemon(f"--metrics=127.0.0.1:{port}", f"--config={config}"), port)
    yield each
    assert each.daemon.stop() == 0


@pytest.fixture
def taps(asked: Asked) -> Iterator[list[ranktap.Tap]]:
    opened = [
        ranktap.init(RUN, endpoint=asked.daemon.endpoint, rank=rank, world_size=3)
        for rank in range(2)
    ]
    for tap in opened:
        tap.scalar("loss", 1.0, 0)
        assert tap.flush(timeout=30)
    yield opened
    for tap in opened:
        tap.close()


def test_the_status_tells_runs_ranks_lag_and_rates(asked: Asked, taps: list[ranktap.Tap]) -> None:
    wait_for(lambda: asked.run()["lag_entries"] == 0, "all to be written")
    whole = status.fetch(asked.address)
    assert whole["pid"] == asked.daemon.pid and whole["health"] == "ok" and not whole["full"]
    assert whole["sessions"] == 2 and whole["logdir"] == str(asked.daemon.logdir)
    run = asked.run()
    assert (run["run"], run["world_size"], run["sessions"]) == (RUN, 3, 2)
    assert run["entries"] == run["written"] > 4 and run["lag_bytes"] == 0
    assert run["refused"] is None and run["dropped"] == 0
    for number, rank in enumerate(run["ranks"]):
        assert (rank["rank"], rank["pid"], rank["state"]) == (number, os.getpid(), "here")
        assert rank["batches"] == 1
        assert (rank["step"], rank["late"], rank["slow_since"]) == (0, 0, None)
        assert rank["step_time_s"] is None and rank["step_s"] < 60
    assert len(run["ranks"]) == 2
    assert (run["step"], run["lag_s"]) == (0, 0.0)
    # What a worker says of it comes a moment later than how far it is.
    wait_for(lambda: asked.run()["late"] == 0, "the worker to say how the run looks")
    assert asked.run()["last"] == []  # rank 2 has not reported

    (worker,) = asked.daemon.workers()
    worker.suspend()
    for tap in taps:
        tap.scalars({f"tag {number}": 1.0 for number in range(1_000)}, 1)
        assert tap.flush(timeout=30)
    behind = asked.run()
    assert behind["worker"] == "writes"
    # Their columns are 28 bytes a scalar.
    assert behind["lag_entries"] == behind["entries"] - run["entries"] >= 2
    assert 2 * 1_000 * 28 < behind["lag_bytes"] < 1 << 20
    assert (behind["step"], [rank["step"] for rank in behind["ranks"]]) == (1, [1, 1])
    assert sum(rank["records_per_s"] for rank in behind["ranks"]) == pytest.approx(
        behind["records_per_s"], abs=0.2
    )
    wait_for(lambda: asked.run()["lag_s"] > 0.5, "time to pass")
    assert behind["records_per_s"] > 0 and behind["bytes_per_s"] > behind["records_per_s"]
    worker.resume()
    wait_for(lambda: asked.run()["lag_bytes"] == 0, "the worker to catch up")
    assert asked.run()["written"] == behind["entries"]


def test_last_values_are_told_of_as_json_whatever_they_are(asked: Asked) -> None:
    with ranktap.init("alone", endpoint=asked.daemon.endpoint, rank=0, world_size=1) as tap:
        tap.scalar("train/accuracy", 0.5, 3)
        tap.scalar("train/loss", float("nan"), 3)
        tap.scalar("train/lr", float("-inf"), 3)
        wait_for(lambda: asked.run()["last"], "the worker to say how the run looks")
        code, text = asked.get("/status")
        assert code == 200 and "NaN" not in text and "Infinity" not in text
        assert json.loads(text)["runs"][0]["last"] == [
            {"tag": "train/loss", "step": 3, "value": "nan"},
            {"tag": "train/accuracy", "step": 3, "value": 0.5},
            {"tag": "train/lr", "step": 3, "value": "-inf"},
        ]


def test_ranks_are_told_of_for_all_runs_or_one_or_none(
    asked: Asked, taps: list[ranktap.Tap]
) -> None:
    with ranktap.init("alone", endpoint=asked.daemon.endpoint, rank=0, world_size=1):
        wait_for(lambda: status.fetch(asked.address)["sessions"] == 3, "the third tap")

        def ranks(query: str) -> dict[str, int]:
            said = json.loads(asked.get(f"/status{query}")[1])
            return {run["run"]: len(run["ranks"]) for run in said["runs"]}

        assert ranks("") == {"alone": 1, RUN: 2}
        assert ranks("?ranks=alone") == {"alone": 1, RUN: 0}
        assert ranks("?ranks=") == ranks("?ranks=other") == {"alone": 0, RUN: 0}
        assert ranks("?ranks=team%2F%5Bbold%5Da") == {"alone": 0, RUN: 2}


def test_health_is_lost_while_the_main_loop_stands_still_and_comes_back(
    asked: Asked, tmp_path: Path
) -> None:
    assert asked.get("/healthz") == (200, "ok\n")
    config = tmp_path / "ranktapd.toml"
    config.unlink()
    os.mkfifo(config)  # reading it waits for somebody to write
    os.kill(asked.daemon.pid, signal.SIGHUP)
    wait_for(lambda: asked.get("/healthz")[0] == 503, "it to be noticed")
    code, words = asked.get("/healthz")
    assert (code, words[:33]) == (503, "the main loop has not gone round ")
    assert asked.get("/status") == (503, "no answer: " + asked.get("/healthz")[1])
    assert metrics(asked.port)["ranktapd_runs", ""] == 0
    with pytest.raises(status.StatusError, match="no answer: the main loop has not gone round"):
        status.fetch(asked.address)
    config.write_text("min_free_bytes = 0\n")
    wait_for(lambda: asked.get("/healthz") == (200, "ok\n"), "it to go on")


def test_a_full_disk_is_told_of_and_other_paths_are_not_there(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "ranktapd.toml").write_text(f"min_free_bytes = {1 << 60}\n")
    os.kill(asked.daemon.pid, signal.SIGHUP)
    full = (200, "ok, but nothing is accepted: no room\n")
    wait_for(lambda: asked.get("/healthz") == full, "the disk to be too full")
    assert status.fetch(asked.address)["full"]
    assert asked.get("/") == (404, "there are /metrics, /healthz, /status\n")
    request = urllib.request.Request(f"http://{asked.address}/status", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405"), urllib.request.urlopen(request):
        pass


def test_the_command_prints_tables_and_json(
    asked: Asked, taps: list[ranktap.Tap], capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for(lambda: asked.run()["lag_entries"] == 0, "all to be written")
    assert cli.main(["status", "--metrics", asked.address]) == 0
    first, names, row = capsys.readouterr().out.splitlines()
    assert first.startswith(f"ranktapd {ranktap.__version__} at {asked.address}: ok; up ")
    assert "2 sessions" in first
    assert names.split() == ["run", "ranks", "entries", "behind", "records/s", "dropped", "worker"]
    assert row.split()[:2] == [RUN, "2/3"] and row.split()[3:6] == ["0", "0", "B"]
    assert cli.main(["status", RUN, "--metrics", asked.address]) == 0
    ranks = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [(rank[0], rank[2], rank[3]) for rank in ranks] == [
        (str(number), str(os.getpid()), "here") for number in range(2)
    ]
    assert cli.main(["status", "--json", "--metrics", asked.address]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["run"] == RUN
    assert cli.main(["status", "other", "--metrics", asked.address]) == 1
    assert f"no run 'other' is open at {asked.address}" in capsys.readouterr().err

    # On a terminal, where a name with brackets is no markup.
    reader, writer = pty.openpty()
    program = [sys.executable, "-m", "ranktap.cli", "status", "--metrics", asked.address]
    environment = os.environ | {"COLUMNS": "200"}
    process = subprocess.Popen(program, stdout=writer, env=environment)
    os.close(writer)
    said = b""
    try:
        while chunk := os.read(reader, 1 << 16):
            said += chunk
    except OSError:
        pass  # Linux's way to say that the other side is closed
    finally:
        os.close(reader)
    assert process.wait(30) == 0
    assert RUN.encode() in said and b"\x1b[1m" in said


def test_where_nothing_answers_it_is_said_how_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert cli.main(["status", "--metrics", f"127.0.0.1:{port}"]) == 1
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port}: " in said and "ranktapd --metrics HOST:PORT" in said
