"""Sound to a WAV file: one channel of 16-bit samples, as `SummaryWriter.add_audio` makes it.

RIFF   size of what follows   WAVE
fmt    16 bytes: PCM, 1 channel, samples a second, bytes a second, 2 bytes a sample, 16 bits
data   the samples, int16, little endian
"""

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary

from ranktapd.render.protos import serialized_value

_LOUDEST: Final = 32_767


def audio_value(tag: str, samples: NDArray[Any], sample_rate: int) -> bytes:
    """Samples from -1 to 1, of shape (N,), as a serialized `Summary.Value` with a WAV file.

    `sample_rate` is in Hz.

    Floats are scaled in their own dtype and cut off, not rounded; what is beyond 1 is
    clipped, and so is what a half of 1.0 is rounded up to, which wraps to the lowest
    sample in torch. NaN is silence. Integers are clipped to -1, 0 and 1, as torch does.

    Source: torch.utils.tensorboard.summary.audio.
    """
    waveform = _wav(_to_int16(samples), sample_rate)
    audio = Summary.Audio(
        sample_rate=sample_rate,
        num_channels=1,
        length_frames=samples.size,
        encoded_audio_string=waveform,
        content_type="audio/wav",
    )
    return serialized_value(Summary.Value(tag=tag, audio=audio))


def _to_int16(samples: NDArray[Any]) -> NDArray[np.int16]:
    if samples.dtype.kind != "f":
        # int8 does not hold what it is multiplied with, uint64 does not fit int64.
        signs = np.minimum(samples, 1).astype("<i2").clip(-1, 1)
        integers: NDArray[np.int16] = signs * np.int16(_LOUDEST)
        return integers
    scaled = samples.clip(-1, 1) * samples.dtype.type(_LOUDEST)
    if np.isnan(scaled.min()):
        scaled[np.isnan(scaled)] = 0
    # In half precision 32767 is 32768.
    loudest = np.float32(_LOUDEST)
    floats: NDArray[np.int16] = np.minimum(scaled, loudest, dtype=np.result_type(scaled, loudest))
    return floats.astype("<i2")


def _wav(samples: NDArray[np.int16], sample_rate: int) -> bytes:
    data = samples.tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    head = struct.pack("<4sI", b"data", len(data))
    return struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + form + head + data
