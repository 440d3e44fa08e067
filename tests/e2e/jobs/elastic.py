"""A rank of an elastic job, started by torchrun. Argument: a directory that the test watches.

The file `life` there says which life of the job this is; in each, the ranks log `x` at the ten
steps that follow those of the life before, and say that these are journaled, with their process,
in `<life>-<rank>`. The last life ends by itself; in the others they wait to be killed.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import ranktap

STEPS = 10
LAST = 2


def value(life: int, rank: int, step: int) -> float:
    return 100.0 * life + 10.0 * rank * rank + step


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    life = int((directory / "life").read_text())
    tap = ranktap.init("elastic")
    for step in range(life * STEPS, (life + 1) * STEPS):
        tap.scalar("x", value(life, tap.rank, step), step)
    assert tap.flush(30)
    said = directory / f"{life}-{tap.rank}"
    said.with_suffix(".new").write_text(f"{os.getpid()} {tap.world_size}")
    said.with_suffix(".new").rename(said)
    if life < LAST:
        threading.Event().wait()
    tap.close()
