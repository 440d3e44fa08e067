"""A real torchrun job: four ranks of DDP on gloo, read back as TensorBoard shows it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import pad
from torch.utils.tensorboard.summary import make_histogram
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

import ranktap
from tests.e2e.jobs.ddp import EVERY, GRID, TAGS
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess
from tests.support.event_files import OWN_TAGS, accumulate, event_files, scalar_points
from tests.support.scripts import run_python
from tests.support.waiting import wait_for

JOB = Path(__file__).parent / "jobs" / "ddp.py"
RANKS = 4
STEPS = 500
RUN = "ddp-job"
NAMES = ["loss", *(f"more/m{number}" for number in range(TAGS - 1))]
PICTURE_STEPS = list(range(0, STEPS, EVERY))


@dataclass
class Job:
    """A job that has ended and was written, and what its ranks say that they logged."""

    logdir: Path
    scalars: np.ndarray
    """float64 (ranks, tags, steps)"""
    grids: np.ndarray
    """float32 (ranks, pictures, N, C, H, W)"""
    values: np.ndarray
    """float32 (ranks, histograms, n)"""
    said: str


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    directory = tmp_path_factory.mktemp("torchrun")
    daemon = DaemonProcess(directory / "runs").start()
    try:
        done = run_python(
            JOB, directory, str(STEPS),
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
    ledgers = [np.load(directory / f"rank{rank}.npz") for rank in range(RANKS)]
    kept = {name: np.stack([ledger[name] for ledger in ledgers]) for name in ledgers[0].files}
    yield Job(directory / "runs", said=done.stdout, **kept)


@pytest.fixture(scope="module")
def shown(job: Job) -> EventAccumulator:
    return accumulate(job.logdir / RUN)


@pytest.fixture(scope="module", params=[True, False], ids=["fast loader", "Python loader"])
def board(job: Job, request: pytest.FixtureRequest) -> Iterator[Board]:
    board = Board(job.logdir, fast=request.param)

    def has_read_all() -> bool:
        scalars = [board.scalars(RUN, f"ranks/{name}/max") for name in NAMES]
        histograms = board.get("/data/plugin/histograms/histograms", run=RUN, tag="gradients")
        return {len(points) for points in scalars} == {STEPS} and len(histograms or []) == 10

    wait_for(has_read_all, "TensorBoard to have read the run", 60)
    yield board
    board.close()


# -- what is expected, worked out anew ------------------------------------------------------


def mean(values: np.ndarray) -> np.ndarray:
    """Over the ranks, rounded once."""
    exact = [math.fsum(column) / len(column) for column in values.reshape(len(values), -1).T]
    return np.array(exact).reshape(values.shape[1:])


def expected_series(job: Job) -> dict[str, np.ndarray]:
    series = {}
    for number, name in enumerate(NAMES):
        logged = job.scalars[:, number]
        series[name] = mean(logged)
        series[f"ranks/{name}/min"] = logged.min(0)
        series[f"ranks/{name}/max"] = logged.max(0)
    return series


def expected_pixels(
    images: torch.Tensor, *, nrow: int, padding: int, pad_value: float, **named: bool
) -> np.ndarray:
    """What `torchvision.utils.make_grid` and `SummaryWriter.add_image` are documented to draw.

    Every picture gets its padding at the left and the top, what is missing in the last row is
    padding, and one more padding closes the right and the bottom.
    """
    assert named == {"normalize": True, "scale_each": True}
    tiles = []
    for image in images:
        low, high = image.min(), image.max()
        scaled = (image - low) / max(float(high - low), 1e-5)
        tiles.append(pad(scaled, (padding, 0, padding, 0), value=pad_value))
    empty = torch.full_like(tiles[0], pad_value)
    tiles += [empty] * (-len(tiles) % nrow)
    rows = [torch.cat(tiles[first : first + nrow], 2) for first in range(0, len(tiles), nrow)]
    grid = pad(torch.cat(rows, 1), (0, padding, 0, padding), value=pad_value)
    return (grid * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def picture_tags() -> list[str]:
    return ["activations"] + [f"ranks/activations/rank{rank}" for rank in range(1, RANKS)]


def default_bins(directory: Path) -> list[float]:
    """Those of torch's own SummaryWriter."""
    with SummaryWriter(str(directory)) as writer:
        assert isinstance(writer.file_writer, FileWriter)
        return writer.default_bins


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


# -- the event file ---------------------------------------------------------------------------


def test_every_rank_found_its_place_in_the_job_by_itself(job: Job) -> None:
    said = [f"rank {rank} of {RANKS}, run {RUN}: everything was journaled: True"
            for rank in range(RANKS)]  # fmt: skip
    assert sorted(job.said.splitlines()) == said
    assert [path.name for path in job.logdir.iterdir() if not path.name.startswith(".")] == [RUN]
    assert len(event_files(job.logdir / RUN)) == 1


def test_each_tag_has_each_step_once_and_in_order(shown: EventAccumulator, job: Job) -> None:
    tags = {tag for tag in shown.Tags()["scalars"] if not tag.startswith(OWN_TAGS)}
    assert tags == set(expected_series(job))
    for tag in expected_series(job):
        assert [point.step for point in shown.Scalars(tag)] == list(range(STEPS)), tag


def test_each_point_is_the_mean_over_the_ranks_between_their_extremes(
    shown: EventAccumulator, job: Job
) -> None:
    for tag, expected in expected_series(job).items():
        values = np.array([point.value for point in shown.Scalars(tag)], np.float32)
        # One unit in the last place: the sum of four float64 may be rounded before the division.
        np.testing.assert_array_max_ulp(values, expected.astype(np.float32), maxulp=1)


def test_how_long_each_step_took_is_known(shown: EventAccumulator) -> None:
    points = shown.Scalars("step_time/total")
    # Of the last one nobody has said that it is over.
    assert [point.step for point in points] == list(range(STEPS - 1))
    slowest = shown.Scalars("ranks/step_time/total/max")
    assert all(0 < point.value <= most.value for point, most in zip(points, slowest, strict=True))


def test_the_ranks_differ_so_that_a_mean_of_fewer_would_show(job: Job) -> None:
    whole = mean(job.scalars)
    for left_out in range(RANKS):
        others = [rank for rank in range(RANKS) if rank != left_out]
        assert (mean(job.scalars[others]).astype(np.float32) != whole.astype(np.float32)).all()


def test_each_ranks_pictures_have_the_expected_pixels(shown: EventAccumulator, job: Job) -> None:
    assert sorted(shown.Tags()["images"]) == sorted(picture_tags())
    for rank, tag in enumerate(picture_tags()):
        images = shown.Images(tag)
        assert [image.step for image in images] == PICTURE_STEPS
        for image, batch in zip(images, job.grids[rank], strict=True):
            pixels = expected_pixels(torch.from_numpy(batch), **GRID)
            assert (image.height, image.width) == pixels.shape[:2]
            np.testing.assert_array_equal(decoded(image.encoded_image_string), pixels)


def test_histograms_are_torchs_of_all_ranks_values_together(
    shown: EventAccumulator, job: Job, tmp_path: Path
) -> None:
    histograms = shown.Histograms("gradients")
    assert [each.step for each in histograms] == PICTURE_STEPS
    bins = default_bins(tmp_path)
    for number, each in enumerate(histograms):
        expected = make_histogram(job.values[:, number].ravel(), bins)
        merged = each.histogram_value
        assert (merged.min, merged.max, merged.num) == (expected.min, expected.max, expected.num)
        assert list(merged.bucket_limit) == list(expected.bucket_limit)
        assert list(merged.bucket) == list(expected.bucket)
        # torch adds float32 values up in float32, which is not to be copied.
        values = job.values[:, number].ravel().astype(np.float64)
        assert merged.sum == pytest.approx(values.sum(), abs=1e-12 * abs(values).sum())
        assert merged.sum_squares == pytest.approx(values.dot(values), rel=1e-12)


# -- TensorBoard's HTTP API, with both loaders ------------------------------------------------


def test_tensorboard_lists_the_run_and_all_its_tags(board: Board, job: Job) -> None:
    assert board.get("/data/runs") == [RUN]
    tags = board.get("/data/plugin/scalars/tags")[RUN]
    assert {tag for tag in tags if not tag.startswith(OWN_TAGS)} == set(expected_series(job))
    assert set(board.get("/data/plugin/images/tags")[RUN]) == set(picture_tags())
    assert set(board.get("/data/plugin/histograms/tags")[RUN]) == {"gradients"}


def test_tensorboard_shows_every_point_of_every_tag(board: Board, job: Job) -> None:
    for tag, expected in expected_series(job).items():
        points = board.scalars(RUN, tag)
        assert [step for _, step, _ in points] == list(range(STEPS)), tag
        values = np.array([value for _, _, value in points], np.float32)
        np.testing.assert_array_max_ulp(values, expected.astype(np.float32), maxulp=1)
        walls = [wall for wall, _, _ in points]
        assert walls == sorted(walls)


def test_tensorboard_serves_every_picture_with_the_expected_pixels(board: Board, job: Job) -> None:
    for rank, tag in enumerate(picture_tags()):
        listed = board.get("/data/plugin/images/images", run=RUN, tag=tag, sample="0")
        assert [each["step"] for each in listed] == PICTURE_STEPS
        for each, batch in zip(listed, job.grids[rank], strict=True):
            pixels = expected_pixels(torch.from_numpy(batch), **GRID)
            served = board.get(f"/data/plugin/images/individualImage?{each['query']}")
            np.testing.assert_array_equal(decoded(served), pixels)


def test_tensorboard_shows_the_merged_histograms(board: Board, job: Job, tmp_path: Path) -> None:
    listed = board.get("/data/plugin/histograms/histograms", run=RUN, tag="gradients")
    assert [step for _, step, _ in listed] == PICTURE_STEPS
    bins = default_bins(tmp_path)
    for number, (_, _, buckets) in enumerate(listed):
        expected = make_histogram(job.values[:, number].ravel(), bins)
        counts = list(expected.bucket)
        # The Python loader leaves empty buckets at the ends out, and has limits as float32; the
        # outermost are the smallest and the largest value.
        while buckets[0][2] == 0:
            del buckets[0]
        first = next(place for place, count in enumerate(counts) if count)
        last = first + len(buckets) - 1
        assert not any(counts[last + 1 :])
        assert [count for _, _, count in buckets] == counts[first : last + 1]
        inner = list(expected.bucket_limit)[first:last]
        np.testing.assert_allclose([right for _, right, _ in buckets[:-1]], inner, rtol=1e-7)
        np.testing.assert_allclose([left for left, _, _ in buckets[1:]], inner, rtol=1e-7)


# -- across -----------------------------------------------------------------------------------


def log_from_three_ranks(daemon: DaemonProcess, log: Callable[[ranktap.Tap], Any]) -> None:
    """Three taps, one after the other, as ranks that are in step would."""
    taps = [
        ranktap.init("run", endpoint=daemon.endpoint, rank=rank, world_size=3) for rank in range(3)
    ]
    for tap in taps:
        assert tap.flush()  # all are connected before the first window can close
    for tap in taps:
        log(tap)
    for tap in taps:
        assert tap.close()
    assert daemon.stop() == 0


VALUES = np.array([[4.0, -1.0], [16.0, 2.5], [1.0, 8.0]])
"""(ranks, steps)"""


@pytest.mark.parametrize(
    ("across", "expected"),
    [
        ("mean", VALUES.mean(0)), ("sum", VALUES.sum(0)), ("min", VALUES.min(0)),
        ("max", VALUES.max(0)), ("last", VALUES[1]), ("rank0", VALUES[0]),
    ],
)  # fmt: skip
def test_the_ranks_values_become_one_as_the_policy_says(
    start_daemon: Callable[..., DaemonProcess], across: str, expected: np.ndarray
) -> None:
    daemon = start_daemon()

    def log(tap: ranktap.Tap) -> None:
        for step in range(2):
            # Rank 1 is the last by its clock, whichever comes last.
            wall = 1_000.0 + step * 10 + (0, 2, 1)[tap.rank]
            value = float(VALUES[tap.rank, step])
            tap.scalar("x", value, step, walltime=wall, across=across)
            tap.scalars({"x": value}, step, prefix="many", across=across)

    log_from_three_ranks(daemon, log)
    points = scalar_points(daemon.logdir / "run")
    for tag in ("x", "many/x"):
        if (tag, across) == ("many/x", "last"):
            continue  # by wall times of its own
        np.testing.assert_array_equal(
            points.pop(tag), list(enumerate(expected.astype(np.float32).tolist()))
        )
        if across != "rank0":
            for side, extreme in (("min", VALUES.min(0)), ("max", VALUES.max(0))):
                assert points.pop(f"ranks/{tag}/{side}") == list(enumerate(extreme))
    if across == "last":
        # scalars() has no wall times: the ranks logged one after the other.
        assert points.pop("many/x") == list(enumerate(VALUES[2]))
        assert {points.pop(f"ranks/many/x/{side}")[1][0] for side in ("min", "max")} == {1}
    assert points == {}


def test_each_gives_a_series_a_rank_and_none_in_common(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    daemon = start_daemon()
    log_from_three_ranks(
        daemon,
        lambda tap: [tap.scalar("x", VALUES[tap.rank, step], step, across="each")
                     for step in range(2)],
    )  # fmt: skip
    assert scalar_points(daemon.logdir / "run") == {
        f"ranks/x/rank{rank}": list(enumerate(VALUES[rank])) for rank in range(3)
    }


@pytest.mark.parametrize(
    ("across", "expected"),
    [
        ("merge", {"h": [0, 1, 2] * 4}),
        ("rank0", {"h": [0] * 4}),
        ("each", {"h": [0] * 4, "ranks/h/rank1": [1] * 4, "ranks/h/rank2": [2] * 4}),
    ],
)
def test_the_ranks_histograms_become_one_as_the_policy_says(
    start_daemon: Callable[..., DaemonProcess],
    tmp_path: Path,
    across: str,
    expected: dict[str, list[int]],
) -> None:
    daemon = start_daemon()
    log_from_three_ranks(
        daemon, lambda tap: tap.histogram("h", [float(tap.rank)] * 4, 5, across=across)
    )
    shown = accumulate(daemon.logdir / "run")
    assert set(shown.Tags()["histograms"]) == set(expected)
    bins = default_bins(tmp_path)
    for tag, values in expected.items():
        (point,) = shown.Histograms(tag)
        merged = point.histogram_value
        torchs = make_histogram(np.array(values, np.float64), bins)
        assert point.step == 5
        assert (merged.min, merged.max, merged.num) == (torchs.min, torchs.max, torchs.num)
        assert list(merged.bucket) == list(torchs.bucket)
        assert list(merged.bucket_limit) == list(torchs.bucket_limit)


def test_two_ranks_get_margin_charts_of_the_mean_with_its_band(
    start_daemon: Callable[..., DaemonProcess], start_board: Callable[..., Board]
) -> None:
    daemon = start_daemon()
    taps = [
        ranktap.init("run", endpoint=daemon.endpoint, rank=rank, world_size=2) for rank in range(2)
    ]
    for tap in taps:
        tap.scalars({"train": tap.rank, "test": 2.0}, 1, prefix="loss")
        tap.scalar("alone", 1.0, 1, across="rank0")
        tap.scalar("every", 1.0, 1, across="each")
    for tap in taps:
        assert tap.flush()
    # A tag that comes later is added to the charts that were there.
    for tap in taps:
        tap.scalar("lr", 0.1, 2)
    for tap in taps:
        assert tap.close()
    assert daemon.stop() == 0

    def chart(tag: str) -> dict[str, Any]:
        band = {"value": tag, "lower": f"ranks/{tag}/min", "upper": f"ranks/{tag}/max"}
        return {"title": tag, "margin": {"series": [band]}}

    for fast in (True, False):
        board = start_board(daemon.logdir, fast=fast)
        layout = wait_for(
            lambda: board.get("/data/plugin/custom_scalars/layout"),  # noqa: B023
            "the layout", 60,
        )  # fmt: skip
        charts = {category["title"]: category["chart"] for category in layout["category"]}
        assert {
            title: sorted(each, key=lambda c: c["title"]) for title, each in charts.items()
        } == {
            "loss": [chart("loss/test"), chart("loss/train")],
            "lr": [chart("lr")],
        }
        for tag in ("loss/train", "lr"):
            for name in (tag, f"ranks/{tag}/min", f"ranks/{tag}/max"):
                assert len(board.scalars("run", name)) == 1, name
