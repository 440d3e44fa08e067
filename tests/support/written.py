"""What stands in a directory of event files, in a form in which two writers' can be compared."""

from __future__ import annotations

import hashlib
import io
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.support.event_files import event_files, events


@dataclass(frozen=True)
class Record:
    """An event, less what two writers of the same have of their own."""

    sub_run: str
    """Where its file is, below the run's directory; "." is the run itself."""
    tags: tuple[str, ...]
    wall_time: float
    text: str
    """All else, as protobuf prints it; pictures decoded, sounds as samples."""
    sums: tuple[float, ...]
    """A histogram's sum and sum of squares: their last digits depend on the order of adding."""

    def __str__(self) -> str:
        return f"in {self.sub_run}, at {self.wall_time!r}, sums {self.sums}:\n{self.text}"

    @property
    def is_scalar(self) -> bool:
        return "simple_value:" in self.text or 'plugin_name: "scalars"' in self.text


def read_records(directory: Path) -> list[Record]:
    """Every event in every file below, a directory after the other, each in its order.

    What a file begins with, and ranktap's checkpoints, are left out.
    """
    records = []
    for below in sorted({path.parent for path in directory.rglob("*tfevents*")}):
        sub_run = str(below.relative_to(directory))
        for path in event_files(below):
            records += [_record(sub_run, each) for each in events(path) if not _is_own(each)]
    return records


def _is_own(event: Event) -> bool:
    what = event.WhichOneof("what")
    return what == "file_version" or (
        what == "session_log"
        and (event.session_log.status == SessionLog.CHECKPOINT or not event.step)
    )


def _record(sub_run: str, event: Event) -> Record:
    tags = tuple(value.tag for value in event.summary.value)
    wall_time = event.wall_time
    event.ClearField("wall_time")
    sums: list[float] = []
    plugin_data = []
    for value in event.summary.value:
        if value.HasField("histo"):
            sums += (value.histo.sum, value.histo.sum_squares)
            value.histo.ClearField("sum")
            value.histo.ClearField("sum_squares")
        if value.metadata.plugin_data.plugin_name == "hparams":
            # A map's entries stand in any order.
            plugin_data.append(HParamsPluginData.FromString(value.metadata.plugin_data.content))
            value.metadata.plugin_data.ClearField("content")
        if value.HasField("image"):
            encoded = value.image.encoded_image_string
            value.image.encoded_image_string = decoded_picture(encoded).encode()
        if value.HasField("audio"):
            value.audio.encoded_audio_string = _decoded_sound(value.audio.encoded_audio_string)
    text = "".join(map(text_format.MessageToString, (event, *plugin_data)))
    return Record(sub_run, tags, wall_time, text, tuple(sums))


def decoded_picture(encoded: bytes) -> str:
    """Format, mode and size of each frame, and a digest of all its pixels."""
    picture = Image.open(io.BytesIO(encoded))
    frames = []
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        pixels = np.asarray(picture)
        frames.append(f"{picture.mode} {pixels.shape} {hashlib.sha256(pixels).hexdigest()}")
    return f"{picture.format} " + ", ".join(frames)


def _decoded_sound(encoded: bytes) -> bytes:
    with wave.open(io.BytesIO(encoded)) as sound:
        return f"{sound.getparams()}: ".encode() + sound.readframes(sound.getnframes())


def read_projector(directory: Path) -> dict[str, str]:
    """The projector's files below, by where they are; of pictures the pixels."""
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix in (".tsv", ".pbtxt"):
            files[str(path.relative_to(directory))] = path.read_bytes().decode()
        elif path.suffix == ".png":
            files[str(path.relative_to(directory))] = decoded_picture(path.read_bytes())
    return files
