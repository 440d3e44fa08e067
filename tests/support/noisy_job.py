"""The ledger's job with large pictures: few steps fill several of the smallest segments."""

from __future__ import annotations

from typing import Any

import numpy as np

import ranktap
from tests.support import ledger

SEGMENT_BYTES = 1 << 16
"""The smallest that there are."""
NOISE_SHAPE = (3, 64, 80)
"""15 KB: two ranks fill a segment in about two steps."""


def noise(rank: int, step: int) -> np.ndarray[Any, Any]:
    """Pixels of shape NOISE_SHAPE."""
    return np.random.default_rng([rank, step]).integers(0, 256, NOISE_SHAPE, dtype=np.uint8)


def log_step(tap: ranktap.Tap, step: int, *, beside: bool = False) -> None:
    """Everything of this rank and step, on request with what goes to other files too."""
    ledger.log_step(tap, step)
    tap.image("noise", noise(tap.rank, step), step)
    if beside:
        ledger.log_beside(tap, step)


def expected(world_size: int, steps: range, *, beside: bool = False) -> ledger.Contents:
    """What TensorBoard must find."""
    contents = ledger.expected_run(world_size, steps, beside=beside)
    for rank in range(world_size):
        contents.pictures[ledger.shown_tag("noise", rank)] = [
            (step, pixels.shape, pixels.tobytes())
            for step in steps
            for pixels in [noise(rank, step).transpose(1, 2, 0)]
        ]
    return contents
