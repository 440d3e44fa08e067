"""What only all ranks together show: four ranks of DDP on gloo, one of which goes wrong."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.jobs import across
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate, event_files
from tests.support.scripts import run_python
from tests.support.waiting import wait_for

JOB = Path(across.__file__)
RANKS = 4
TOLD_WITHIN_S = 2.0
FIRST = {"forward": "activations/broken", "backward": "grad_inputs/broken"}
STRIP, GAP = 11, 2


@dataclass
class Job:
    how: str
    logdir: Path
    shown: EventAccumulator
    log: str
    said: str
    warned: str
    read_at: dict[str, float]
    """When the text that names the first module could be read in each run's event file."""

    def texts(self, tag: str) -> list[tuple[int, str]]:
        name = f"ranktap/{tag}/text_summary"
        if name not in self.shown.Tags()["tensors"]:
            return []
        return [
            (event.step, event.tensor_proto.string_val[0].decode())
            for event in self.shown.Tensors(name)
        ]

    def series(self, tag: str) -> dict[int, float]:
        return {event.step: event.value for event in self.shown.Scalars(tag)}


class Reader:
    """Reads the runs' event files as they grow: when each has the text of what went wrong first."""

    def __init__(self, logdir: Path) -> None:
        self.read_at: dict[str, float] = {}
        self._logdir = logdir
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            for how in across.RUNS:
                if how not in self.read_at and any(
                    f"first `{FIRST[how]}`".encode() in path.read_bytes()
                    for path in event_files(self._logdir / how)
                ):
                    self.read_at[how] = time.time()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str, str, str, dict[str, float]]:
    """Both runs, in one logdir; what the daemon logged, what the ranks said and warned, and when
    the texts could be read."""
    logdir = tmp_path_factory.mktemp("across") / "runs"
    daemon = DaemonProcess(logdir).start()
    reader = Reader(logdir)
    try:
        ended = run_python(
            JOB,
            before=(
                "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}", "--rdzv-id=across",
                "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
            ),
            env={"RANKTAP_ENDPOINT": daemon.endpoint, "OMP_NUM_THREADS": "1"},
            timeout_s=110,
        )  # fmt: skip
        assert daemon.stop() == 0
        log = daemon.log
    finally:
        reader.stop()
        print(daemon.log)
        daemon.close()
    return logdir, log, ended.stdout, ended.stderr, reader.read_at


@pytest.fixture(scope="module", params=across.RUNS)
def job(request: pytest.FixtureRequest, done: tuple[Path, str, str, str, dict[str, float]]) -> Job:
    logdir, log, said, warned, read_at = done
    shown = accumulate(logdir / request.param)
    return Job(request.param, logdir, shown, log, said, warned, read_at)


@pytest.fixture(scope="module")
def board(done: tuple[Path, str, str, str, dict[str, float]]) -> Iterator[Board]:
    board = Board(done[0], fast=True)
    yield board
    board.close()


def test_the_first_module_that_went_wrong_is_named_with_its_rank_and_step(job: Job) -> None:
    step, text = job.texts("non_finite")[-1]
    assert step == across.BROKEN_AT
    found = re.match(r"\*\*rank (\d)\*\* \(.+\) step (\d+): first `(.+)` in the (\w+)\n", text)
    assert found, text
    expected = (str(across.BROKEN_RANK), str(across.BROKEN_AT), FIRST[job.how], job.how)
    assert found.groups() == expected


def test_what_follows_from_it_stands_behind_it_in_the_order_of_computation(job: Job) -> None:
    _, text = job.texts("non_finite")[-1]
    rows = [line for line in text.split("\n") if line.startswith(f"| {across.BROKEN_RANK} |")]
    tags = re.findall("`(.+?)`", "\n".join(rows))
    wanted = {
        "forward": ["activations/broken", "activations/third", "activations/last",
                    "grad_outputs/last"],
        "backward": ["grad_inputs/broken", "grad_outputs/second", "grad_inputs/second",
                     "grad_outputs/first"],
    }  # fmt: skip
    assert tags[:4] == wanted[job.how]


def test_the_text_the_daemons_log_and_the_ranks_own_tell_of_it_in_time(job: Job) -> None:
    (broken,) = map(float, re.findall(rf"{job.how} broken at ([\d.]+)", job.said))
    assert job.read_at[job.how] - broken < TOLD_WITHIN_S
    said = f"step {across.BROKEN_AT}: first {FIRST[job.how]!r} in the {job.how}"
    (line,) = [line for line in job.log.splitlines() if said in line]
    assert f" not finite: rank {across.BROKEN_RANK} (" in line
    told = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    assert told - broken < TOLD_WITHIN_S
    own = [
        float(line.partition(" ")[0])
        for line in job.warned.splitlines()
        if f"rank {across.BROKEN_RANK}: not finite" in line and repr(FIRST[job.how]) in line
    ]
    assert any(at - broken < TOLD_WITHIN_S for at in own), job.warned


def test_the_slow_rank_is_named_within_20_steps_and_without_one_nobody_is(job: Job) -> None:
    texts = job.texts("stragglers")
    if job.how == "backward":
        assert texts == []
        return
    step, text = texts[0]
    assert step < 20
    assert text.startswith(f"**rank {across.SLOW_RANK}** (")
    (row,) = [line for line in text.split("\n") if line.startswith(f"| {across.SLOW_RANK} |")]
    assert float(row.split("|")[3].removesuffix(" ms ")) == pytest.approx(
        across.SLOW_S * 1e3, rel=0.4
    )


def test_who_was_slowest_at_each_step_is_a_series(job: Job) -> None:
    slowest, spread = job.series("ranks/step_time/slowest"), job.series("ranks/step_time/spread")
    # The first step has no part before its forward, and the last has not been ended.
    assert {*range(1, across.STEPS - 1)} <= set(slowest) == set(spread)
    if job.how == "forward":
        steps = range(1, across.STEPS - 1)
        assert sum(slowest[step] == across.SLOW_RANK for step in steps) > 0.9 * len(steps)
        assert np.median([*spread.values()]) == pytest.approx(across.SLOW_S, rel=0.4)


def test_the_ranks_pictures_are_one(job: Job) -> None:
    (image,) = job.shown.Images("picture")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    _, height, width = across.picture(0).shape
    assert pixels.shape == (2 * (STRIP + height) + GAP, 2 * width + GAP, 3)
    for rank in range(RANKS):
        row, column = divmod(rank, 2)
        top, left = row * (STRIP + height + GAP) + STRIP, column * (width + GAP)
        of_rank = pixels[top : top + height, left : left + width]
        assert (of_rank == 40 * (rank + 1)).all(), f"rank {rank}"
        assert (pixels[top - STRIP : top, left : left + width] == 0).any(), "and its name above"


def test_tensorboard_shows_the_jobs_summary(job: Job, board: Board) -> None:
    tag = "ranktap/job/text_summary"
    shown = wait_for(
        lambda: board.get("/data/plugin/text/text", run=job.how, tag=tag), "the summary", 60
    )
    html = shown[-1]["text"]
    assert "<strong>4 ranks</strong>, 0 running" in html
    rows = [re.findall("<td>(.*?)</td>", row) for row in html.split("<tr>")]
    ranks = [row for row in rows if len(row) == 9]
    assert [row[0] for row in ranks] == ["0", "1", "2", "3"]
    assert {row[6] for row in ranks} == {"left"}
    assert len({row[2] for row in ranks}) == RANKS, "each is a process of its own"
    assert {row[7] for row in ranks} == {row[8] for row in ranks} == {"0"}
    about = {row[0]: row[1] for row in rows if len(row) == 2}
    import torch

    assert about["torch"] == torch.__version__.replace("_", "&#95;")
    assert "across.py" in about["command"]
