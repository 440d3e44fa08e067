"""A callback for the Trainer of Transformers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from numbers import Number
from typing import Any

import ranktap
from ranktap import integrations

try:
    from transformers import TrainerCallback
    from transformers.integrations import rewrite_logs
except ModuleNotFoundError as error:
    raise integrations.missing("transformers", error) from None

logger = logging.getLogger("ranktap")


class RanktapCallback(TrainerCallback):
    """What the Trainer logs, in every rank: `Trainer(..., callbacks=[RanktapCallback("runs")])`.

    The arguments are those of `ranktap.SummaryWriter`. Without `run` it is
    `TrainingArguments.run_name`, when there is one. With `watch`, the arguments of `Tap.watch`,
    the model's hooks are there too.

    The Trainer averages its loss over the ranks before it logs it. What a rank has of its
    own goes to `callback.tap`; within a training step its step is the Trainer's.

    Each `train()` is a session, closed at its end; what `evaluate` logs behind it is another.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        run: str | None = None,
        watch: Mapping[str, Any] | None = None,
        **writer: Any,
    ) -> None:
        self._log_dir = log_dir
        self._run = run
        self._watch = watch
        self._arguments = writer
        self._writer: ranktap.SummaryWriter | None = None
        self._once_per_step = integrations.OncePerStep()

    @property
    def writer(self) -> ranktap.SummaryWriter:
        """This rank's writer.

        Raises:
            RuntimeError: the Trainer has neither trained nor logged yet.
        """
        if self._writer is None:
            raise RuntimeError("RanktapCallback: it has a writer from the beginning of train() on")
        return self._writer

    @property
    def tap(self) -> ranktap.Tap:
        """This rank's tap, as `writer`."""
        return self.writer.tap

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **named: Any
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        # A checkpoint is of the step that was logged last.
        self._open(args, state, state.global_step + 1 if state.global_step else None)
        tap = self.tap
        if tap.rank == 0:
            tap.text("args", args.to_json_string(), 0)
            config = getattr(model, "config", None)
            if config is not None:
                tap.text("model_config", config.to_json_string(), 0)
        if self._watch is not None and model is not None:
            tap.watch(model, **self._watch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        # The number under which the Trainer will log this step.
        self.tap.step(state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
        if self._writer is None:
            self._open(args, state)
        tap, step = self.tap, state.global_step
        for tag, value in self._once_per_step(rewrite_logs(logs or {}), step).items():
            if isinstance(value, str):
                tap.text(tag, value, step)
            elif isinstance(value, Number) or _is_one(value):
                tap.scalar(tag, value, step)
            else:
                logger.warning("ranktap: %s is no number and no text: %r", tag, value)

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.writer.close()
        # Of another session nothing was said yet, also when it is of the same step.
        self._once_per_step = integrations.OncePerStep()

    def _open(self, args: Any, state: Any, purge_step: int | None = None) -> None:
        run = self._run or os.environ.get("RANKTAP_RUN") or args.run_name
        if state.is_hyper_param_search and state.trial_name is not None:
            run = f"{run}/{state.trial_name}" if run else state.trial_name
        arguments = {"purge_step": purge_step} | self._arguments
        self._writer = ranktap.SummaryWriter(self._log_dir, run=run, **arguments)
        self._once_per_step = integrations.OncePerStep()


def _is_one(value: Any) -> bool:
    """Whether it is a tensor of one element."""
    return hasattr(value, "numel") and value.numel() == 1
