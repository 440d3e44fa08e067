"""A rank of a job that crashed at step 9 and went on from 5: one of its two lives.

Its arguments are the endpoint, the run, its rank of four, and which life it is: 0 or 1.
"""

import sys
from typing import Any

from ranktap import SummaryWriter

RESUMED_AT = 5
STEPS = (range(10), range(RESUMED_AT, 8))
"""What each life logs; a step that both log has another value in each."""


def log_life(writer: Any, life: int, offset: float = 0.0) -> None:
    """What one life logs; the tag "end <life>" is the last of it."""
    for step in STEPS[life]:
        value = 100.0 * life + step + offset
        writer.add_scalar("loss", value, step)
        writer.add_scalars("curves", {"a": value}, step)
        if life == 0:
            writer.add_scalar("not again", value, step)
    writer.add_scalar(f"end {life}", 1.0, STEPS[life][-1] + 1)
    writer.close()


if __name__ == "__main__":
    endpoint, run, rank, number = sys.argv[1:]
    purge_step = RESUMED_AT if number == "1" else None
    # So that the mean of the four is what a single process logs.
    own = SummaryWriter(run, purge_step=purge_step, endpoint=endpoint)
    log_life(own, int(number), float(rank) - 1.5)
