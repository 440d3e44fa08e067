"""A watched job of two ranks, against the same model in one process: real torchrun, gloo.

There is no GPU here: what runs on CUDA is stood in for by the CPU (tests/unit/test_reduce.py
runs the device's code there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.jobs import watched
from tests.support.daemons import DaemonProcess
from tests.support.event_files import OWN_TAGS, accumulate, event_files, events
from tests.support.scripts import run_python
from tests.support.watching import Logged, logged, silent_taps

JOB = Path(watched.__file__)
RANKS = 2
RUN = "watched-job"
_NOT_WATCHED = (*OWN_TAGS, "custom_scalars__")


@dataclass
class Job:
    shown: EventAccumulator
    directory: Path
    said: str

    def series(self, tag: str) -> dict[int, float]:
        return {event.step: event.value for event in self.shown.Scalars(tag)}


def run(directory: Path, how: str) -> Job:
    daemon = DaemonProcess(directory / "runs").start()
    try:
        done = run_python(
            JOB, how,
            before=(
                "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}", f"--rdzv-id={RUN}",
                "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
            ),
            env={"RANKTAP_ENDPOINT": daemon.endpoint, "OMP_NUM_THREADS": "1"},
            timeout_s=110,
        )  # fmt: skip
        assert daemon.stop() == 0
        assert "ERROR" not in daemon.log and "WARNING" not in daemon.log, daemon.log
    finally:
        print(daemon.log)
        daemon.close()
    run_directory = directory / "runs" / RUN
    return Job(accumulate(run_directory), run_directory, done.stdout)


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return run(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def alone() -> Iterator[Logged]:
    """The same model with all its parameters in one process, and all of each batch."""
    with silent_taps() as make:
        tap = make()
        model = watched.network()
        optimizer = torch.optim.SGD(model.parameters(), lr=watched.LEARNING_RATE)
        tap.watch(model, every=watched.EVERY, **watched.SECTIONS)
        for step in range(watched.STEPS):
            tap.step(step)
            loss = model(watched.batch(step)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield logged(tap)


def test_scalars_are_those_of_the_whole_model(job: Job, alone: Logged) -> None:
    tags = {tag for tag in job.shown.Tags()["scalars"] if not tag.startswith(OWN_TAGS)}
    assert tags == set(alone.scalars)
    for tag, wanted in alone.scalars.items():
        # A rank's own loss is the mean over half of the batch: the gradients of its activations
        # are twice those of the whole batch's loss. Those of the parameters are averaged.
        is_larger = tag.startswith("grad_outputs/") and not tag.endswith("/zeros")
        factor = RANKS if is_larger else 1
        expected = {step: value * factor for step, value in wanted.items()}
        assert job.series(tag) == pytest.approx(expected, rel=2e-4, abs=1e-7), tag


def test_histograms_are_those_of_the_whole_model(job: Job, alone: Logged) -> None:
    assert set(job.shown.Tags()["histograms"]) == set(alone.histograms)
    for tag, wanted in alone.histograms.items():
        shown = {event.step: event.histogram_value for event in job.shown.Histograms(tag)}
        assert set(shown) == set(wanted) == {0, 2}, tag
        for step, stats in wanted.items():
            factor = RANKS if tag.startswith("grad_outputs/") else 1
            found = shown[step]
            assert found.num == stats.num, tag
            assert sum(found.bucket) == stats.num
            assert (found.min, found.max) == pytest.approx(
                (stats.min * factor, stats.max * factor), rel=2e-4, abs=1e-7
            )
            if tag.startswith("parameters/") and step == 0:
                # The very same values: the same buckets, to the last one.
                limits, counts = stats.buckets()
                np.testing.assert_array_equal(found.bucket_limit, limits)
                np.testing.assert_array_equal(found.bucket, counts)


def test_the_parts_of_a_step_are_within_it(job: Job) -> None:
    parts = {part: job.series(f"step_time/{part}") for part in ("data", "forward", "backward")}
    waits = job.series("step_time/wait")
    totals = job.series("step_time/total")
    # A model that is let go of before the tap is closed takes its last step with it.
    last = watched.STEPS - 1
    assert set(parts["forward"]) | {last} == set(parts["backward"]) | {last} == set(range(last + 1))
    assert set(parts["data"]) | {last} == set(waits) | {last} == set(range(1, last + 1))
    assert set(totals) == set(range(last))
    for part in (*parts.values(), waits):
        assert all(seconds > 0 for seconds in part.values())
    # `data` begins with the end of the optimizer, a little before the step does.
    for step in range(1, last):
        assert parts["forward"][step] + parts["backward"][step] + waits[step] < totals[step]


def test_looking_takes_no_collective(job: Job) -> None:
    said = re.findall(r"rank \d collectives \[(\d+), (\d+), (\d+), (\d+)\]", job.said)
    assert len(said) == RANKS
    for counts in said:
        # The first step differs by itself: FSDP gathers what is not there yet.
        assert int(counts[2]) == int(counts[3]) > 0, job.said


def test_every_rank_handed_over_everything(job: Job) -> None:
    assert len(re.findall(r"rank \d journaled: True", job.said)) == RANKS


def test_stages_of_a_pipeline_show_all_their_layers(tmp_path: Path) -> None:
    job = run(tmp_path, "stages")
    tags = {tag for tag in job.shown.Tags()["scalars"] if not tag.startswith(OWN_TAGS)}
    for rank in range(RANKS):
        for tag in ("parameters/layer{}.weight/norm", "gradients/layer{}.bias/rms",
                    "activations/layer{}/mean"):  # fmt: skip
            assert set(job.series(tag.format(rank))) == {0, 2}
    assert not any("ranks/" in tag for tag in tags)


def test_the_event_file_is_of_the_usual_kind(job: Job) -> None:
    (path,) = event_files(job.directory)
    values = [value for event in events(path) for value in event.summary.value]
    kinds = {each.WhichOneof("value") for each in values if not each.tag.startswith(_NOT_WATCHED)}
    assert kinds == {"simple_value", "histo"}
