"""Who a process is, from each launcher's variables, and the name that its ranks agree on."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from ranktap.ranks import Identity, _started, identify, job_mark, run_name, spans_machines


def torchrun(rank: int, **more: str) -> dict[str, str]:
    """What torchrun sets for a rank of 4 on one node."""
    return {
        "RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none",
    } | more  # fmt: skip


def slurm(rank: int, **more: str) -> dict[str, str]:
    """What srun sets for a task of 16 on 2 nodes."""
    return {
        "SLURM_PROCID": str(rank), "SLURM_NTASKS": "16", "SLURM_LOCALID": str(rank % 8),
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0",
    } | more  # fmt: skip


def open_mpi(rank: int, **more: str) -> dict[str, str]:
    """What mpirun sets for a rank of 3."""
    return {
        "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "PMIX_NAMESPACE": "prterun-node1-77@1",
    } | more  # fmt: skip


def test_torchrun_tells_rank_world_size_local_rank_and_job() -> None:
    environ = torchrun(3, TORCHELASTIC_RUN_ID="lm-7b", LOCAL_RANK="1")
    assert identify(environ) == Identity(3, 4, 1, "lm-7b", "torchrun")


def test_slurm_tells_rank_world_size_local_rank_and_job() -> None:
    assert identify(slurm(9)) == Identity(9, 16, 1, "slurm-4711", "Slurm")


def test_open_mpi_tells_rank_world_size_local_rank_and_job() -> None:
    assert identify(open_mpi(2)) == Identity(2, 3, 2, "mpi-prterun-node1-77@1", "Open MPI")


def test_without_any_launcher_a_process_is_rank_0_of_1() -> None:
    assert identify({"PATH": "/bin", "RANK": "3"}) == Identity(0, 1, 0, None, "none")


def test_a_missing_local_rank_is_0() -> None:
    environ = torchrun(3)
    del environ["LOCAL_RANK"]
    assert identify(environ).local_rank == 0


def test_torchrun_in_a_slurm_task_is_torchruns_rank() -> None:
    assert identify(slurm(1) | torchrun(2, TORCHELASTIC_RUN_ID="j")).launcher == "torchrun"


def test_mpirun_in_a_slurm_batch_script_is_open_mpis_rank() -> None:
    # Every rank has inherited the batch script's SLURM_PROCID of 0.
    batch = slurm(0)
    assert identify(batch | open_mpi(2)).rank == 2
    del batch["SLURM_STEP_ID"]
    assert identify(batch | open_mpi(1)).rank == 1


@pytest.mark.parametrize("tasks", ["1", "16"])
def test_a_slurm_shell_or_batch_script_is_no_rank(tasks: str) -> None:
    environ = slurm(0, SLURM_NTASKS=tasks)
    del environ["SLURM_STEP_ID"]
    assert identify(environ) == Identity(0, 1, 0, None, "none")


def test_a_second_step_of_a_slurm_job_has_a_name_of_its_own() -> None:
    assert identify(slurm(0, SLURM_STEP_ID="3")).job == "slurm-4711.3"


@pytest.mark.parametrize(
    ("environ", "spans"),
    [
        (torchrun(0), False),
        (torchrun(0, GROUP_WORLD_SIZE="2"), True),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, False),
        ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, True),
        ({"RANK": "0", "WORLD_SIZE": "8"}, False),
        (slurm(0), False),
        (slurm(0, SLURM_STEP_NUM_NODES="1"), False),
        (slurm(0, SLURM_STEP_NUM_NODES="2"), True),
        (open_mpi(0), False),
        (open_mpi(0, OMPI_COMM_WORLD_LOCAL_SIZE="3"), False),
        (open_mpi(0, OMPI_COMM_WORLD_LOCAL_SIZE="2"), True),
        ({}, False),
    ],
)
def test_a_launcher_tells_whether_a_job_is_on_several_machines(
    environ: dict[str, str], spans: bool
) -> None:
    assert spans_machines(identify(environ), environ) is spans


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
@pytest.mark.parametrize("value", ["", "two", "1.0", "-1", "1_0", " 1", "٣"])
def test_a_malformed_variable_is_named_with_its_value(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a whole number, got {value!r}$"):
        identify(torchrun(0, **{name: value}))


def test_a_malformed_variable_of_slurm_is_named() -> None:
    with pytest.raises(ValueError, match=r"^SLURM_NTASKS: expected a whole number, got '2,3'"):
        identify(slurm(0, SLURM_NTASKS="2,3"))


@pytest.mark.parametrize(
    "ranks",
    [
        [torchrun(rank, TORCHELASTIC_RUN_ID="lm") for rank in range(4)],
        [torchrun(rank) for rank in range(4)],
        [slurm(rank) for rank in range(16)],
        [open_mpi(rank) for rank in range(3)],
    ],
    ids=["torchrun", "torchrun without --rdzv-id", "Slurm", "Open MPI"],
)
def test_all_ranks_of_a_job_come_to_the_same_run_name(ranks: list[dict[str, str]]) -> None:
    names = {run_name(identify(environ), "-seed1") for environ in ranks}
    assert len(names) == 1
    (name,) = names
    assert name is not None and name.endswith("-seed1")


def test_a_comment_follows_the_jobs_name() -> None:
    assert run_name(identify(slurm(0)), "_try2") == "slurm-4711_try2"


def test_torchrun_without_an_id_names_the_run_by_when_its_agent_started() -> None:
    job = identify(torchrun(0)).job
    started = datetime.fromtimestamp(psutil.Process().parent().create_time())
    near = [started + timedelta(seconds=seconds) for seconds in (-1, 0, 1)]
    assert job in [f"{when.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}" for when in near]


def test_two_children_of_one_agent_agree_in_processes_of_their_own() -> None:
    program = "from ranktap.ranks import identify; print(identify().job)"
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env=torchrun(rank), stdout=subprocess.PIPE, check=True
        ).stdout
        for rank in range(2)
    }
    assert len(said) == 1
    assert socket.gethostname().encode() in said.pop()


@pytest.mark.parametrize(
    ("environ", "mark"),
    [
        (torchrun(1, TORCHELASTIC_RUN_ID="lm"), "torchrun lm"),
        (slurm(9, SLURM_STEP_ID="3"), "Slurm slurm-4711.3"),
        (open_mpi(1), "Open MPI mpi-prterun-node1-77@1"),
        (torchrun(0, GROUP_WORLD_SIZE="2"), None),
    ],
)
def test_a_jobs_id_marks_it(environ: dict[str, str], mark: str | None) -> None:
    assert job_mark(identify(environ), environ) == mark


def test_a_job_of_torchrun_without_an_id_is_marked_by_its_agent() -> None:
    agent = psutil.Process().ppid()
    marks = {job_mark(identify(environ), environ) for environ in map(torchrun, range(4))}
    (mark,) = marks
    assert mark is not None
    assert mark.startswith(f"torchrun {agent} on {socket.gethostname()}, started ")


def test_a_process_alone_is_marked_by_itself_and_no_two_are_alike() -> None:
    program = "from ranktap.ranks import identify, job_mark; print(job_mark(identify()))"
    said = {
        subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout
        for _ in range(2)
    }
    assert len(said) == 2
    alone = Identity(0, 1, 0, None, "none")
    assert job_mark(alone) == job_mark(alone)


def test_torchrun_without_an_id_on_several_nodes_has_no_name_in_common() -> None:
    identity = identify(torchrun(0, GROUP_WORLD_SIZE="2"))
    assert identity.job is None
    assert run_name(identity) is None


def test_a_rank_whose_launcher_gives_no_id_has_no_name_in_common() -> None:
    environ = torchrun(0)
    del environ["TORCHELASTIC_RUN_ID"]  # env:// by hand
    assert run_name(identify(environ)) is None
    environ = open_mpi(0)
    del environ["PMIX_NAMESPACE"]
    assert run_name(identify(environ)) is None


def test_a_process_alone_is_named_as_summary_writer_would() -> None:
    before = datetime.now().replace(microsecond=0)
    name = run_name(Identity(0, 1, 0, None, "none"), "_x")
    host = socket.gethostname()
    assert name is not None
    match = re.fullmatch(rf"(\w{{3}}\d\d_\d\d-\d\d-\d\d)_{re.escape(host)}_x", name)
    assert match is not None
    when = datetime.strptime(f"{before.year} {match[1]}", "%Y %b%d_%H-%M-%S")
    assert before <= when <= datetime.now()


def test_when_a_process_started_is_read_whatever_its_name_holds(tmp_path: Path) -> None:
    # /proc/PID/stat has the command in parentheses and escapes nothing.
    odd = tmp_path / "a) S 1 (b"
    shutil.copy("/bin/sleep", odd)
    with subprocess.Popen([odd, "60"]) as process:
        try:
            started = _started(process.pid)
        finally:
            process.kill()
    assert abs(datetime.now() - started) < timedelta(seconds=10)


@pytest.fixture
def process_group() -> Iterator[None]:
    """An initialised torch.distributed, as rank 3 of 8; its backend sends nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    yield
    dist.destroy_process_group()


def test_an_initialised_torch_distributed_tells_rank_and_world_size(process_group: None) -> None:
    assert identify({}) == Identity(3, 8, 0, None, "torch.distributed")


def test_a_launchers_variables_go_before_torch_distributed(process_group: None) -> None:
    assert identify(slurm(9)).rank == 9


def test_torch_that_is_not_imported_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert identify({}).launcher == "none"
    assert "torch" not in sys.modules
