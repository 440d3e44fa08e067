"""Watch an event file grow, and print how old its scalars were when they could be read."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event

HEADER_BYTES, TRAILER_BYTES = 12, 4


def watch(path: Path, count: int) -> list[float]:
    """Ages in milliseconds: the wall time of `tap.scalar` to the first look that finds it."""
    ages: list[float] = []
    fd = os.open(path, os.O_RDONLY)
    offset = os.fstat(fd).st_size
    print("watching", flush=True)
    while len(ages) < count:
        data = os.pread(fd, 1 << 20, offset)
        now = time.time()
        at = 0
        while at + HEADER_BYTES <= len(data):
            end = at + HEADER_BYTES + int.from_bytes(data[at : at + 8], "little") + TRAILER_BYTES
            if end > len(data):
                break
            event = Event.FromString(data[at + HEADER_BYTES : end - TRAILER_BYTES])
            ages += [
                (now - event.wall_time) * 1e3
                for value in event.summary.value
                if value.tag == "latency"
            ]
            at = end
        offset += at
        time.sleep(0.001)
    return ages


if __name__ == "__main__":
    found = np.array(watch(Path(sys.argv[1]), int(sys.argv[2])))
    print(np.median(found), np.percentile(found, 99), found.max())
