"""A rank that logs what it is told to on its standard input, and closes when that ends.

Arguments: endpoint, run, value. A line "FIRST COUNT": log `x` = value at so many steps from FIRST
on, and say whether they were journaled. Its place in a job is in the environment.
"""

from __future__ import annotations

import logging
import sys

import ranktap
from ranktap_wire import limits

# A test does not wait for three seconds where one shows the same; beats keep their distance.
limits.ANSWER_TIMEOUT_S, limits.BEAT_INTERVAL_S = 1.5, 0.3  # type: ignore[misc]

logging.basicConfig(format="%(message)s", stream=sys.stderr)
tap = ranktap.init(sys.argv[2], endpoint=sys.argv[1])
print("here", flush=True)
for line in sys.stdin:
    first, count = map(int, line.split())
    for step in range(first, first + count):
        tap.scalar("x", float(sys.argv[3]), step)
    print(tap.flush(timeout=20), flush=True)
print(tap.close(timeout=20), flush=True)
