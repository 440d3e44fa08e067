"""One rank that logs a thousand steps, whatever the daemon says. Argument: the endpoint."""

from __future__ import annotations

import sys

import ranktap

tap = ranktap.init("one_rank", endpoint=sys.argv[1], rank=0, world_size=1)
for step in range(1_000):
    tap.scalar("loss", float(step), step)
print("trained; closed:", tap.close(timeout=5))
