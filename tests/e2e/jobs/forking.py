"""A rank that forks while it logs, in two threads. Argument: the endpoint."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np

import ranktap

STEPS = 3_000


def log_everything_wrong(tap: ranktap.Tap) -> None:
    """What must not arrive."""
    tap.step(-1)
    for _ in range(1_000):
        tap.scalar("loss", -1.0)
        tap.scalars({"loss": -1.0, "other": -1.0}, -1)
    tap.histogram("histogram", [1.0])
    tap.image("image", np.zeros((3, 4, 4)), -1)
    tap.text("text", "words")


def child(tap: ranktap.Tap, endpoint: str) -> None:
    log_everything_wrong(tap)
    assert tap.flush(timeout=5), "nothing waits in a child"
    assert threading.active_count() == 1
    with ranktap.init("child", endpoint=endpoint, rank=0, world_size=1) as own:
        own.scalar("own", 1.0, 1)
        assert own.flush()


def main(endpoint: str) -> None:
    tap = ranktap.init("parent", endpoint=endpoint, rank=0, world_size=1)

    def log_beside() -> None:
        for step in range(STEPS):
            tap.scalar("beside", float(step), step)

    beside = threading.Thread(target=log_beside)
    beside.start()
    ended = []
    for step in range(STEPS):
        tap.scalar("loss", float(step), step)
        if step % 1_000 == 500:
            tap.image("image", np.zeros((3, 64, 64)), len(ended))
            pid = os.fork()
            if pid == 0:
                if len(ended) == 0:
                    child(tap, endpoint)
                    os._exit(0)
                elif len(ended) == 1:
                    log_everything_wrong(tap)
                    assert tap.close()
                    os._exit(0)
                # Through the interpreter's exit: the parent's atexit calls run here too.
                log_everything_wrong(tap)
                sys.exit(0)
            ended.append(os.waitpid(pid, 0)[1])
    beside.join()
    assert ended == [0, 0, 0], ended
    assert tap.close()


if __name__ == "__main__":
    main(sys.argv[1])
