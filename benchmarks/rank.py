"""One rank of several: `python -m benchmarks.rank ENDPOINT RUN RANK WORLD_SIZE STEPS ACROSS`.

It says "ready" once the daemon knows it, waits for a line, logs its steps as fast as it can,
says "journaled" when the daemon has them, and, after another line, that it has ended. Rank 0
then logs the end, which is the last record of all.
"""

from __future__ import annotations

import sys

import ranktap

END_TAG = "the-end-of-this-measurement"
TAGS = [f"layer{number}/value" for number in range(20)]


def main(endpoint: str, run: str, rank: int, world_size: int, steps: int, across: str) -> None:
    tap = ranktap.init(run, endpoint=endpoint, rank=rank, world_size=world_size)
    tap.scalar("warm-up", 0.0, 0, across="each")
    _tell("ready", tap.flush(60))
    for step in range(steps):
        for tag in TAGS:
            tap.scalar(tag, 0.5, step, across=across)
    _tell("journaled", tap.flush(300))
    if rank == 0:
        tap.scalar(END_TAG, 0.0, 0, across="rank0")
    _tell("ended", tap.close(60))


def _tell(word: str, is_true: bool) -> None:
    print(word if is_true else f"not {word}", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    where, name, number, of, count, how = sys.argv[1:]
    main(where, name, int(number), int(of), int(count), how)
