"""The pictures of docs/across-ranks.md: a job in which three things go wrong, as TensorBoard shows
it in a browser.

Slow, and only where there is a Chromium. With RANKTAP_SCREENSHOTS=docs/images the page's own
pictures are made anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.jobs import troubled
from tests.support.boards import Board
from tests.support.browser import Browser, find_chromium
from tests.support.daemons import DaemonProcess
from tests.support.scripts import run_python
from tests.support.waiting import wait_for

CHROMIUM = find_chromium()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

JOB = Path(troubled.__file__)
PAGE = (1_280, 1_000)
LEFT, TOP = 330, 72
"""Of the part of the page that is the run's: beside are settings."""
COLOURS = 64
PICTURE_BYTES = 150_000

UNFOLD = """
(() => {
  // Texts that are longer than their card, without its scroll bar.
  const walk = (node) => {
    if (node.nodeType !== Node.ELEMENT_NODE) return;
    if (getComputedStyle(node).maxHeight !== "none") node.style.maxHeight = "none";
    if (node.shadowRoot) [...node.shadowRoot.children].forEach(walk);
    [...node.children].forEach(walk);
  };
  walk(document.body);
})()
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    directory = tmp_path_factory.mktemp("troubled")
    daemon = DaemonProcess(directory / "runs").start()
    try:
        run_python(
            JOB, directory / "checkpoint.pt",
            before=(
                "-m", "torch.distributed.run", f"--nproc-per-node={troubled.RANKS}",
                "--max-restarts=1", "--rdzv-id=troubled", "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0",
            ),
            env={
                "RANKTAP_ENDPOINT": daemon.endpoint, "OMP_NUM_THREADS": "1",
                # In a store that both lives share, gloo finds the addresses of the first one.
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            },
            timeout_s=110,
        )  # fmt: skip
        assert daemon.stop() == 0
    finally:
        print(daemon.log)
        daemon.close()
    board = Board(directory / "runs", fast=True)
    last = troubled.END - 1
    wait_for(
        lambda: last in [step for _, step, _ in board.scalars(troubled.RUN, "train/loss")],
        "the job's last step to be shown",
        60,
    )
    yield board
    print(board.log)
    board.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM, *PAGE)
    yield browser
    browser.close()


def count_coloured(picture: Image.Image) -> int:
    pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    return int((pixels.max(-1) - pixels.min(-1) > 20).sum())


SHOWN: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "bands": (
        "custom_scalars", 705, 20_000, ("step_time/wait", "step_time/data", "train/loss"),
    ),
    "slowest": (
        "scalars&tagFilter=ranks/step_time/s&_smoothingWeight=0", 400, 2_000,
        ("ranks/step_time/slowest", "ranks/step_time/spread"),
    ),
    "stragglers": (
        "text&tagFilter=stragglers", 515, 300,
        (f"rank {troubled.SLOW_RANK}", "is slow", "No rank is slow any more"),
    ),
    "non_finite": (
        "text&tagFilter=non_finite", 720, 300,
        (f"rank {troubled.BROKEN_RANK}", f"step {troubled.BROKEN_AT}: first",
         "activations/blocks.1.act", "grad_outputs/head", "train/loss"),
    ),
    "job": (
        "text&tagFilter=ranktap/job", 922, 300,
        (f"rank {troubled.LOST_RANK} has ended without a goodbye",
         f"the job was started again, with {troubled.RANKS} ranks", "left"),
    ),
}  # fmt: skip
"""Of each picture, what stands behind "#", its height, how many of its pixels have a colour at
least, and words on its page."""


@pytest.mark.parametrize("name", SHOWN)
def test_the_page_shows_what_went_wrong(
    board: Board, browser: Browser, name: str, tmp_path: Path
) -> None:
    where, height, coloured, words = SHOWN[name]
    browser.open(f"{board.url}/#{where}")
    browser.wait_for_text(*words)
    browser.evaluate(UNFOLD)
    whole = tmp_path / "whole.png"
    path = Path(os.environ.get("RANKTAP_SCREENSHOTS", tmp_path)) / f"across_{name}.png"

    def is_drawn() -> bool:
        # Charts are drawn after their titles, and move until then.
        before = whole.read_bytes() if whole.exists() else b""
        browser.screenshot(whole)
        picture = Image.open(whole).convert("RGB").crop((LEFT, TOP, PAGE[0], TOP + height))
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        return count_coloured(picture) >= coloured and whole.read_bytes() == before

    wait_for(is_drawn, f"{coloured} pixels of the page's charts, at rest")
    assert path.stat().st_size < PICTURE_BYTES
