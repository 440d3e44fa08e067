"""Reading event files back, with TensorBoard's own code and protos."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

# The same function: TensorBoard's is Python, and took most of the time that reading takes.
pywrap_tensorflow.crc32c = google_crc32c.value

OWN_TAGS = ("ranktap/", "step_time/", "ranks/step_time/")
"""What tags begin with that no user's code has logged."""


def event_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*tfevents*"))


def accumulate(directory: Path) -> EventAccumulator:
    """All that TensorBoard's Python loader reads in a run's directory, nothing sampled."""
    everything = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0, "audio": 0}
    return EventAccumulator(str(directory), size_guidance=everything).Reload()


def events(path: Path) -> list[Event]:
    """Every event of a file, in order; checksums verified."""
    return [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]


def scalar_points(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar tag, as written: nothing merged, sampled or purged."""
    points: dict[str, list[tuple[int, float]]] = {}
    for path in event_files(directory):
        for event in events(path):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points
