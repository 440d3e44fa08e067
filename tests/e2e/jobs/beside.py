"""An example of docs/integrations.md, with the library's own TensorBoard logger beside ours.

Arguments: the library, the example, and where theirs write. Theirs are made to log in every
rank, to `rank<k>` there; ours must show the same tags and steps, and the ranks' values merged.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(library: str, example: str, directory: str) -> None:
    # Lightning's launcher names the local rank only to those that it starts.
    own = f"{directory}/rank{os.environ.get('LOCAL_RANK', '0')}"
    {"lightning": lightning, "accelerate": accelerate,
     "transformers": transformers, "ignite": ignite}[library](own)  # fmt: skip
    # Not runpy, which changes sys.argv: Lightning's launcher starts the other rank with it.
    exec(compile(Path(example).read_text(), example, "exec"), {"__name__": "__main__"})


def lightning(own: str) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    def as_rank_zero(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def called(*args: Any, **named: Any) -> Any:
            rank, rank_zero_only.rank = rank_zero_only.rank, 0
            try:
                return method(*args, **named)
            finally:
                rank_zero_only.rank = rank

        return called

    class EveryRanks(TensorBoardLogger):
        log_metrics = as_rank_zero(TensorBoardLogger.log_metrics)
        log_hyperparams = as_rank_zero(TensorBoardLogger.log_hyperparams)
        finalize = as_rank_zero(TensorBoardLogger.finalize)

    with_ours = Trainer.__init__

    def with_both(self: Any, *, logger: Any, **named: Any) -> None:
        logger.log_hyperparams({"said": {"before": "the ranks know each other"}})
        theirs = EveryRanks(own, name="", version="")
        with_ours(self, logger=[logger, theirs], **named)

    Trainer.__init__ = with_both


def accelerate(own: str) -> None:
    from accelerate import Accelerator
    from accelerate.tracking import TensorBoardTracker

    class EveryRanks(TensorBoardTracker):
        main_process_only = False

    with_ours = Accelerator.__init__

    def with_both(self: Any, *, log_with: Any, **named: Any) -> None:
        with_ours(self, log_with=[log_with, EveryRanks("", own)], **named)

    Accelerator.__init__ = with_both


def transformers(own: str) -> None:
    from transformers import Trainer
    from transformers.integrations import TensorBoardCallback

    def as_rank_zero(state: Any) -> Any:
        state = copy.copy(state)
        state.is_world_process_zero = True
        return state

    class EveryRanks(TensorBoardCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            super().on_train_begin(args, as_rank_zero(state), control, **named)

        def on_log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            super().on_log(args, as_rank_zero(state), control, **named)

    os.environ["TENSORBOARD_LOGGING_DIR"] = own
    with_ours = Trainer.__init__

    def with_both(self: Any, *args: Any, callbacks: list[Any], **named: Any) -> None:
        with_ours(self, *args, callbacks=[*callbacks, EveryRanks()], **named)

    Trainer.__init__ = with_both


def ignite(own: str) -> None:
    from ignite.handlers.tensorboard_logger import (
        GradsHistHandler,
        GradsScalarHandler,
        TensorboardLogger,
        WeightsHistHandler,
        WeightsScalarHandler,
    )

    from ranktap.integrations.ignite import RanktapLogger

    theirs = TensorboardLogger(own)
    attach, close = RanktapLogger.attach, RanktapLogger.close

    def attach_both(self: Any, engine: Any, log_handler: Any, event_name: Any) -> Any:
        if isinstance(log_handler, GradsHistHandler):
            for other in (GradsScalarHandler, WeightsScalarHandler, WeightsHistHandler):
                attach_both(self, engine, other(log_handler.model), event_name)
        theirs.attach(engine, log_handler, event_name)
        return attach(self, engine, log_handler, event_name)

    def close_both(self: Any) -> None:
        theirs.close()
        close(self)

    RanktapLogger.attach = attach_both
    RanktapLogger.close = close_both


if __name__ == "__main__":
    main(*sys.argv[1:])
