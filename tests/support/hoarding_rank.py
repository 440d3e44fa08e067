"""A rank that logs more than it may hold: `python -m tests.support.hoarding_rank ENDPOINT MEMORY`.

It prints a JSON object when its memory is full, waits for a line on its standard input,
logs one more step, closes, and prints another.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

import ranktap
from tests.support.timing import SlowestCall

PICTURES = 100
PICTURE_SHAPE = (3, 512, 512)
SCALARS = 1_000_000


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    endpoint, memory = sys.argv[1], int(sys.argv[2])
    tap = ranktap.init("hoard", endpoint=endpoint, rank=0, world_size=1, memory=memory)
    process = psutil.Process()
    picture = np.zeros(PICTURE_SHAPE, np.uint8)
    slowest = SlowestCall()

    def timed(call: Callable[..., None], *arguments: Any) -> None:
        began = time.perf_counter()
        call(*arguments)
        slowest.add(time.perf_counter() - began)

    def tell(**words: Any) -> None:
        outbox = tap._outbox
        dropped = {"scalars": outbox.dropped_scalars, "pictures": outbox.dropped_blobs}
        held = outbox._scalar_bytes + outbox._blob_bytes
        print(json.dumps(words | {"dropped": dropped, "held_bytes": held}), flush=True)

    rss_before = process.memory_info().rss
    for step in range(PICTURES):
        timed(tap.image, "picture", picture, step)
    rss_peak = process.memory_info().rss
    for step in range(SCALARS):
        timed(tap.scalar, "loss", float(step), step)
        if step % 10_000 == 0:
            rss_peak = max(rss_peak, process.memory_info().rss)
    tap.flush(timeout=0.5)
    rss_peak = max(rss_peak, process.memory_info().rss)
    tell(slowest_s=slowest.blocked_s, grown_bytes=rss_peak - rss_before)
    sys.stdin.readline()
    flushed = tap.flush(timeout=60)
    tap.scalar("after", 1.0, SCALARS)
    tell(flushed=flushed, closed=tap.close(timeout=60))


if __name__ == "__main__":
    main()
