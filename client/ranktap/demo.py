"""`ranktap demo`: a real job under torchrun's launcher, then TensorBoard on what it logged."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from ranktap_wire.places import lock_path

WRITTEN_TIMEOUT_S = 60
BOARD_TIMEOUT_S = 60


class DemoError(Exception):
    """The demo cannot go on; the message is for the person who started it."""


def run(*, logdir: Path, run_name: str | None, steps: int, ranks: int, board: bool) -> int:
    """Train, say what was written, and with `board` show it until Ctrl-C.

    Raises:
        DemoError: something is missing, or the job failed.
    """
    _check_installed()
    name = run_name or f"demo/{datetime.now().strftime('%b%d_%H-%M-%S')}"
    print(f"Training on {ranks} ranks; every rank logs to run {name!r} below {logdir}/", flush=True)
    _train(logdir, name, steps, ranks)
    _wait_until_written(logdir)
    _report(logdir, name)
    if board:
        _show(logdir)
    else:
        print(f"Look at it with: tensorboard --logdir {logdir}")
    return 0


def _check_installed() -> None:
    needed = {"torch": "torch", "sklearn": "scikit-learn", "rich": "rich"}
    needed |= {"tensorboard": "tensorboard", "isal": "isal"}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DemoError(f"needs {', '.join(missing)}: pip install 'ranktap[demo]'")


def _train(logdir: Path, name: str, steps: int, ranks: int) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={ranks}", "-m", "ranktap.demo_job",
        f"--logdir={logdir}", f"--name={name}", f"--steps={steps}",
    ]  # fmt: skip
    # One thread a rank: what torchrun would choose, without its warning. A session of its
    # own and its stderr aside: Ctrl-C would make launcher and ranks print tracebacks.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with tempfile.TemporaryFile() as errors:
        job = subprocess.Popen(command, env=environment, stderr=errors, start_new_session=True)
        try:
            status = job.wait()
        except KeyboardInterrupt:
            job.terminate()  # torchrun ends its ranks
            job.wait()
            print(f"\nInterrupted; what was logged until then is in {logdir / name}")
            raise
        if status:
            errors.seek(0)
            sys.stderr.write(errors.read().decode(errors="replace"))
            raise DemoError(f"the job ended with status {status}")


def _wait_until_written(logdir: Path) -> None:
    """Until the daemon, which ends when everything is in the event file, lets go of the logdir."""
    deadline = time.monotonic() + WRITTEN_TIMEOUT_S
    with open(lock_path(logdir)) as lock:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.05)
    # A service may have this logdir, and never ends.


def _report(logdir: Path, name: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = logdir / name
    everything = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    events = EventAccumulator(str(directory), size_guidance=everything).Reload()
    tags = events.Tags()
    counts = {
        "scalar": (tags["scalars"], events.Scalars),
        "picture": (tags["images"], events.Images),
        "histogram": (tags["histograms"], events.Histograms),
        "text": ([tag for tag in tags["tensors"] if "/text_summary" in tag], events.Tensors),
    }
    print("Written:")
    for path in sorted(directory.glob("*tfevents*")):
        print(f"  {path} ({path.stat().st_size / 1024:.0f} KiB)")
    for kind, (names, read) in counts.items():
        points = sum(len(read(tag)) for tag in names)
        print(f"  {points:6d} {kind}{'s' * (points != 1)} in {len(names)} tags")


def _show(logdir: Path) -> None:
    """A TensorBoard on a free port, until Ctrl-C."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir),
                "--host", "127.0.0.1", "--port", "0",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            address = _address(process, log.fileno())
            print(f"TensorBoard: {address}  (Ctrl-C ends it)", flush=True)
            process.wait()
        except KeyboardInterrupt:
            print()
        finally:
            process.terminate()
            process.wait(10)


def _address(process: subprocess.Popen[bytes], log: int) -> str:
    deadline = time.monotonic() + BOARD_TIMEOUT_S
    while True:
        said = os.pread(log, 1 << 16, 0).decode(errors="replace")
        found = re.search(r"http://127\.0\.0\.1:\d+/", said)
        if found:
            return found[0]
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"TensorBoard did not start:\n{said}")
        time.sleep(0.05)
