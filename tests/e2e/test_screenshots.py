"""Every dashboard of TensorBoard, looked at in a browser: what was logged is on the page.

Slow, and only where there is a Chromium. With RANKTAP_SCREENSHOTS=DIR the pictures are left
there, for people to look at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

from ranktap import SummaryWriter
from tests.support.boards import Board
from tests.support.browser import Browser, find_chromium
from tests.support.embedded import kill_all, log_of, wait_until_ended
from tests.support.waiting import wait_for

CHROMIUM = find_chromium()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is deprecated"),
]

STEPS = 40


def log_numbers(writer: SummaryWriter) -> None:
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        loss = 2 * np.exp(-step / 12) + 0.05 * rng.random()
        writer.add_scalar("loss/train", loss, step)
        writer.add_scalar("loss/lowest", loss - 0.2, step)
        writer.add_scalar("loss/highest", loss + 0.3, step)
        writer.add_scalars("waves", {"sin": np.sin(step / 5), "cos": np.cos(step / 5)}, step)
        if step % 4 == 0:
            weights = rng.normal(step / 20, 1 + step / 40, 2_000)
            writer.add_histogram("layer/weights", weights, step)
            labels = rng.random(500) > 0.5
            found = labels * (0.1 + step / 100) + rng.random(500) * 0.5
            writer.add_pr_curve("is it a cat", labels, found, step)
    band = ["loss/train", "loss/lowest", "loss/highest"]
    layout = {"loss, with its band": ["Margin", band], "all losses": ["Multiline", ["loss/.*"]]}
    writer.add_custom_scalars({"losses": layout})
    for number in range(4):
        tried = {
            "rate": 0.1 / (1 + number),
            "batch": 16 << number,
            "net": ("flat", "deep")[number % 2],
        }
        came_out = {"hparam/accuracy": 0.8 + number / 20, "hparam/loss": 0.5 - number / 10}
        writer.add_hparams(tried, came_out, run_name=f"trial_{number}")


def log_pictures(writer: SummaryWriter) -> None:
    digits = load_digits()
    pictures = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    writer.add_images("sixteen digits", pictures[:16], 1)
    rows, columns = np.mgrid[0:120, 0:160]
    sunset = np.stack([columns / 160, rows / 120, 1 - columns / 160])
    boxes = np.array([[20, 20, 80, 90], [70, 40, 150, 110]])
    writer.add_image_with_boxes("two boxes", sunset, boxes, 1, labels=["cat", "dog"])
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().plot(np.sin(np.linspace(0, 7, 100)), "r-")
    writer.add_figure("a figure", figure, 1)
    film = np.stack([np.roll(sunset, 20 * frame, axis=2) for frame in range(8)])
    writer.add_video("a film", (film[None] * 255).astype(np.uint8), 1, fps=4)
    labels = [str(label) for label in digits.target[:300]]
    writer.add_embedding(digits.data[:300], labels, pictures[:300], 0, "digits")


def log_the_others(writer: SummaryWriter) -> None:
    times = np.linspace(0, 2, 16_000)
    writer.add_audio("a falling tone", np.sin(2_000 * times * np.exp(-times)), 1, 8_000)
    writer.add_text("notes", "# What was tried\n\n| rate | loss |\n|---|---|\n| 0.1 | **0.4** |", 1)
    writer.add_mesh("a ring", *ring(60), global_step=1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )
    writer.add_graph(net, torch.ones(1, 1, 8, 8))


def ring(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, colours and triangles of a torus of `count` by `count` points."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    around, tube = np.meshgrid(angles, angles, indexing="ij")
    radius = 2 + 0.8 * np.cos(tube)
    points = np.stack([radius * np.cos(around), radius * np.sin(around), 0.8 * np.sin(tube)], -1)
    colours = np.stack([np.sin(around), np.cos(tube), np.cos(around)], -1) * 127 + 128
    here = np.arange(count * count).reshape(count, count)
    next_around, next_tube = np.roll(here, -1, 0), np.roll(here, -1, 1)
    across = np.roll(next_around, -1, 1)
    halves = [np.stack([here, *others], -1)
              for others in ((next_around, across), (across, next_tube))]  # fmt: skip
    faces = np.concatenate(halves).reshape(1, -1, 3)
    return points.reshape(1, -1, 3), colours.astype(int).reshape(1, -1, 3), faces


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    logdir = tmp_path_factory.mktemp("screenshots")
    run = logdir / "run"
    try:
        with SummaryWriter(run) as writer:
            log_numbers(writer)
            log_pictures(writer)
            log_the_others(writer)
        wait_until_ended(run)
    finally:
        print(log_of(run))
        kill_all(run)
    board = Board(logdir, fast=True)
    wait_for(lambda: board.scalars("run", "loss/train"), "the run to be shown", 60)
    wait_for(lambda: board.scalars("run/trial_3", "hparam/loss"), "the last trial", 60)
    yield board
    print(board.log)
    board.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM)
    yield browser
    browser.close()


SHOWN: dict[str, tuple[int, tuple[str, ...]]] = {
    "timeseries": (20_000, ("a figure", "a film")),
    "scalars": (2_000, ("loss/train", "run/waves_sin", "hparam/accuracy")),
    "images": (30_000, ("sixteen digits", "two boxes", "a figure", "a film")),
    "histograms": (5_000, ("layer/weights",)),
    "distributions": (5_000, ("layer/weights",)),
    "audio": (200, ("a falling tone", "run")),
    "text": (2_000, ("notes", "What was tried", "0.4")),
    "graphs": (2_000, ("Sequential", "input", "output")),
    "projector": (200, ("digits:00000", "Points: 300", "Total variance described: 43")),
    "pr_curves": (800, ("is it a cat",)),
    "custom_scalars": (4_000, ("loss, with its band", "all losses")),
    "mesh": (100_000, ("a ring",)),
    "hparams": (0, ("rate", "batch", "hparam/accuracy", "deep", "run/trial_3")),
}
"""Of each dashboard, how many pixels have a colour where charts are, and words on its page."""


def count_coloured(picture: Path) -> int:
    """Those that are no grey, less the header and what stands at the left of all dashboards."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(np.int16)[70:, 310:]
    return int((pixels.max(-1) - pixels.min(-1) > 20).sum())


@pytest.mark.parametrize("dashboard", SHOWN)
def test_a_dashboard_shows_what_was_logged(
    board: Board, browser: Browser, dashboard: str, tmp_path: Path
) -> None:
    coloured, words = SHOWN[dashboard]
    browser.open(f"{board.url}/#{dashboard}")
    browser.wait_for_text(*words)
    kept = os.environ.get("RANKTAP_SCREENSHOTS")
    path = (Path(kept) if kept else tmp_path) / f"{dashboard}.png"

    def is_drawn() -> bool:
        # Charts are drawn after their titles.
        browser.screenshot(path)
        return count_coloured(path) >= coloured

    wait_for(is_drawn, f"{coloured} pixels of the page's charts")
