"""A rank's handle: what user code logs to.

No call here waits for the network, the disk or the daemon, but `flush` and `close`,
and those are bounded. No call raises because of them. Wrong arguments raise at the
call, with the argument's name, what was given, and what is allowed.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import time as wall_clock
from types import TracebackType
from typing import Any, Self

import numpy as np

from ranktap import embedded, ranks, staging
from ranktap.outbox import ROW_ITEMS, Outbox, PendingScalar
from ranktap.sender import Sender
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
        self._outbox = Outbox(memory_bytes)
        self._rows = self._outbox.rows
        # Tag to index, a dict for each (prefix, policy); the usual one has its own name.
        self._mean: dict[str, int] = {}
        self._tables: dict[tuple[str, str], dict[str, int]] = {("", "mean"): self._mean}
        self._kinds: dict[str, str] = {}
        self._inert = False
        self._closed = False
        self._told_dropped = False
        self._sender = Sender(self._outbox, hello, locate)
        self._sender.start()
        _living.add(self)
        atexit.register(self.close)

    # -- scalars ----------------------------------------------------------------------

    def step(self, n: int) -> None:
        """Set the step of everything that follows without `step=`.

        Raises:
            TypeError, ValueError: `n` is no integer of 64 bits.
        """
        self._step = records.check_step(n, "n")

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
            new = self._new_scalar_tag("", tag, across)
            if new is None:
                return
            index = new
        if type(step) is not int:
            step = self._step if step is None else records.check_step(step)
        elif not STEP_MIN <= step <= STEP_MAX:
            records.check_step(step)
        walltime = wall_clock() if walltime is None else records.check_walltime(walltime)
        if type(value) is not float:
            if staging.on_device(value):
                self._device_scalar(index, step, walltime, value)
                return
            value = _number(value)
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
        except (KeyError, TypeError):
            records.check_across(across, SCALAR_ACROSS)
            table = {}
        added: list[int | float] = []
        devices: list[tuple[int, Any]] = []
        for tag, value in values.items():
            try:
                index = table[tag]
            except (KeyError, TypeError):
                new = self._new_scalar_tag(prefix, tag, across)
                if new is None:
                    continue
                index = new
            if type(value) is not float:
                if staging.on_device(value):
                    devices.append((index, value))
                    continue
                value = _number(value, f"values[{tag!r}]")
            added += (index, step, now, value)
        for index, value in devices:
            self._device_scalar(index, step, now, value)
        if len(self._rows) + len(added) > self._outbox.row_limit:
            self._drop_scalars(len(added) // ROW_ITEMS)
            return
        self._rows += added

    def _new_scalar_tag(self, prefix: str, tag: Any, across: Any) -> int | None:
        """The index of a tag that is logged for the first time; None: it is not to be logged."""
        policy = records.check_across(across, SCALAR_ACROSS)
        records.check_tag(tag)
        if not self._accepts():
            return None
        if policy is Across.RANK0 and self.rank != 0:
            return None
        full = records.check_tag(f"{prefix}/{tag}") if prefix else tag
        self._check_kind(full, f"scalar with across={across!r}")
        index = self._tables.setdefault(("", across), {}).get(full)
        if index is None:
            index = self._outbox.add_tag(full, policy)
            self._tables["", across][full] = index
        if prefix:
            self._tables.setdefault((prefix, across), {})[tag] = index
        return index

    def _device_scalar(self, index: int, step: int, walltime: float, value: Any) -> None:
        if value.numel() != 1:
            raise ValueError(f"value: expected one element, got shape {tuple(value.shape)}")
        pending = PendingScalar(index, step, walltime, staging.snapshot(value.reshape(1), "value"))
        if not self._outbox.add_device_scalar(pending):
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
        if policy is Across.RANK0 and self.rank != 0:
            return
        self._blob(
            Kind.HISTOGRAM,
            tag,
            values,
            step,
            walltime,
            name="values",
            parameters={"bins": name, "max_bins": max_bins},
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
        self._image(Kind.IMAGE, tag, image, step, walltime, dataformats, IMAGE_LETTERS)

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
        self._image(Kind.IMAGES, tag, images, step, walltime, dataformats, IMAGES_LETTERS)

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
            encoded = np.frombuffer(text.encode(), np.uint8)
        except UnicodeEncodeError:
            raise ValueError(f"text: expected Unicode text, got {text[:60]!r}") from None
        copy = staging.Snapshot(encoded, "utf8", encoded.shape)
        self._blob(Kind.TEXT, tag, copy, step, walltime, name="text", parameters={})

    def _image(
        self,
        kind: Kind,
        tag: str,
        image: Any,
        step: int | None,
        walltime: float | None,
        dataformats: str,
        letters: Sequence[str],
    ) -> None:
        self._blob(
            kind,
            tag,
            image,
            step,
            walltime,
            name="image",
            parameters={"dataformats": dataformats},
            check=lambda shape, _: records.check_image_shape(shape, dataformats, letters),
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
        if not hasattr(value, "shape"):
            value = staging.snapshot(value, name)
        if check is not None:
            check(tuple(value.shape), staging.dtype_name(value, name))
        nbytes = int(value.nbytes)
        if nbytes > limits.RECORD_BYTES:
            raise ValueError(
                f"{name}: expected at most {limits.RECORD_BYTES >> 20} MiB, "
                f"got {nbytes / limits.MIB:.1f} MiB (shape {tuple(value.shape)})"
            )
        if not self._accepts():
            return
        self._check_kind(tag, str(kind))
        if not self._outbox.has_room_for(nbytes):
            self._tell_dropped()
            return
        copy = value if isinstance(value, staging.Snapshot) else staging.snapshot(value, name)
        blob = Blob(
            kind, tag, step, walltime, across, copy.dtype, copy.shape, parameters, copy.bits, edges
        )
        if not self._outbox.add_blob(blob, copy.arrived):
            self._tell_dropped()
        elif self._outbox.pending_blob_bytes >= limits.BATCH_TARGET_BYTES:
            self._sender.wake()

    # -- the end ----------------------------------------------------------------------

    def flush(self, timeout: float = TIMEOUT_S) -> bool:
        """Wait until the daemon has journaled all that was logged; True when it has.

        `timeout` is in seconds. False: not all in this time; nothing is lost by that.
        """
        return True if self._inert else self._sender.flush(timeout)

    def close(self, timeout: float = TIMEOUT_S) -> bool:
        """Flush, then end. What is logged afterwards is counted as dropped.

        Called at the interpreter's exit too. True when everything was journaled.
        """
        if self._inert:
            return True
        if self._closed:
            return not self._outbox.dropped
        self._closed = True
        atexit.unregister(self.close)
        self._forget_tags()
        journaled = self._sender.close(timeout)
        if not journaled:
            logger.warning("ranktap: closed before ranktapd had journaled everything")
        if self._outbox.dropped:
            logger.warning(
                "ranktap: %d scalars and %d other records were dropped",
                self._outbox.dropped_scalars,
                self._outbox.dropped_blobs,
            )
        return journaled and not self._outbox.dropped

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

    def _accepts(self) -> bool:
        if self._inert:
            return False
        if self._closed:
            self._drop_scalars(1)
            return False
        return True

    def _check_kind(self, tag: str, kind: str) -> None:
        known = self._kinds.setdefault(tag, kind)
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
            reason = (
                "the tap is closed"
                if self._closed
                else f"{self._outbox.memory_bytes >> 20} MiB wait for ranktapd already"
            )
            logger.warning("ranktap: records are being dropped: %s", reason)

    def _forget_tags(self) -> None:
        """Send every later call through `_new_scalar_tag`, and so through `_accepts`."""
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

        return DisabledTap(run or "", rank or 0, world_size or 1)
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
        embedded.check_installed()
        return embedded.EmbeddedDaemon(Path(logdir).absolute()).locate
    if _answers(places.SERVICE_SOCKET):
        return lambda: f"ipc://{places.SERVICE_SOCKET}"
    raise LookupError(
        "no daemon to log to: give endpoint= (or set RANKTAP_ENDPOINT) for a ranktapd elsewhere, "
        "or logdir= to have one started on this machine, or start the service "
        f"({places.SERVICE_SOCKET} does not answer)"
    )


def _check_endpoint(endpoint: object) -> str:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint: expected a string, got {type(endpoint).__name__}")
    kind, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdigit() and 0 < int(port) < 1 << 16:
        return endpoint
    if kind == "ipc" and 0 < len(os.fsencode(rest)) <= places.SOCKET_PATH_BYTES:
        return endpoint
    raise ValueError(
        "endpoint: expected 'tcp://HOST:PORT' or 'ipc://PATH' with a path of at most "
        f"{places.SOCKET_PATH_BYTES} bytes, got {endpoint!r}"
    )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _number(value: Any, name: str = "value") -> float:
    """A float of whatever is one number."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        if hasattr(value, "item"):
            value = value.item()  # a tensor or array of one element, or numpy's scalar
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        shape = getattr(value, "shape", None)
        given = type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
        raise TypeError(f"{name}: expected a number or one element, got {given}: {error}") from None


def _check_values(shape: tuple[int, ...], dtype: str) -> None:
    if 0 in shape:
        raise ValueError(f"values: expected at least one value, got shape {shape}")
