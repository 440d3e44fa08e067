"""What is measured: each case the same work for every side, checked by reading it back.

A case runs in a process of its own, on a directory of its own, and returns figures. A
figure that comes from work which did not arrive in the event file is no figure: every
case counts what TensorBoard's own reader finds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ranktap
from benchmarks import tally
from benchmarks.service import Service
from benchmarks.work import image, many, timed

RUN = "run"
END_TAG = "the-end-of-this-measurement"

Figures = dict[str, float]

FIRST, THEN = "first burst", "then"
"""A process's first burst touches memory, and pages of the page cache, for the first time."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table, or several."""

    name: str
    what: str
    sides: dict[str, Callable[[Path], Figures]]
    """Side to function; "ranktap" is always one."""
    targets: dict[str, tuple[str, float]]
    """Figure to (kind, bound): "times" better than the rival at least, "below" or "above"."""
    units: dict[str, str]
    higher_is_better: bool = False
    group: str = "logging"
    """The table that it stands in."""


# -- the sides --------------------------------------------------------------------------


shared: Service | None = None
"""A daemon that has the directories of all cases, where they are only tried: starting one for each
would be most of the work."""


def open_tap(directory: Path) -> ranktap.Tap:
    """A tap on an embedded daemon that has answered: start-up is a case of its own."""
    if shared is None:
        tap = ranktap.init(RUN, logdir=directory, rank=0, world_size=1)
    else:
        run = str(directory.relative_to(shared.logdir) / RUN)
        tap = ranktap.init(run, endpoint=shared.endpoint, rank=0, world_size=1)
    tap.scalar("warm-up", 0.0, 0)
    if not tap.flush(60):
        raise RuntimeError("the embedded daemon did not answer")
    return tap


def open_torch(directory: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / RUN))
    writer.add_scalar("warm-up", 0.0, 0)
    writer.flush()
    return writer


# -- end to end ---------------------------------------------------------------------------

TAGS = [f"layer{number}/value" for number in range(20)]


def seconds_through_ranktap(
    directory: Path,
    log: Callable[[ranktap.Tap, int], None],
    logged: dict[str, int],
    *,
    bursts: int = 1,
    scalars: bool = False,
) -> list[float]:
    """Of each burst the seconds from the first call until all that `log` logs is readable in the
    event file. `log` is given the number of the burst, and logs `logged` points of each tag."""
    tap = open_tap(directory)
    seconds = []
    for burst in range(bursts):
        end = f"{END_TAG}-{burst}"
        with timed() as took:
            log(tap, burst)
            # Scalars of a batch are written before what else is in it: the end is of the same kind.
            if scalars:
                tap.scalar(end, 0.0, 0)
            else:
                tap.image(end, np.zeros((1, 1, 1)), 0)
            wait_for_end(directory, end)
        seconds.append(took.seconds)
    tap.close(60)
    expect(directory, {tag: count * bursts for tag, count in logged.items()})
    return seconds


def seconds_through_torch(
    directory: Path,
    log: Callable[[Any, int], None],
    logged: dict[str, int],
    *,
    bursts: int = 1,
) -> list[float]:
    """The same, of what torch's SummaryWriter has written when it has flushed."""
    writer = open_torch(directory)
    seconds = []
    for burst in range(bursts):
        with timed() as took:
            log(writer, burst)
            writer.flush()
        seconds.append(took.seconds)
    writer.close()
    expect(directory, {tag: count * bursts for tag, count in logged.items()})
    return seconds


def _a_second(count: int, seconds: list[float]) -> Figures:
    return {name: count / each for name, each in zip((FIRST, THEN), seconds, strict=True)}


def scalars_through_ranktap(directory: Path) -> Figures:
    steps = many(100_000, 50)

    def log(tap: ranktap.Tap, burst: int) -> None:
        for step in range(burst * steps, (burst + 1) * steps):
            for tag in TAGS:
                tap.scalar(tag, 0.5, step)

    logged = dict.fromkeys(TAGS, steps)
    seconds = seconds_through_ranktap(directory, log, logged, bursts=2, scalars=True)
    return _a_second(steps * len(TAGS), seconds)


def dicts_through_ranktap(directory: Path) -> Figures:
    steps = many(100_000, 50)
    values = dict.fromkeys(TAGS, 0.5)

    def log(tap: ranktap.Tap, burst: int) -> None:
        for step in range(burst * steps, (burst + 1) * steps):
            tap.scalars(values, step)

    logged = dict.fromkeys(TAGS, steps)
    seconds = seconds_through_ranktap(directory, log, logged, bursts=2, scalars=True)
    return _a_second(steps * len(TAGS), seconds)


def scalars_through_torch(directory: Path) -> Figures:
    steps = many(2_000, 5)

    def log(writer: Any, burst: int) -> None:
        for step in range(burst * steps, (burst + 1) * steps):
            for tag in TAGS:
                writer.add_scalar(tag, 0.5, step)

    seconds = seconds_through_torch(directory, log, dict.fromkeys(TAGS, steps), bursts=2)
    return _a_second(steps * len(TAGS), seconds)


def images_through_ranktap(directory: Path) -> Figures:
    picture, count = image(), many(200, 3)

    def log(tap: ranktap.Tap, burst: int) -> None:
        for step in range(burst * count, (burst + 1) * count):
            tap.image("image", picture, step)

    return _a_second(count, seconds_through_ranktap(directory, log, {"image": count}, bursts=2))


def images_through_torch(directory: Path) -> Figures:
    picture, count = image(), many(20, 1)

    def log(writer: Any, burst: int) -> None:
        for step in range(burst * count, (burst + 1) * count):
            writer.add_image("image", picture, step)

    import PIL.Image  # noqa: F401 (not what is measured)

    return _a_second(count, seconds_through_torch(directory, log, {"image": count}, bursts=2))


# -- latency ------------------------------------------------------------------------------


def latency_ranktap(directory: Path) -> Figures:
    """From the call to the event file, at 50 scalars a second, read by another process."""
    tap, count = open_tap(directory), many(500, 20)
    command = [
        *(sys.executable, "-m", "benchmarks.latency"),
        str(event_file(directory)),
        str(count),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()  # it watches
        pauses = np.random.default_rng(0).uniform(0.005, 0.035, count)
        with timed():
            for step in range(count):
                tap.scalar("latency", 0.5, step)
                time.sleep(pauses[step])
        said = reader.stdout.read().split()
    tap.close(60)
    expect(directory, {"latency": count})
    return {"median": float(said[0]), "99th percentile": float(said[1]), "worst": float(said[2])}


# -- reading back -------------------------------------------------------------------------


def event_file(directory: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = sorted((directory / RUN).glob("*tfevents*"))
        if found:
            return found[-1]
        time.sleep(0.01)
    raise RuntimeError(f"no event file in {directory / RUN}")


def wait_for_end(directory: Path, tag: str = END_TAG) -> None:
    """Until the last record is in the event file; it stands behind all others."""
    path, wanted = event_file(directory), tag.encode()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with open(path, "rb") as file:
            # What the daemon says of the job may stand behind it.
            file.seek(max(0, file.seek(0, 2) - (1 << 16)))
            if wanted in file.read():
                return
        # Looking takes 50 us: once a millisecond would be a twentieth of a processor.
        time.sleep(0.004)
    raise RuntimeError("the last record did not arrive")


def expect(directory: Path, logged: dict[str, int]) -> None:
    """Raise unless TensorBoard's reader comes to find exactly so many points of each tag."""
    deadline = time.monotonic() + 300
    while True:
        found = count_points(directory, logged)
        if found == logged or time.monotonic() > deadline:
            return tally.read_back(logged, found)
        if any(found[tag] > logged[tag] for tag in logged):
            return tally.read_back(logged, found)
        time.sleep(0.2)


def count_points(directory: Path, tags: Iterable[str]) -> dict[str, int]:
    """How many points of each of these tags TensorBoard's reader finds."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found = dict.fromkeys(tags, 0)
    for record in RawEventFileLoader(str(event_file(directory))).Load():
        for value in Event.FromString(record).summary.value:
            if value.tag in found:
                found[value.tag] += 1
    return found


CASES = [
    Case(
        "scalars-end-to-end",
        "scalars of 20 tags, until readable in the event file",
        {"ranktap": scalars_through_ranktap, "torch": scalars_through_torch},
        {FIRST: ("times", 100), THEN: ("times", 100)},
        {FIRST: "1/s", THEN: "1/s"},
        higher_is_better=True,
    ),
    Case(
        "dicts-end-to-end",
        "the same scalars, 20 in one call of `scalars` (torch: `add_scalar`)",
        {"ranktap": dicts_through_ranktap, "torch": scalars_through_torch},
        {FIRST: ("times", 100), THEN: ("times", 100)},
        {FIRST: "1/s", THEN: "1/s"},
        higher_is_better=True,
    ),
    Case(
        "images-end-to-end",
        "512x512x3 images, until readable in the event file",
        {"ranktap": images_through_ranktap, "torch": images_through_torch},
        {FIRST: ("times", 30), THEN: ("times", 30)},
        {FIRST: "1/s", THEN: "1/s"},
        higher_is_better=True,
    ),
    Case(
        "latency",
        "from `tap.scalar` to readable in the event file, 50 a second",
        {"ranktap": latency_ranktap},
        {"median": ("below", 150), "99th percentile": ("below", 1_000)},
        {"median": "ms", "99th percentile": "ms", "worst": "ms"},
    ),
]
