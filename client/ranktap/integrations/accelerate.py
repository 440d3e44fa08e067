"""A tracker for Accelerate, and an Accelerator that lets every rank use it.

from ranktap.integrations.accelerate import Accelerator, RanktapTracker
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ranktap
from ranktap import integrations

try:
    import accelerate
    from accelerate.tracking import GeneralTracker
except ModuleNotFoundError as error:
    raise integrations.missing("accelerate", error) from None


class Accelerator(accelerate.Accelerator):
    """Accelerate's own, but for `init_trackers` and `log`: they reach, in every rank, trackers
    that ask for it with `main_process_only = False`. Accelerate's are for its main process.

    Such trackers are given to `log_with` as objects.
    """

    # Those that Accelerate itself leaves alone in this rank.
    _left_alone: Sequence[GeneralTracker] = ()

    def init_trackers(
        self,
        project_name: str,
        config: dict[str, Any] | None = None,
        init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().init_trackers(project_name, config, init_kwargs or {})
        if self.trackers:
            return
        self._left_alone = [
            tracker
            for tracker in self.log_with
            if isinstance(tracker, GeneralTracker) and not tracker.main_process_only
        ]
        for tracker in self._left_alone:
            tracker.start()
            if config is not None:
                tracker.store_init_configuration(config)
        self.trackers += self._left_alone

    def log(
        self,
        values: dict[str, Any],
        step: int | None = None,
        log_kwargs: dict[str, Any] | None = None,
    ) -> None:
        log_kwargs = log_kwargs or {}
        super().log(values, step, log_kwargs)
        for tracker in self._left_alone:
            tracker.log(values, step=step, **log_kwargs.get(tracker.name, {}))


class RanktapTracker(GeneralTracker):
    """What `log` of the `Accelerator` above says, in every rank: each says its own.

    `Accelerator(log_with=RanktapTracker("digits", "runs"))`. The run is `run_name` below
    `logging_dir`, as with TensorBoardTracker. Further arguments, such as `endpoint`, are those
    of `ranktap.SummaryWriter`; where there is an endpoint, `logging_dir` is not needed.
    `accelerator.end_training()` closes it.
    """

    name = "ranktap"
    requires_logging_directory = False
    main_process_only = False

    def __init__(
        self,
        run_name: str | None = None,
        logging_dir: str | os.PathLike[str] | None = None,
        **writer: Any,
    ) -> None:
        super().__init__()
        self._open = functools.partial(ranktap.SummaryWriter, logging_dir, run=run_name, **writer)
        self.writer: ranktap.SummaryWriter | None = None

    def start(self) -> None:
        """Called by `init_trackers`, when the ranks know each other."""
        if self.writer is None:
            self.writer = self._open()

    @property
    def tracker(self) -> ranktap.SummaryWriter:
        """This rank's writer: `accelerator.get_tracker("ranktap", unwrap=True)`.

        Raises:
            RuntimeError: `accelerator.init_trackers` was not called yet.
        """
        if self.writer is None:
            raise RuntimeError("RanktapTracker: call accelerator.init_trackers first")
        return self.writer

    @property
    def tap(self) -> ranktap.Tap:
        """This rank's tap: `tracker.tap.watch(model)`."""
        return self.tracker.tap

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Show the `config` of `init_trackers` on the HParams page."""
        self.tap.hparams(integrations.flat(values), {}, run_name=".")

    def log(self, values: Mapping[str, Any], step: int | None = None, **named: Any) -> None:
        """Log numbers, texts, and mappings of numbers, which are curves of one chart.

        `named` goes to `Tap.scalars`: `log_kwargs={"ranktap": {"across": "max"}}`.
        """
        numbers = {}
        for name, value in values.items():
            if isinstance(value, str):
                self.tap.text(name, value, step)
            elif isinstance(value, Mapping):
                self.tap.curves(name, value, step, **named)
            else:
                numbers[name] = value
        self.tap.scalars(numbers, step, **named)

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **named: Any) -> None:
        """Log batches of pictures; `named`, such as `dataformats`, goes to `Tap.images`."""
        for name, images in values.items():
            self.tap.images(name, images, step, **named)

    def finish(self) -> None:
        if self.writer is not None:
            self.writer.close()
