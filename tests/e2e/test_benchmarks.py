"""Every case of the benchmarks does its work, in the smallest size: what it has read back counts.

No time is looked at.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks_command
from benchmarks import cases, child, tally, work
from benchmarks.registry import CASES
from benchmarks.rivals import DISTRIBUTIONS
from benchmarks.service import Service
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]

SIDES = [
    pytest.param(case.name, side, id=f"{case.name}-{side}")
    for case in CASES
    for side in case.sides
    if side not in DISTRIBUTIONS
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("benchmarks")) as started:
        cases.shared = started
        yield started
        cases.shared = None


@pytest.fixture
def smoke() -> Iterator[None]:
    work.begin(smoke=True)
    tally.found.clear()
    yield
    tally.found.clear()
    work.begin(smoke=False)


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_a_case_reads_back_what_it_logged(
    name: str, side: str, service: Service, smoke: None
) -> None:
    directory = service.logdir / name / side
    directory.mkdir(parents=True)
    figures = child.measure(name, side, directory)
    print(f"{name}, {side}: {sum(tally.found.values())} read back")
    assert figures and all(map(math.isfinite, figures.values()))
    assert tally.found and all(count > 0 for count in tally.found.values())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *arguments]


def test_the_command_measures_and_writes_what_was_read_back(tmp_path: Path) -> None:
    said = subprocess.run(
        command("windows-m*", "--smoke", "--rounds=2", f"--json={tmp_path / 'figures.json'}"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "[2/2] round 2 of 2, windows-merged: ranktap; about" in said.stderr
    assert "| scalar records of 8 ranks merged, on one core |" in said.stdout
    told = json.loads((tmp_path / "figures.json").read_text())
    assert len(told["results"]["windows-merged"]["ranktap"]["records/s"]) == 2
    assert told["read back"]["windows-merged"]["ranktap"] == {"merged points": 2_000}
    assert told["failures"] == [] and told["rounds"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scaler-call"], "CASE: 'scaler-call' matches none of scalar-call"),
        (["--group", "alll"], "--group: expected all or one of logging"),
        (["--rounds", "0", "latency"], "--rounds: expected 1 or more, got 0"),
        (["latency", "--page", "x.md"], "--page writes whole tables"),
        (["latency", "--python-rivals", "/no/such"], "/no/such"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as ended:
        benchmarks_command.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_ends_the_side_that_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    where = f"--directory={tmp_path}"
    with subprocess.Popen(
        command("--group=logging", where, f"--page={tmp_path / 'page.md'}"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "[1/" not in process.stderr.readline():
            assert process.poll() is None
        wait_for(lambda: [*tmp_path.glob("*/run/*tfevents*")], "the first side to work", 60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.strip().endswith("interrupted; nothing is written")
    assert "Traceback" not in said
    assert [*tmp_path.iterdir()] == []
