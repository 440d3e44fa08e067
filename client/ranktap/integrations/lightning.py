"""A logger for the Trainer of Lightning (`lightning` or `pytorch_lightning`), and for Fabric."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ranktap
from ranktap import integrations, ranks

try:
    # With both installed, the one in use: importing the other takes seconds.
    if "lightning.pytorch" in sys.modules or (
        "pytorch_lightning" not in sys.modules and find_spec("lightning")
    ):
        from lightning.pytorch.loggers import Logger
    else:
        from pytorch_lightning.loggers import Logger
except ModuleNotFoundError as error:
    raise integrations.missing("lightning", error) from None

_unnamed = itertools.count()
"""Loggers of this process without a version. The ranks run the same script, and count alike."""


class RanktapLogger(Logger):
    """What `self.log` says, in every rank; without `sync_dist` each says its own.

    The run is `<name>/<version>` below `save_dir`, as with TensorBoardLogger. Without
    `version` it is RANKTAP_RUN, the job's id, or when the job started. Further arguments, such
    as `endpoint`, are those of `ranktap.SummaryWriter`; where there is an endpoint, `save_dir`
    is not needed.

    What a process logs is one session, however often it calls `fit` and `test`.
    """

    # Where the base class has properties.
    name: str = ""
    version: str = ""
    save_dir: str | None = None

    def __init__(
        self,
        save_dir: str | os.PathLike[str] | None = None,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        *,
        default_hp_metric: bool = True,
        prefix: str = "",
        **writer: Any,
    ) -> None:
        super().__init__()
        self.save_dir = None if save_dir is None else os.fspath(save_dir)
        self.name = name or ""
        version = _job() if version is None else version
        self.version = f"version_{version}" if isinstance(version, int) else version
        self._run = "/".join(filter(None, (self.name, self.version)))
        self._default_hp_metric = default_hp_metric
        self._prefix = f"{prefix}-" if prefix else ""
        self._arguments = writer
        self._writer: ranktap.SummaryWriter | None = None
        self._hyperparams: dict[str, bool | int | float | str] = {}
        # The metrics and the step with which they are still to be shown.
        self._unshown: tuple[dict[str, Any], int | None] | None = None
        self._once_per_step = integrations.OncePerStep()

    @property
    def log_dir(self) -> str | None:
        """Where a daemon that was started for `save_dir` writes this run; None without one."""
        return None if self.save_dir is None else str(Path(self.save_dir) / self._run)

    @property
    def experiment(self) -> ranktap.SummaryWriter:
        """This rank's writer. The Trainer asks for it first when the ranks know each other:
        Lightning's launcher tells a process its rank no earlier."""
        if self._writer is None:
            self._writer = ranktap.SummaryWriter(self.save_dir, run=self._run, **self._arguments)
        return self._writer

    @property
    def tap(self) -> ranktap.Tap:
        """This rank's tap: `self.logger.tap.watch(self)`."""
        return self.experiment.tap

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._show_hyperparams()
        numbers = {}
        for name, value in self._once_per_step(metrics, step).items():
            if isinstance(value, Mapping):
                self.tap.curves(self._prefix + name, value, step)
            else:
                numbers[self._prefix + name] = value
        self.tap.scalars(numbers, step)

    def log_hyperparams(
        self, params: Any, metrics: Mapping[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Show them on the HParams page, once the first metrics are there.

        The page takes the first that it finds of a run, so all from before then are one.
        Without metrics there is an `hp_metric` of -1, as with TensorBoardLogger.
        """
        known = integrations.flat(params)
        if metrics is None:
            if known.items() <= self._hyperparams.items():
                return  # `test` says again what `fit` has said
            metrics = {"hp_metric": -1} if self._default_hp_metric else {}
        self._hyperparams |= known
        earlier = self._unshown[0] if self._unshown else {}
        self._unshown = (earlier | dict(metrics), step)

    def finalize(self, status: str) -> None:
        """Wait, for 10 s at most, until all is on the daemon's disk."""
        if self._writer is not None:
            self._show_hyperparams()
            self._writer.flush()

    def _show_hyperparams(self) -> None:
        if self._unshown is not None:
            (metrics, step), self._unshown = self._unshown, None
            self.tap.hparams(self._hyperparams, metrics, step, run_name=".")

    def __getstate__(self) -> dict[str, Any]:
        """For launchers that pickle: each process has a writer of its own."""
        return self.__dict__ | {"_writer": None}


def _job() -> str:
    """What all ranks call this job, without a word between them.

    Raises:
        LookupError: they have nothing in common.
    """
    identity = ranks.identify()
    job = os.environ.get("RANKTAP_RUN") or identity.job
    is_own_launcher = identity.launcher in ("none", "torch.distributed")
    if job is None and is_own_launcher and os.environ.get("NODE_RANK", "0") == "0":
        # Lightning's starts a machine's other ranks as children of the first.
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        job = ranks._dated(ranks._started(os.getpid() if is_first else os.getppid()))
    if job is None:
        raise LookupError("version: the ranks of this job have no name in common: give version=")
    number = next(_unnamed)
    return f"{job}_{number}" if number else job
