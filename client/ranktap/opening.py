"""`ranktap.init`: who this rank is, what its run is called, and where its daemon is."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ranktap import about, embedded, ranks
from ranktap.connection import answers
from ranktap.job_daemon import JobDaemon
from ranktap.keys import Address
from ranktap.tap import Tap
from ranktap_wire import limits, places, rules
from ranktap_wire.messages import Hello

MEMORY_MIN_BYTES = 1 * limits.MIB


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
    spool: str | os.PathLike[str] | None = None,
    memory: int = 256 << 20,
) -> Tap:
    """This rank's tap. Returns at once, whether a daemon is there or not.

    The daemon is, in this order: the one at `endpoint` (or RANKTAP_ENDPOINT), such as
    "tcp://loghost:5757" or "ipc:///run/x.sock"; one that this machine's ranks start and
    share, writing to `logdir`; the service on this machine, when its socket answers. When a
    launcher says that the job is on several machines, `logdir` is that of rank 0's, and the
    others find its daemon by torch.distributed's store, as soon as there is a process group.

    `run` (or RANKTAP_RUN) names the run, and may hold "/"; without it, it is made of the
    job's id, or for a single process of date and host, and `comment` is appended. `rank`
    and `world_size` come from torchrun, Slurm, Open MPI or torch.distributed unless given.
    `resume_step` says that this job goes on from a checkpoint of that step: what an
    earlier one logged at or past it is void. `memory` bounds, in bytes, what is held
    while the daemon cannot be reached.

    `spool` (or RANKTAP_SPOOL) is a directory, which ranks may share, for what memory should
    not hold, and for what waits longer than seconds: nothing is dropped while its disk takes
    it. It is sent when the daemon can be reached, or by `ranktap sync` when this process is
    gone. With it no daemon has to be there, ever.

    With RANKTAP_DISABLED=1 it returns a tap whose methods do nothing.

    Raises:
        TypeError, ValueError: an argument or an environment variable is not of this form.
        LookupError: there is no daemon to be found, and no spool, or no name for the run.
        ModuleNotFoundError: `logdir` needs what `pip install 'ranktap[daemon]'` installs.
    """
    identity = ranks.identify()
    if is_disabled():
        from ranktap.disabled import DisabledTap

        return DisabledTap(
            run or os.environ.get("RANKTAP_RUN") or ranks.run_name(identity, comment) or "",
            identity.rank if rank is None else rank,
            identity.world_size if world_size is None else world_size,
        )
    is_given = rank is not None or world_size is not None
    rank = identity.rank if rank is None else rules.check_step(rank, "rank")
    world_size = (
        identity.world_size if world_size is None else rules.check_step(world_size, "world_size")
    )
    if not 0 <= rank < world_size <= limits.WORLD_SIZE:
        raise ValueError(
            f"rank: expected 0 <= rank < world_size <= {limits.WORLD_SIZE}, "
            f"got rank {rank} of world_size {world_size}"
        )
    if rules.check_step(memory, "memory") < MEMORY_MIN_BYTES:
        raise ValueError(f"memory: expected at least {MEMORY_MIN_BYTES} bytes, got {memory}")
    # Not what was found: alone is only who is one of one in the end.
    identity = dataclasses.replace(identity, rank=rank, world_size=world_size)
    hello = Hello(
        session=secrets.token_bytes(16),
        run=rules.check_run(run_name(run, identity, comment)),
        rank=rank,
        world_size=world_size,
        host=socket.gethostname(),
        pid=os.getpid(),
        first=1,
        started=time.time(),
        filename_suffix=rules.check_suffix(filename_suffix),
        resume_step=None if resume_step is None else rules.check_step(resume_step, "resume_step"),
        about=about.gather(identity, is_given=is_given),
    )
    kept = spool_directory(spool)
    locate = find_daemon(endpoint, logdir, identity, may_be_absent=kept is not None)
    return Tap(hello, locate, int(memory), kept)


def is_disabled() -> bool:
    """Whether RANKTAP_DISABLED says that nothing is to be logged."""
    return os.environ.get("RANKTAP_DISABLED", "0") not in ("", "0")


def endpoint_elsewhere(endpoint: str | None) -> str | None:
    """The endpoint of the daemon that was named, here or in the environment; None: none was."""
    return endpoint or os.environ.get("RANKTAP_ENDPOINT") or None


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """Which daemon a tap logs to: the one at `endpoint`, or that of `logdir`; with neither, this
    machine's service, should it come."""

    why: str
    endpoint: str | None = None
    logdir: Path | None = None


def choose(
    endpoint: str | None, logdir: str | os.PathLike[str] | None, *, may_be_absent: bool = False
) -> Choice:
    """The daemon that was asked for, in the order that `init` says.

    Raises:
        TypeError, ValueError: `endpoint`, or RANKTAP_ENDPOINT, or `logdir` is not of its form.
        LookupError: nothing was asked for, and there is no service on this machine, unless it
            `may_be_absent`.
    """
    elsewhere = endpoint_elsewhere(endpoint)
    if elsewhere is not None:
        why = "endpoint was given" if endpoint else "RANKTAP_ENDPOINT is set"
        return Choice(why, endpoint=_check_endpoint(elsewhere))
    if logdir is not None:
        return Choice("logdir was given", logdir=_check_path(logdir, "logdir"))
    if answers(places.SERVICE_SOCKET):
        why = "nothing else was asked for, and the service's socket answers"
        return Choice(why, endpoint=f"ipc://{places.SERVICE_SOCKET}")
    if may_be_absent:
        return Choice("nothing else was asked for, and the service may come")
    raise LookupError(
        "no daemon to log to: give endpoint= (or set RANKTAP_ENDPOINT) for a ranktapd elsewhere, "
        "or logdir= to have one started on this machine, or start the service "
        f"({places.SERVICE_SOCKET} does not answer)"
    )


def spool_directory(spool: str | os.PathLike[str] | None) -> Path | None:
    """The directory of the spool that was named, here or in the environment, absolute.

    Raises:
        TypeError, ValueError: it is no path.
    """
    named = spool if spool is not None else os.environ.get("RANKTAP_SPOOL")
    if named is None or named == "":
        return None
    return _check_path(named, "spool")


def run_name(run: str | None, identity: ranks.Identity, comment: str) -> str:
    """What the run is called.

    Raises:
        TypeError: `run` or `comment` is no string.
        LookupError: no name was given and the ranks have none in common.
    """
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


def find_daemon(
    endpoint: str | None,
    logdir: str | os.PathLike[str] | None,
    identity: ranks.Identity,
    *,
    may_be_absent: bool = False,
) -> Callable[[], Address]:
    """How to find the daemon; what is returned raises OSError while there is none.

    Raises:
        TypeError, ValueError: `endpoint` or `logdir` is not of this form.
        LookupError: none was named and none is here, unless it `may_be_absent`.
        ModuleNotFoundError: `logdir` needs what is not installed.
    """
    choice = choose(endpoint, logdir, may_be_absent=may_be_absent)
    if choice.endpoint is not None:
        named = Address(choice.endpoint)
        return lambda: named
    if choice.logdir is None or logdir is None:
        return _service
    if ranks.spans_machines(identity):
        if identity.rank == 0:
            embedded.check_installed()
        return JobDaemon(choice.logdir, os.fspath(logdir), identity.rank).locate
    embedded.check_installed()
    daemon = embedded.EmbeddedDaemon(choice.logdir)
    return lambda: Address(daemon.locate())


def _service() -> Address:
    """This machine's service, once it is there."""
    if not answers(places.SERVICE_SOCKET):
        raise OSError(f"no ranktapd was named, and {places.SERVICE_SOCKET} does not answer")
    return Address(f"ipc://{places.SERVICE_SOCKET}")


def _check_path(path: object, name: str) -> Path:
    """The directory, absolute: the training may change its own."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{name}: expected a path, got {path!r} ({type(path).__name__})")
    if "\0" in os.fspath(path):
        raise ValueError(f"{name}: expected a path without null characters, got {path!r}")
    return Path(path).absolute()


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
