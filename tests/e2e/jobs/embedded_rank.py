"""A rank that logs to `logdir=`. Arguments: logdir, run, steps, how it ends.

The end is `close`; `exit` (the interpreter's, without close), `exception`, or `status`
(sys.exit). Rank r logs step + r as "loss"; a picture and a histogram at step 0.
"""

from __future__ import annotations

import sys

import numpy as np

import ranktap

logdir, run, steps, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
tap = ranktap.init(run, logdir=logdir)
for step in range(steps):
    tap.scalar("loss", float(step + tap.rank), step)
tap.histogram("values", np.full(10, tap.rank), 0)
if tap.rank == 0:
    tap.image("picture", np.zeros((3, 8, 8)), 0)
print(f"rank {tap.rank} has logged", flush=True)
if end == "close":
    print("closed:", tap.close(timeout=60))
elif end == "exception":
    raise ZeroDivisionError("training failed")
elif end == "status":
    sys.exit(3)
