"""What is measured: each case the same work for every side, checked by reading it back.

A case runs in a process of its own, on a directory of its own, and returns figures. A
figure that comes from work which did not arrive in the event file is no figure: every
case counts what TensorBoard's own reader finds.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ranktap

RUN = "run"
END_TAG = "the-end-of-this-measurement"

Figures = dict[str, float]


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


# -- the sides --------------------------------------------------------------------------


def open_tap(directory: Path) -> ranktap.Tap:
    """A tap on an embedded daemon that has answered: start-up is a case of its own."""
    tap = ranktap.init(RUN, logdir=directory, rank=0, world_size=1)
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


def loops_us(call: Callable[[int], None], flush: Callable[[], object], count: int) -> Figures:
    """A call in a tight loop, twice with a flush between.

    The first burst of a process takes its memory from the kernel, page by page; those that
    follow have it already, as all but the first of a training do.
    """
    first = per_call_us(call, count)
    flush()
    tight = per_call_us(lambda i: call(count + i), count)
    return {"first burst": first, "tight loop": tight}


def per_call_us(call: Callable[[int], None], count: int, *, burst: int = 0) -> float:
    """Microseconds a call takes in the calling thread.

    In a tight loop, which shows what a full queue does to the caller; with `burst`, so many
    calls and then 50 ms of nothing, as a training step would leave: cold caches, empty queues.
    """
    gc.collect()
    if not burst:
        started = time.perf_counter()
        for i in range(count):
            call(i)
        return (time.perf_counter() - started) / count * 1e6
    spent = 0.0
    for first in range(0, count, burst):
        started = time.perf_counter()
        for i in range(first, first + burst):
            call(i)
        spent += time.perf_counter() - started
        time.sleep(0.05)
    return spent / count * 1e6


# -- in the training thread ---------------------------------------------------------------


def scalar_calls_ranktap(directory: Path) -> Figures:
    tap = open_tap(directory)
    figures = {
        "tight loop": per_call_us(lambda i: tap.scalar("loss", 0.5, i), 100_000),
        "paced": per_call_us(lambda i: tap.scalar("paced", 0.5, i), 300, burst=10),
    }
    tap.close(60)
    expect(directory, {"loss": 100_000, "paced": 300})
    return figures


def scalar_calls_torch(directory: Path) -> Figures:
    writer = open_torch(directory)
    figures = {
        "tight loop": per_call_us(lambda i: writer.add_scalar("loss", 0.5, i), 20_000),
        "paced": per_call_us(lambda i: writer.add_scalar("paced", 0.5, i), 300, burst=10),
    }
    writer.close()
    expect(directory, {"loss": 20_000, "paced": 300})
    return figures


def image() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """3x512x512, what a photograph is like: smooth shapes and some noise."""
    y, x = np.mgrid[0:512, 0:512] / 512
    waves = [np.sin(8 * x + phase) * np.cos(6 * y - phase) for phase in (0.0, 1.0, 2.0)]
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 512, 512))
    return np.clip((np.stack(waves) * 0.5 + 0.5 + noise) * 255, 0, 255).astype(np.uint8)


def image_calls_ranktap(directory: Path) -> Figures:
    tap, picture = open_tap(directory), image()
    figures = loops_us(lambda i: tap.image("tight", picture, i), lambda: tap.flush(60), 50)
    paced = per_call_us(lambda i: tap.image("paced", picture, i), 30, burst=1)
    tap.close(60)
    expect(directory, {"tight": 100, "paced": 30})
    return figures | {"paced": paced}


def image_calls_torch(directory: Path) -> Figures:
    writer, picture = open_torch(directory), image()
    figures = loops_us(lambda i: writer.add_image("tight", picture, i), writer.flush, 20)
    paced = per_call_us(lambda i: writer.add_image("paced", picture, i), 20, burst=1)
    writer.close()
    expect(directory, {"tight": 40, "paced": 20})
    return figures | {"paced": paced}


def values() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)


def histogram_calls_ranktap(directory: Path) -> Figures:
    tap, data = open_tap(directory), values()
    figures = loops_us(lambda i: tap.histogram("tight", data, i), lambda: tap.flush(60), 15)
    paced = per_call_us(lambda i: tap.histogram("paced", data, i), 30, burst=1)
    tap.close(60)
    expect(directory, {"tight": 30, "paced": 30})
    return figures | {"paced": paced}


def histogram_calls_torch(directory: Path) -> Figures:
    writer, data = open_torch(directory), values()
    figures = loops_us(lambda i: writer.add_histogram("tight", data, i), writer.flush, 15)
    paced = per_call_us(lambda i: writer.add_histogram("paced", data, i), 20, burst=1)
    writer.close()
    expect(directory, {"tight": 30, "paced": 20})
    return figures | {"paced": paced}


# -- end to end ---------------------------------------------------------------------------

TAGS = [f"layer{number}/value" for number in range(20)]


def scalars_through_ranktap(directory: Path) -> Figures:
    tap, steps = open_tap(directory), 100_000
    gc.collect()
    started = time.perf_counter()
    for step in range(steps):
        for tag in TAGS:
            tap.scalar(tag, 0.5, step)
    tap.scalar(END_TAG, 0.0, 0)
    wait_for_end(directory)
    seconds = time.perf_counter() - started
    tap.close(60)
    expect(directory, dict.fromkeys(TAGS, steps))
    return {"scalars/s": steps * len(TAGS) / seconds}


def scalars_through_torch(directory: Path) -> Figures:
    writer, steps = open_torch(directory), 2_000
    gc.collect()
    started = time.perf_counter()
    for step in range(steps):
        for tag in TAGS:
            writer.add_scalar(tag, 0.5, step)
    writer.flush()
    seconds = time.perf_counter() - started
    writer.close()
    expect(directory, dict.fromkeys(TAGS, steps))
    return {"scalars/s": steps * len(TAGS) / seconds}


def images_through_ranktap(directory: Path) -> Figures:
    tap, picture, count = open_tap(directory), image(), 200
    started = time.perf_counter()
    for step in range(count):
        tap.image("image", picture, step)
    tap.image(END_TAG, np.zeros((1, 1, 1)), 0)
    wait_for_end(directory)
    seconds = time.perf_counter() - started
    tap.close(60)
    expect(directory, {"image": count})
    return {"images/s": count / seconds}


def images_through_torch(directory: Path) -> Figures:
    writer, picture, count = open_torch(directory), image(), 20
    started = time.perf_counter()
    for step in range(count):
        writer.add_image("image", picture, step)
    writer.flush()
    seconds = time.perf_counter() - started
    writer.close()
    expect(directory, {"image": count})
    return {"images/s": count / seconds}


# -- latency ------------------------------------------------------------------------------


def latency_ranktap(directory: Path) -> Figures:
    """From the call to the event file, at 50 scalars a second, read by another process."""
    tap, count = open_tap(directory), 500
    reader = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.latency", str(event_file(directory)), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    reader.stdout.readline()  # it watches
    pauses = np.random.default_rng(0).uniform(0.005, 0.035, count)
    for step in range(count):
        tap.scalar("latency", 0.5, step)
        time.sleep(pauses[step])
    said = reader.stdout.read().split()
    reader.wait()
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


def wait_for_end(directory: Path) -> None:
    """Until the last record is in the event file; it stands behind all others."""
    path, wanted = event_file(directory), END_TAG.encode()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            if wanted in file.read():
                return
        # Looking takes 50 us: once a millisecond would be a twentieth of a processor.
        time.sleep(0.004)
    raise RuntimeError("the last record did not arrive")


def expect(directory: Path, counts: dict[str, int]) -> None:
    """Raise unless TensorBoard's reader finds exactly so many points of each tag."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found = dict.fromkeys(counts, 0)
    deadline = time.monotonic() + 300
    path = event_file(directory)
    size = -1
    while size != path.stat().st_size and time.monotonic() < deadline:
        size = path.stat().st_size
        time.sleep(0.5)
    for record in RawEventFileLoader(str(path)).Load():
        for value in Event.FromString(record).summary.value:
            if value.tag in found:
                found[value.tag] += 1
    if found != counts:
        raise RuntimeError(f"logged {counts}, found {found}")


CASES = [
    Case(
        "scalar-call",
        "one scalar, in the training thread",
        {"ranktap": scalar_calls_ranktap, "torch": scalar_calls_torch},
        {"tight loop": ("times", 100), "paced": ("times", 100)},
        {"tight loop": "us", "paced": "us"},
    ),
    Case(
        "image-call",
        "`image` of 3x512x512 uint8, in the training thread",
        {"ranktap": image_calls_ranktap, "torch": image_calls_torch},
        {"tight loop": ("times", 200), "paced": ("times", 200)},
        {"first burst": "us", "tight loop": "us", "paced": "us"},
    ),
    Case(
        "histogram-call",
        "`histogram` of 1,000,000 float32, in the training thread",
        {"ranktap": histogram_calls_ranktap, "torch": histogram_calls_torch},
        {"tight loop": ("times", 30), "paced": ("times", 30)},
        {"first burst": "us", "tight loop": "us", "paced": "us"},
    ),
    Case(
        "scalars-end-to-end",
        "scalars of 20 tags, until readable in the event file",
        {"ranktap": scalars_through_ranktap, "torch": scalars_through_torch},
        {"scalars/s": ("times", 100)},
        {"scalars/s": "1/s"},
        higher_is_better=True,
    ),
    Case(
        "images-end-to-end",
        "512x512x3 images, until readable in the event file",
        {"ranktap": images_through_ranktap, "torch": images_through_torch},
        {"images/s": ("times", 30)},
        {"images/s": "1/s"},
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
