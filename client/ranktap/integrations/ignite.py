"""A logger for Ignite.

from ranktap.integrations.ignite import RanktapLogger
"""

from __future__ import annotations

from typing import Any

import ranktap
from ranktap import integrations

try:
    from ignite.handlers.tensorboard_logger import TensorboardLogger
except ModuleNotFoundError as error:
    raise integrations.missing("ignite", error) from None


class RanktapLogger(TensorboardLogger):
    """What the attached handlers log, in every rank: an engine's output is each rank's own.

    The handlers are those of Ignite's TensorboardLogger, the arguments those of
    `ranktap.SummaryWriter`. Make it within `idist.Parallel`, where the ranks know each other,
    and close it, or use it as a context manager.

    `writer` is the writer, `tap` the tap behind it, and the writer's methods are there too:
    `logger.add_hparams(...)`.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        # Not the base class's, which opens torch's writer.
        self.writer = ranktap.SummaryWriter(*args, **named)

    @property
    def tap(self) -> ranktap.Tap:
        return self.writer.tap
