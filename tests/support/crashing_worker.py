"""A ranktapd whose workers die of one record: the batch that logs the tag `POISON`.

    python -m tests.support.crashing_worker HOW --logdir ...          the daemon
    python -m tests.support.crashing_worker HOW worker --run= ...     a worker of it

HOW is `exit`, `kill` or `raise`, when the batch is folded, or, behind `draw and`, when a
picture of that tag is drawn.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from ranktap_wire import frames
from ranktap_wire.records import Batch, Kind
from ranktap_wire.segment import Entry
from ranktapd import cli, daemon, drawing, entries, fold, run_worker

POISON = "poison"


def _die(how: str) -> None:
    if how.endswith("exit"):
        os._exit(7)
    if how.endswith("raise"):
        raise ArithmeticError("a record that cannot be folded")
    os.kill(os.getpid(), signal.SIGKILL)


def _is_poisoned(batch: Batch) -> bool:
    tags = [] if batch.columns is None else batch.columns.tags
    return POISON in tags or any(blob.tag == POISON for blob in batch.blobs)


def _poison_worker(how: str) -> None:
    real_apply = fold.Fold.apply

    def apply(self: fold.Fold, entry: Entry) -> None:
        words = entries.read_entry(entry.frames)
        if isinstance(words, entries.BatchAccepted) and _is_poisoned(
            frames.read_batch(entry.frames[1:])
        ):
            _die(how)
        real_apply(self, entry)

    real_draw = drawing.DRAWN[Kind.IMAGE]

    def draw(blob: Any, tag: str) -> list[bytes]:
        if tag == POISON:
            _die(how)
        return real_draw(blob, tag)

    if how.startswith("draw"):
        drawing.DRAWN[Kind.IMAGE] = draw
    else:
        fold.Fold.apply = apply  # type: ignore[method-assign]


def _poison_daemon(how: str) -> None:
    real_command = daemon.Daemon._worker_command

    def command(self: daemon.Daemon, run: Any) -> list[str]:
        python, *_, module = real_command(self, run)[:3]
        assert module == "ranktapd.run_worker"
        program = [python, "-m", "tests.support.crashing_worker", how, "worker"]
        return program + real_command(self, run)[3:]

    daemon.Daemon._worker_command = command  # type: ignore[method-assign]


if __name__ == "__main__":
    how, *rest = sys.argv[1:]
    if rest[0] == "worker":
        _poison_worker(how)
        sys.exit(run_worker.main(rest[1:]))
    _poison_daemon(how)
    sys.exit(cli.main(rest))
