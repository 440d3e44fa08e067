"""A rank's handle: what user code logs to.

No call here waits for the network, the disk or the daemon, but `flush` and `close`,
and those are bounded. No call raises because of them. Wrong arguments raise at the
call, with the argument's name, what was given, and what is allowed.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import math
import os
import re
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import time as wall_clock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ranktap import embedded, ranks, staging
from ranktap.outbox import ROW_ITEMS, Outbox, PendingScalar
from ranktap.sender import Sender, answers
from ranktap_wire import limits, places, records
from ranktap_wire.frames import Hello
from ranktap_wire.records import (
    HISTOGRAM_ACROSS,
    IMAGE_LETTERS,
    IMAGES_LETTERS,
    SCALAR_ACROSS,
    STEP_MAX,
    STEP_MIN,
    Across,
    Blob,
    Kind,
)

if TYPE_CHECKING:
    from ranktap.hooks import Handle
    from ranktap.recorder import Recorder
    from ranktap.watch import Watch

logger = logging.getLogger("ranktap")

MEMORY_MIN_BYTES = 1 * limits.MIB
TIMEOUT_S = 10.0


class Tap:
    """A rank's handle. Made by `ranktap.init`; all of it may be called from any thread.

    Where a method takes `step`, None means that of the last `step(n)`, 0 before the
    first. A value is a snapshot: changing it afterwards changes nothing.
    """

    def __init__(
        self,
        hello: Hello,
        locate: Callable[[], str],
        memory_bytes: int,
    ) -> None:
        self.run = hello.run
        self.rank = hello.rank
        self.world_size = hello.world_size
        self._step = 0
        self._has_steps = False
        self._recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
        self._outbox = Outbox(memory_bytes)
        self._rows = self._outbox.rows
        # Tag to index, a dict for each (prefix, policy); the usual one has its own name.
        self._mean: dict[str, int] = {}
        self._tables: dict[tuple[str, str], dict[str, int]] = {("", "mean"): self._mean}
        self._kinds: dict[str, str] = {}
        self._inert = False
        self._closed = False
        self._journaled = False
        self._told_dropped = False
        self._sender = Sender(self._outbox, hello, locate)
        _living.add(self)
        self._sender.start()
        atexit.register(self.close)

    # -- scalars ----------------------------------------------------------------------

    def step(self, n: int) -> None:
        """Set the step of everything that follows without `step=`.

        Raises:
            TypeError, ValueError: `n` is no integer of 64 bits.
        """
        n = records.check_step(n, "n")
        for recorder in list(self._recorders) if self._recorders else ():
            recorder.step_changes(n)
        self._step = n
        self._has_steps = True

    def scalar(
        self,
        tag: str,
        value: Any,
        step: int | None = None,
        *,
        walltime: float | None = None,
        across: str = "mean",
    ) -> None:
        """Log a number: Python's, numpy's, or a tensor of one element. NaN and Inf are shown.

        `across` says how the ranks' values of this tag and step become one: "mean", "sum",
        "min", "max", "last", "rank0", or "each" for a series a rank.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        try:
            index = self._mean[tag] if across == "mean" else self._tables["", across][tag]
        except (KeyError, TypeError):
            self._scalar_of_new_tag(tag, value, step, walltime, across)
            return
        if type(step) is not int:
            step = self._step if step is None else records.check_step(step)
        elif not STEP_MIN <= step <= STEP_MAX:
            records.check_step(step)
        walltime = wall_clock() if walltime is None else records.check_walltime(walltime)
        if type(value) is not float:
            if staging.on_device(value):
                self._add_device_scalar(index, step, walltime, value, "value")
                return
            value = _number(value, "value")
        rows = self._rows
        if len(rows) >= self._outbox.row_limit:
            self._drop_scalars(1)
            return
        # One append: see outbox.py on why a flat list.
        rows += (index, step, walltime, value)

    def scalars(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        prefix: str = "",
        across: str = "mean",
    ) -> None:
        """Log several numbers of one step; with `prefix`, the tags are `prefix/tag`.

        All or none: when a tag or a value is wrong, nothing is logged.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        step = self._step if step is None else records.check_step(step)
        now = wall_clock()
        try:
            table = self._tables[prefix, across]
            items = values.items()
        except (KeyError, TypeError, AttributeError):
            self._scalars_of_new_tags(values, step, prefix, across)
            return
        added: list[int | float] = []
        devices: list[tuple[int, str, Any]] = []
        for tag, value in items:
            index = table.get(tag)
            if index is None:
                self._scalars_of_new_tags(values, step, prefix, across)
                return
            if type(value) is not float:
                if staging.on_device(value):
                    _check_number(value, f"values[{tag!r}]")
                    devices.append((index, tag, value))
                    continue
                value = _number(value, f"values[{tag!r}]")
            added += (index, step, now, value)
        for index, tag, value in devices:
            self._add_device_scalar(index, step, now, value, f"values[{tag!r}]")
        if len(self._rows) + len(added) > self._outbox.row_limit:
            self._drop_scalars(len(added) // ROW_ITEMS)
            return
        self._rows += added

    def _scalar_of_new_tag(
        self, tag: Any, value: Any, step: Any, walltime: Any, across: Any
    ) -> None:
        """A scalar whose tag has no index yet: everything is checked before it gets one."""
        policy = records.check_across(across, SCALAR_ACROSS)
        records.check_tag(tag)
        if step is not None:
            records.check_step(step)
        if walltime is not None:
            records.check_walltime(walltime)
        _check_number(value, "value")
        if self._has_part(policy) and self._accepts(1):
            self._index_tags([(tag, tag)], "", across, policy)
            self.scalar(tag, value, step, walltime=walltime, across=across)

    def _scalars_of_new_tags(self, values: Any, step: int, prefix: Any, across: Any) -> None:
        """Scalars of which one has no index yet: everything is checked before any gets one."""
        policy = records.check_across(across, SCALAR_ACROSS)
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: expected a string, got {type(prefix).__name__}")
        if not isinstance(values, Mapping):
            raise TypeError(f"values: expected a mapping, got {type(values).__name__}")
        tags = []
        for tag, value in values.items():
            records.check_tag(tag)
            tags.append((tag, records.check_tag(f"{prefix}/{tag}") if prefix else tag))
            _check_number(value, f"values[{tag!r}]")
        if self._has_part(policy) and self._accepts(len(tags)):
            self._index_tags(tags, prefix, across, policy)
            if tags:
                self.scalars(values, step, prefix=prefix, across=across)

    def _has_part(self, policy: Across) -> bool:
        """Whether this rank's records of that policy count."""
        return policy is not Across.RANK0 or self.rank == 0

    def _index_tags(
        self, tags: Sequence[tuple[str, str]], prefix: str, across: str, policy: Across
    ) -> None:
        """Give tags, as (without, with prefix), their index, all or none."""
        kind = f"scalar with across={across!r}"
        for _, full in tags:
            self._check_kind(full, kind)
        plain = self._tables.setdefault(("", across), {})
        table = self._tables.setdefault((prefix, across), {})
        for tag, full in tags:
            self._kinds[full] = kind
            index = plain.get(full)
            if index is None:
                index = plain[full] = self._outbox.add_tag(full, policy)
            table[tag] = index

    def _add_device_scalar(
        self, index: int, step: int, walltime: float, value: Any, name: str
    ) -> None:
        copy = staging.snapshot(value.reshape(1), name)
        if not self._outbox.add_device_scalar(PendingScalar(index, step, walltime, copy)):
            self._tell_dropped()

    # -- pictures, histograms, text ---------------------------------------------------

    def histogram(
        self,
        tag: str,
        values: Any,
        step: int | None = None,
        *,
        bins: str | int | Sequence[float] = "tensorflow",
        max_bins: int | None = None,
        across: str = "merge",
        walltime: float | None = None,
    ) -> None:
        """Log how values are distributed: an array or tensor of any shape, at least one element.

        `bins` is "tensorflow" (torch's default edges), one of numpy's names ("auto", "fd", ...),
        a number of buckets, or the edges. `across="merge"` adds the ranks' buckets up, which
        needs edges that do not depend on the data; the others take "each" or "rank0".
        NaN and Inf are left out and counted.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        policy = records.check_across(across, HISTOGRAM_ACROSS)
        name, edges = records.check_bins(bins, max_bins)
        if (
            policy is Across.MERGE
            and self.world_size > 1
            and edges is None
            and name != "tensorflow"
        ):
            raise ValueError(
                f"bins: {bins!r} makes other edges in each rank, which cannot be merged: "
                "use bins='tensorflow', edges, or across='each' or 'rank0'"
            )
        self._blob(
            Kind.HISTOGRAM,
            tag,
            values,
            step,
            walltime,
            name="values",
            parameters={"bins": name, "max_bins": None if max_bins is None else int(max_bins)},
            check=_check_values,
            across=policy,
            edges=None if edges is None else np.array(edges, np.float64),
        )

    def image(
        self,
        tag: str,
        image: Any,
        step: int | None = None,
        *,
        dataformats: str = "CHW",
        walltime: float | None = None,
    ) -> None:
        """Log a picture: floats in [0, 1] or uint8 in [0, 255], as torch's `add_image` takes it.

        `dataformats` names the dimensions: the letters of "CHW", "HW" or "NCHW" in any order.
        1, 3 or 4 channels.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        self._image(Kind.IMAGE, tag, image, step, walltime, dataformats)

    def images(
        self,
        tag: str,
        images: Any,
        step: int | None = None,
        *,
        dataformats: str = "NCHW",
        walltime: float | None = None,
    ) -> None:
        """Log a batch of pictures as one, tiled as torch's `add_images` does.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        self._image(Kind.IMAGES, tag, images, step, walltime, dataformats)

    def image_grid(
        self,
        tag: str,
        images: Any,
        step: int | None = None,
        *,
        nrow: int = 8,
        padding: int = 2,
        normalize: bool = False,
        value_range: tuple[float, float] | None = None,
        scale_each: bool = False,
        pad_value: float = 0.0,
        walltime: float | None = None,
    ) -> None:
        """Log pictures as a grid, which the daemon draws: `torchvision.utils.make_grid`, its
        arguments and its pixels.

        `images` has shape (N, C, H, W), (C, H, W) or (H, W), with 1 or 3 channels. `nrow` is
        the number of pictures in a row. With `normalize` values are moved from `value_range`
        (their own smallest and largest when None; of each picture with `scale_each`) to [0, 1].

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        parameters = {
            "nrow": nrow,
            "padding": padding,
            "normalize": normalize,
            "value_range": value_range,
            "scale_each": scale_each,
            "pad_value": pad_value,
        }

        def check(shape: tuple[int, ...], dtype: str) -> None:
            parameters.update(records.check_grid(shape, dtype, parameters))

        self._blob(
            Kind.IMAGE_GRID,
            tag,
            images,
            step,
            walltime,
            name="images",
            parameters=parameters,
            check=check,
        )

    def text(
        self, tag: str, text: str, step: int | None = None, *, walltime: float | None = None
    ) -> None:
        """Log text; TensorBoard shows it as Markdown.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string, got {type(text).__name__}")
        try:
            encoded = staging.of_text(text)
        except UnicodeEncodeError:
            raise ValueError(f"text: expected Unicode text, got {text[:60]!r}") from None
        self._blob(Kind.TEXT, tag, encoded, step, walltime, name="text", parameters={})

    def _image(
        self,
        kind: Kind,
        tag: str,
        image: Any,
        step: int | None,
        walltime: float | None,
        dataformats: str,
    ) -> None:
        name, letters = (
            ("image", IMAGE_LETTERS) if kind is Kind.IMAGE else ("images", IMAGES_LETTERS)
        )
        self._blob(
            kind,
            tag,
            image,
            step,
            walltime,
            name=name,
            parameters={"dataformats": dataformats},
            check=lambda shape, _: records.check_image_shape(shape, dataformats, letters, name),
        )

    def _blob(
        self,
        kind: Kind,
        tag: str,
        value: Any,
        step: int | None,
        walltime: float | None,
        *,
        name: str,
        parameters: dict[str, Any],
        check: Callable[[tuple[int, ...], str], None] | None = None,
        across: Across = Across.EACH,
        edges: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    ) -> None:
        """Check everything, then copy, then hand over."""
        records.check_tag(tag)
        step = self._step if step is None else records.check_step(step)
        walltime = wall_clock() if walltime is None else records.check_walltime(walltime)
        if isinstance(value, staging.Described):
            given = value
        else:
            given = staging.describe(value, name)
        if check is not None:
            check(given.shape, given.dtype)
        if given.nbytes > limits.RECORD_BYTES:
            raise ValueError(
                f"{name}: expected at most {limits.RECORD_BYTES >> 20} MiB, "
                f"got {given.nbytes / limits.MIB:.1f} MiB (shape {given.shape})"
            )
        self._check_kind(tag, str(kind))
        if not (self._has_part(across) and self._accepts()):
            return
        self._kinds[tag] = str(kind)
        if not self._outbox.has_room_for(given.nbytes):
            self._tell_dropped()
            return
        copy = staging.copy(given)
        # The shape of what is counted says nothing, and may have more dimensions than travel.
        shape = (math.prod(copy.shape),) if kind is Kind.HISTOGRAM else copy.shape
        blob = Blob(
            kind, tag, step, walltime, across, copy.dtype, shape, parameters, copy.bits, edges
        )
        if not self._outbox.add_blob(blob, copy.arrived):
            self._tell_dropped()
        elif self._outbox.pending_blob_bytes >= limits.BATCH_TARGET_BYTES:
            self._sender.wake()

    # -- hooks ------------------------------------------------------------------------

    def watch(
        self,
        model: Any,
        *,
        every: int = 100,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        inputs: str | Sequence[str] = (),
        activations: str | Sequence[str] = ("moments",),
        grad_inputs: str | Sequence[str] = (),
        grad_outputs: str | Sequence[str] = (),
        gradients: str | Sequence[str] = ("moments",),
        parameters: str | Sequence[str] = ("moments",),
        updates: str | Sequence[str] = (),
        feature_maps: bool | str | Sequence[str] | None = None,
        kernels: bool | str | Sequence[str] | None = None,
        optimizer: Any = None,
        samples: int = 1,
        max_maps: int = 64,
        max_edge: int = 128,
        ranks: str | int | Sequence[int] = "all",
        name: str = "",
    ) -> Watch:
        """Hook a model, and log what its modules and parameters do, every `every`-th step.

        `include` and `exclude` are patterns on the names of modules and parameters, as
        `fnmatch` takes them. Each section, from `inputs` to `updates`, takes any of
        "moments" (scalars), "histogram" (counted on the tensor's device) and "tensor" (all
        of it travels, and the daemon counts). `feature_maps` and `kernels` take patterns,
        or True for every convolution: those of the first `samples` of a batch, at most
        `max_maps` each, shrunk to `max_edge` pixels. docs/hooks.md lists the tags.

        A step ends when an optimizer has stepped that holds some of the model's parameters;
        `optimizer` names it, or several; with False no optimizer is waited for, gradients
        are each rank's own, before DDP's all-reduce, and a step ends at `tap.step`.

        `ranks` take part: "all", a rank, or several. `name` stands before names in tags, for
        a second model. Returns the watch: `capture()`, `remove()`, and a context manager.

        Raises:
            TypeError, ValueError: an argument is not of this form, or a pattern matches nothing.
        """
        given = dict(locals())
        del given["self"], given["model"]
        from ranktap.watch import watch

        return watch(self, model, given)

    def gradient(self, tensor: Any, tag: str, *, kind: str = "moments") -> Handle:
        """Log the gradient of a tensor when backward comes to it, by `Tensor.register_hook`.

        Of a parameter, or another leaf, that is what has been added up on this rank. `kind`
        is "moments" (scalars `<tag>/mean`, `/norm`, ...), "histogram" or "tensor". The step is
        that of `tap.step` at that moment. `remove()` of the result ends it.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        from ranktap.hooks import gradient

        return gradient(self, tensor, tag, kind)

    def activation(self, module: Any, tag: str | None = None, kind: str = "histogram") -> Handle:
        """Log what a module puts out, each time that it runs. `tag` is "activations/" and the
        module's class when None.

        `kind` is "moments", "histogram", "tensor" or "feature_maps" (of the first sample). The
        step is that of `tap.step` at that moment. `remove()` of the result ends it.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        from ranktap.hooks import activation

        return activation(self, module, tag, kind)

    def _keep(self, blobs: Sequence[Blob], arrived: Callable[[], bool] | None) -> None:
        """Take records of moments, whose data is this tap's own already."""
        for blob in blobs:
            if self._accepts() and not self._outbox.add_blob(blob, arrived):
                self._tell_dropped()
        if self._outbox.pending_blob_bytes >= limits.BATCH_TARGET_BYTES:
            self._sender.wake()

    def _end_steps(self) -> None:
        """Log what the hooks have seen since the last step ended."""
        for recorder in list(self._recorders):
            recorder.end()

    # -- the end ----------------------------------------------------------------------

    def flush(self, timeout: float = TIMEOUT_S) -> bool:
        """Wait until the daemon has journaled all that was logged; True when it has.

        `timeout` is in seconds. False: not all in this time; nothing is lost by that.

        Raises:
            TypeError, ValueError: `timeout` is no finite number from 0 on.
        """
        timeout = _check_timeout(timeout)
        if self._inert:
            return True
        self._end_steps()
        return self._sender.flush(timeout)

    def close(self, timeout: float = TIMEOUT_S) -> bool:
        """Flush, then end. What is logged afterwards is counted as dropped.

        Called at the interpreter's exit too. True when everything was journaled.

        Raises:
            TypeError, ValueError: `timeout` is no finite number from 0 on.
        """
        timeout = _check_timeout(timeout)
        if self._inert:
            return True
        if self._closed:
            return self._journaled and not self._outbox.dropped
        self._end_steps()
        self._closed = True
        atexit.unregister(self.close)
        self._forget_tags()
        self._journaled = self._sender.close(timeout)
        if not self._journaled:
            logger.warning("ranktap: closed before ranktapd had journaled everything")
        if self._outbox.dropped:
            logger.warning(
                "ranktap: %d scalars and %d other records were dropped",
                self._outbox.dropped_scalars,
                self._outbox.dropped_blobs,
            )
        return self._journaled and not self._outbox.dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- within -----------------------------------------------------------------------

    def _accepts(self, scalars: int = 0) -> bool:
        """Whether anything may be logged; when not, that many scalars, or one blob, are counted."""
        if self._inert:
            return False
        if self._closed:
            if scalars:
                self._outbox.drop_scalars(scalars)
            else:
                self._outbox.drop_blobs(1)
            self._tell_dropped()
            return False
        return True

    def _check_kind(self, tag: str, kind: str) -> None:
        known = self._kinds.get(tag, kind)
        if known != kind:
            raise ValueError(
                f"tag: {tag!r} was logged as {known} before, now as {kind}; "
                "TensorBoard shows one kind of data for each tag"
            )

    def _drop_scalars(self, count: int) -> None:
        self._outbox.drop_scalars(count)
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        if not self._told_dropped:
            self._told_dropped = True
            if self._closed:
                reason = "the tap is closed"
            elif self._outbox.is_closed:
                reason = "the sender has ended, as was said before"
            else:
                reason = f"{self._outbox.memory_bytes >> 20} MiB wait for ranktapd already"
            logger.warning("ranktap: records are being dropped: %s", reason)

    def _forget_tags(self) -> None:
        """Send every later call through `_scalar_of_new_tag`, and so through `_accepts`."""
        for table in self._tables.values():
            table.clear()

    def _become_inert(self) -> None:
        """In a forked child: it has no sender, and its parent's socket is not its own."""
        self._inert = True
        self._forget_tags()


_living: weakref.WeakSet[Tap] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for tap in list(_living):
        tap._become_inert()


os.register_at_fork(after_in_child=_after_fork_in_child)


def init(
    run: str | None = None,
    *,
    logdir: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    comment: str = "",
    filename_suffix: str = "",
    resume_step: int | None = None,
    memory: int = 256 << 20,
) -> Tap:
    """This rank's tap. Returns at once, whether a daemon is there or not.

    The daemon is, in this order: the one at `endpoint` (or RANKTAP_ENDPOINT), such as
    "tcp://loghost:5757" or "ipc:///run/x.sock"; one that this machine's ranks start and
    share, writing to `logdir`; the service on this machine, when its socket answers.

    `run` (or RANKTAP_RUN) names the run, and may hold "/"; without it, it is made of the
    job's id, or for a single process of date and host, and `comment` is appended. `rank`
    and `world_size` come from torchrun, Slurm, Open MPI or torch.distributed unless given.
    `resume_step` says that this job goes on from a checkpoint of that step: what an
    earlier one logged at or past it is void. `memory` bounds, in bytes, what is held
    while the daemon cannot be reached.

    With RANKTAP_DISABLED=1 it returns a tap whose methods do nothing.

    Raises:
        TypeError, ValueError: an argument or an environment variable is not of this form.
        LookupError: there is no daemon to be found, or no name for the run.
        ModuleNotFoundError: `logdir` needs what `pip install 'ranktap[daemon]'` installs.
    """
    if os.environ.get("RANKTAP_DISABLED", "0") not in ("", "0"):
        from ranktap.disabled import DisabledTap

        identity = ranks.identify()
        return DisabledTap(
            run or os.environ.get("RANKTAP_RUN") or ranks.run_name(identity, comment) or "",
            identity.rank if rank is None else rank,
            identity.world_size if world_size is None else world_size,
        )
    identity = ranks.identify()
    rank = identity.rank if rank is None else records.check_step(rank, "rank")
    world_size = (
        identity.world_size if world_size is None else records.check_step(world_size, "world_size")
    )
    if not 0 <= rank < world_size <= limits.WORLD_SIZE:
        raise ValueError(
            f"rank: expected 0 <= rank < world_size <= {limits.WORLD_SIZE}, "
            f"got rank {rank} of world_size {world_size}"
        )
    if records.check_step(memory, "memory") < MEMORY_MIN_BYTES:
        raise ValueError(f"memory: expected at least {MEMORY_MIN_BYTES} bytes, got {memory}")
    # Not what was found: alone is only who is one of one in the end.
    identity = dataclasses.replace(identity, rank=rank, world_size=world_size)
    hello = Hello(
        session=secrets.token_bytes(16),
        run=records.check_run(_run(run, identity, comment)),
        rank=rank,
        world_size=world_size,
        host=socket.gethostname(),
        pid=os.getpid(),
        first=1,
        started=time.time(),
        filename_suffix=records.check_suffix(filename_suffix),
        resume_step=None if resume_step is None else records.check_step(resume_step, "resume_step"),
    )
    return Tap(hello, _daemon(endpoint, logdir), int(memory))


def _run(run: str | None, identity: ranks.Identity, comment: str) -> str:
    if run is not None and not isinstance(run, str):
        raise TypeError(f"run: expected a string, got {type(run).__name__}")
    if not isinstance(comment, str):
        raise TypeError(f"comment: expected a string, got {type(comment).__name__}")
    named = run or os.environ.get("RANKTAP_RUN")
    if named:
        return named + comment
    name = ranks.run_name(identity, comment)
    if name is None:
        raise LookupError(
            f"run: the ranks of this job ({identity.launcher}, world size {identity.world_size}) "
            "have no name in common: give run=, set RANKTAP_RUN, or start torchrun with --rdzv-id"
        )
    return name


def _daemon(endpoint: str | None, logdir: str | os.PathLike[str] | None) -> Callable[[], str]:
    """How to find the daemon."""
    endpoint = endpoint or os.environ.get("RANKTAP_ENDPOINT")
    if endpoint:
        address = _check_endpoint(endpoint)
        return lambda: address
    if logdir is not None:
        directory = _check_logdir(logdir)
        embedded.check_installed()
        return embedded.EmbeddedDaemon(directory).locate
    if answers(places.SERVICE_SOCKET):
        return lambda: f"ipc://{places.SERVICE_SOCKET}"
    raise LookupError(
        "no daemon to log to: give endpoint= (or set RANKTAP_ENDPOINT) for a ranktapd elsewhere, "
        "or logdir= to have one started on this machine, or start the service "
        f"({places.SERVICE_SOCKET} does not answer)"
    )


def _check_timeout(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.number):
        given = f"{timeout!r} ({type(timeout).__name__})"
        raise TypeError(f"timeout: expected a number of seconds, got {given}")
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout: expected a finite number of seconds from 0 on, got {timeout}")
    return float(min(timeout, threading.TIMEOUT_MAX))


def _check_logdir(logdir: object) -> Path:
    """The directory, absolute: the training may change its own."""
    if not isinstance(logdir, str | os.PathLike) or not isinstance(os.fspath(logdir), str):
        raise TypeError(f"logdir: expected a path, got {logdir!r} ({type(logdir).__name__})")
    if "\0" in os.fspath(logdir):
        raise ValueError(f"logdir: expected a path without null characters, got {logdir!r}")
    return Path(logdir).absolute()


def _check_endpoint(endpoint: object) -> str:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint: expected a string, got {type(endpoint).__name__}")
    kind, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    if (
        kind == "tcp"
        and re.fullmatch(r"[\w.-]+|\[[\da-fA-F:.%\w]+\]", host, re.ASCII)
        and re.fullmatch(r"\d{1,5}", port, re.ASCII)
        and 0 < int(port) < 1 << 16
    ):
        return endpoint
    if kind == "ipc" and 0 < len(os.fsencode(rest)) <= places.SOCKET_PATH_BYTES:
        return endpoint
    raise ValueError(
        "endpoint: expected 'tcp://HOST:PORT' or 'ipc://PATH' with a path of at most "
        f"{places.SOCKET_PATH_BYTES} bytes, got {endpoint!r}"
    )


def _number(value: Any, name: str) -> float:
    """A float of whatever is one number."""
    given = value
    try:
        if hasattr(value, "item"):
            value = value.item()  # a tensor or array of one element, or numpy's scalar
        if not isinstance(value, str | bytes):
            return float(value)
        reason = "text"
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error)
    shape = getattr(given, "shape", None)
    what = type(given).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
    raise TypeError(f"{name}: expected a number or one element, got {what}: {reason}")


def _check_number(value: Any, name: str) -> None:
    """Raise what logging this value would, without waiting for a device.

    Raises:
        TypeError: it is not one number.
    """
    if not staging.on_device(value):
        _number(value, name)
        return
    staging.describe(value, name)
    if value.numel() != 1:
        shape = tuple(value.shape)
        raise TypeError(f"{name}: expected a number or one element, got shape {shape}")


def _check_values(shape: tuple[int, ...], dtype: str) -> None:
    if 0 in shape:
        raise ValueError(f"values: expected at least one value, got shape {shape}")
