"""Who am I: rank, world size and job, from the environment.

The first launcher that speaks wins: torchrun, Open MPI, Slurm, then an initialised
`torch.distributed`; else this process is alone. That is from the inside out: mpirun in
a Slurm job leaves each rank Slurm's variables of something else (the batch script, or
the daemon that started it). Every rank of a job comes to the same answer without
talking to the others.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """A process's place in its job."""

    rank: int
    world_size: int
    local_rank: int
    job: str | None
    """What all ranks of this job, and no other job, call it; None when nothing tells."""
    launcher: str


# (launcher, rank, world size, local rank)
LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


def identify(environ: Mapping[str, str] | None = None) -> Identity:
    """This process's identity.

    Raises:
        ValueError: a launcher's variable is no number; it is named.
    """
    environ = os.environ if environ is None else environ
    for launcher, rank_name, size_name, local_name in LAUNCHERS:
        if rank_name not in environ or size_name not in environ:
            continue
        # A batch script and an interactive shell have these variables too, and are no rank:
        # only what srun starts is one.
        if launcher == "Slurm" and "SLURM_STEP_ID" not in environ:
            continue
        rank, world_size = _whole(environ, rank_name), _whole(environ, size_name)
        local_rank = _whole(environ, local_name) if local_name in environ else 0
        return Identity(rank, world_size, local_rank, _job(launcher, environ), launcher)
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return Identity(
            distributed.get_rank(), distributed.get_world_size(), 0, None, "torch.distributed"
        )
    return Identity(0, 1, 0, None, "none")


def spans_machines(identity: Identity, environ: Mapping[str, str] | None = None) -> bool:
    """Whether the launcher says that the job's ranks are on several machines.

    Of a job without a launcher nothing says so, and it counts as being on one.

    Raises:
        ValueError: a launcher's variable is no number; it is named.
    """
    environ = os.environ if environ is None else environ
    if identity.launcher == "torchrun":
        if "GROUP_WORLD_SIZE" in environ:
            return _whole(environ, "GROUP_WORLD_SIZE") > 1
        # As by hand, or by other launchers that speak torchrun's language.
        local = "LOCAL_WORLD_SIZE"
        return local in environ and _whole(environ, local) < _whole(environ, "WORLD_SIZE")
    if identity.launcher == "Open MPI":
        local = "OMPI_COMM_WORLD_LOCAL_SIZE"
        return local in environ and _whole(environ, local) < identity.world_size
    if identity.launcher == "Slurm":
        name = "SLURM_STEP_NUM_NODES"
        return name in environ and _whole(environ, name) > 1
    return False


def run_name(identity: Identity, comment: str = "") -> str | None:
    """The name of a run for which none was given; None when the ranks could not agree on one.

    A job's id where a launcher gives one; for a process that is alone what torch's
    SummaryWriter uses: date, time and host.
    """
    if identity.job is not None:
        return identity.job + comment
    if identity.world_size == 1:
        return _dated(datetime.now()) + comment
    return None


def job_mark(identity: Identity, environ: Mapping[str, str] | None = None) -> str | None:
    """What every rank of this job says and no rank of another job does, through all its restarts;
    None when nothing tells.

    Of a job that has no id it is the process that started it, which a name for people need not
    tell from another one of the same second.
    """
    environ = os.environ if environ is None else environ
    host = socket.gethostname()
    if identity.launcher == "none":
        return f"process {os.getpid()} on {host}, started {_start_ticks(os.getpid())}"
    if identity.launcher == "torchrun" and _is_of_one_agent(environ):
        agent = os.getppid()
        return f"torchrun {agent} on {host}, started {_start_ticks(agent)}"
    return None if identity.job is None else f"{identity.launcher} {identity.job}"


def _job(launcher: str, environ: Mapping[str, str]) -> str | None:
    if launcher == "torchrun":
        if _is_of_one_agent(environ):
            return _dated(_started(os.getppid()))
        job = environ.get("TORCHELASTIC_RUN_ID")
        return None if job in (None, "", "none") else job
    if launcher == "Slurm":
        job, step = environ.get("SLURM_JOB_ID"), environ.get("SLURM_STEP_ID")
        return f"slurm-{job}" + (f".{step}" if step not in (None, "", "0") else "") if job else None
    namespace = environ.get("PMIX_NAMESPACE", "").replace("/", "_")
    return f"mpi-{namespace}" if namespace else None


def _is_of_one_agent(environ: Mapping[str, str]) -> bool:
    """Whether a rank's parent is what tells its job from the next.

    Without --rdzv-id torchrun calls every job "none". On one node all ranks have one parent,
    the agent that started them.
    """
    no_id = environ.get("TORCHELASTIC_RUN_ID") in ("", "none")
    return no_id and environ.get("GROUP_WORLD_SIZE", "1") == "1"


def _dated(when: datetime) -> str:
    return f"{when.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}"


def _started(pid: int) -> datetime:
    """When a process was started, to the second and the same in every process that asks."""
    boot = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_text().splitlines()
        if line.startswith("btime")
    )
    return datetime.fromtimestamp(boot + _start_ticks(pid) // os.sysconf("SC_CLK_TCK"))


def _start_ticks(pid: int) -> int:
    """When a process was started, in ticks since the machine was."""
    # Fields behind the command's closing parenthesis; the command may hold anything.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _whole(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}: expected a whole number, got {text!r}")
    return int(text)
