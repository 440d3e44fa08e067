"""Sound against `torch.utils.tensorboard.summary.audio`, byte for byte."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary as torch_summary

from ranktapd.render.audio import audio_value


def torchs(samples: np.ndarray, sample_rate: int) -> bytes:
    value = torch_summary.audio("a", samples, sample_rate).value[0]
    serialized: bytes = value.SerializeToString()
    return serialized


def pcm(value: bytes) -> list[int]:
    """The samples that a player finds."""
    audio = Summary.Value.FromString(value).audio
    with wave.open(io.BytesIO(audio.encoded_audio_string)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth()) == (1, 2)
        assert reader.getframerate() == audio.sample_rate
        assert reader.getnframes() == audio.length_frames
        return np.frombuffer(reader.readframes(reader.getnframes()), "<i2").tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@settings(deadline=None)
@given(data=st.data())
def test_floats_have_the_bytes_that_torch_writes(dtype: str, data: st.DataObject) -> None:
    # Not the last of a half below 1, which torch lets wrap.
    bound = 0.984375 if dtype == "float16" else 2.0
    elements = arrays.from_dtype(np.dtype(dtype), allow_nan=False, max_value=bound, min_value=-2)
    # Of one sample torch makes a number, and fails.
    samples = data.draw(arrays.arrays(np.dtype(dtype), st.integers(2, 50), elements=elements))
    rate = data.draw(st.integers(1, (1 << 31) - 1))
    assert audio_value("a", samples, rate) == torchs(samples, rate)


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
def test_integers_have_the_bytes_that_torch_writes(dtype: str) -> None:
    samples = np.array([0, 1, -1, 2, -300, 32_767], dtype)
    assert audio_value("a", samples, 44_100) == torchs(samples, 44_100)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "uint64"])
def test_integers_on_which_torch_fails_are_clipped_too(dtype: str) -> None:
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    value = audio_value("a", np.array([0, 1, least, most], dtype), 8_000)
    assert pcm(value) == [0, 32_767, -32_767 if least < 0 else 0, 32_767]


def test_the_loudest_half_does_not_wrap() -> None:
    samples = np.array([1.0, -1.0, 0.5, 7.0], np.float16)
    assert pcm(audio_value("a", samples, 8_000)) == [32_767, -32_768, 16_384, 32_767]
    assert pcm(torchs(samples, 8_000)) == [-32_768, -32_768, 16_384, -32_768], "as torch does"


def test_nan_is_silence_and_does_not_keep_others_from_being_clipped() -> None:
    samples = np.array([np.nan, np.inf, -np.inf, 0.25], np.float32)
    assert pcm(audio_value("a", samples, 8_000)) == [0, 32_767, -32_767, 8_191]
