"""A rank that logs to `logdir=` until its standard input ends. Arguments: logdir, run.

Says how many steps it has logged, and whether all of them were journaled.
"""

from __future__ import annotations

import sys
import threading
import time

import ranktap

told = threading.Event()


def listen() -> None:
    sys.stdin.read()
    told.set()


threading.Thread(target=listen, daemon=True).start()
tap = ranktap.init(sys.argv[2], logdir=sys.argv[1])
step = 0
while not told.is_set():
    for _ in range(10):
        tap.scalar("loss", float(step), step)
        step += 1
    time.sleep(0.005)  # a training step
print(step, tap.close(timeout=60))
